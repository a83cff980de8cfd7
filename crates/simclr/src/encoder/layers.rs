//! Convolution and batch norm with explicit mode and precision. Shapes `[B, C, H, W]`, channels-last in memory.

use tch::{Kind, Tensor};

use super::{Init, Mode, Padding};
use crate::{
    device::{Precision, channels_last},
    params::{Params, Role},
};

/// Batch-norm epsilon (google-research/simclr `resnet.py` `BATCH_NORM_EPSILON`).
pub const EPSILON: f64 = 1e-5;
/// Weight of the new batch in the running statistics: 1 - the official decay of 0.9.
pub const MOMENTUM: f64 = 0.1;
/// Standard deviation of a standard normal cut at two sigma.
const CUT_NORMAL_STD: f64 = 0.879_625_66;

/// A convolution without bias, padded by k / 2 on all sides: for odd kernels this is also the official encoder's
/// "fixed" padding of strided convolutions (`resnet.py` `fixed_padding`: k - 1 in all, half before).
#[derive(Debug)]
pub struct Conv {
    weight: Tensor, // [out, in, k, k]
    kernel: i64,
    stride: i64,
}

impl Conv {
    /// A `kernel` x `kernel` convolution under the name `{name}.weight`.
    pub fn new(
        params: &mut Params,
        name: &str,
        (input, output): (i64, i64),
        (kernel, stride): (i64, i64),
        init: Init,
    ) -> Self {
        let weight = initial_kernel([output, input, kernel, kernel], init);
        let weight = params.add(format!("{name}.weight"), Role::Kernel, channels_last(&weight));
        Self { weight, kernel, stride }
    }

    /// `[B, in, H, W]` to `[B, out, ceil(H / stride), ceil(W / stride)]`, in the precision's type.
    pub fn forward(&self, x: &Tensor, precision: Precision) -> Tensor {
        let kind = precision.kind();
        x.to_kind(kind).conv2d(
            &self.weight.to_kind(kind),
            None::<&Tensor>,
            [self.stride],
            [self.kernel / 2],
            [1],
            1,
        )
    }
}

fn initial_kernel(shape: [i64; 4], init: Init) -> Tensor {
    let options = (Kind::Float, tch::Device::Cpu);
    let [output, input, height, width] = shape;
    match init {
        // TF `variance_scaling_initializer()`: scale 1, fan-in, normal cut at 2 sigma and rescaled (spec 4.2).
        Init::Official => {
            let std = (1.0 / (input * height * width) as f64).sqrt() / CUT_NORMAL_STD;
            cut_normal(&shape) * std
        }
        // torchvision resnet.py: kaiming_normal_(mode="fan_out", nonlinearity="relu").
        Init::He => Tensor::randn(shape, options) * (2.0 / (output * height * width) as f64).sqrt(),
    }
}

/// Standard normal numbers within two sigma, by the inverse of the error function on a cut uniform.
fn cut_normal(shape: &[i64]) -> Tensor {
    let edge = Tensor::from(std::f64::consts::SQRT_2).erf().double_value(&[]);
    let uniform = Tensor::rand(shape, (Kind::Double, tch::Device::Cpu)) * (2.0 * edge) - edge;
    (uniform.erfinv() * std::f64::consts::SQRT_2).to_kind(Kind::Float)
}

/// Batch norm over the batch and all positions, f32 parameters and statistics whatever the type of the input.
#[derive(Debug)]
pub struct BatchNorm {
    scale: Tensor,
    shift: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    /// Under the names `{name}.weight`, `.bias`, `.running_mean`, `.running_var`; the scale starts at `gamma`.
    pub fn new(params: &mut Params, name: &str, channels: i64, gamma: f64) -> Self {
        let options = (Kind::Float, params.device());
        let scale = Tensor::full([channels], gamma, options);
        let scale = params.add(format!("{name}.weight"), Role::NormScale, scale);
        let shift = params.add(format!("{name}.bias"), Role::NormShift, Tensor::zeros([channels], options));
        let (running_mean, running_var) = running_statistics(params, name, channels);
        Self { scale, shift, running_mean, running_var }
    }

    /// A batch norm whose shift stays at zero and is no parameter: the last one of the official head
    /// (`model_util.py`, `center=False`).
    pub fn without_shift(params: &mut Params, name: &str, channels: i64) -> Self {
        let options = (Kind::Float, params.device());
        let scale = params.add(format!("{name}.weight"), Role::NormScale, Tensor::ones([channels], options));
        let shift = Tensor::zeros([channels], options);
        let (running_mean, running_var) = running_statistics(params, name, channels);
        Self { scale, shift, running_mean, running_var }
    }

    /// Same shape and type as `x` (`[B, C]` or `[B, C, H, W]`).
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        x.batch_norm(
            Some(&self.scale),
            Some(&self.shift),
            Some(&self.running_mean),
            Some(&self.running_var),
            mode == Mode::Train,
            MOMENTUM,
            EPSILON,
            true,
        )
    }
}

fn running_statistics(params: &mut Params, name: &str, channels: i64) -> (Tensor, Tensor) {
    let options = (Kind::Float, params.device());
    let mean = params.add_buffer(format!("{name}.running_mean"), Tensor::zeros([channels], options));
    let var = params.add_buffer(format!("{name}.running_var"), Tensor::ones([channels], options));
    (mean, var)
}

/// Max-pool 3x3/2 of the ImageNet stem. It follows a ReLU, so zeros serve as padding.
///
/// TensorFlow's SAME pads (ceil(n / 2) - 1) * 2 + 3 - n pixels in all, the odd one at the end: on an even side none
/// before and one after, where PyTorch pads one on both sides. Converted weights lose accuracy over this pixel.
pub fn max_pool(x: &Tensor, padding: Padding) -> Tensor {
    if padding == Padding::Symmetric {
        return x.max_pool2d([3], [2], [1], [1], false);
    }
    let [_, _, height, width] = x.size()[..] else { unreachable!("images have four dimensions") };
    let total = |side: i64| ((side + 1) / 2 - 1) * 2 + 3 - side;
    let sides = |side: i64| [total(side) / 2, total(side) - total(side) / 2];
    let ([left, right], [top, bottom]) = (sides(width), sides(height));
    x.constant_pad_nd([left, right, top, bottom]).max_pool2d([3], [2], [0], [1], false)
}

/// Mean over positions: `[B, C, H, W]` to `[B, C]` in f32.
pub fn global_mean(x: &Tensor) -> Tensor {
    x.mean_dim([2i64, 3].as_slice(), false, Kind::Float)
}
