//! Convolution and batch norm with explicit mode and precision. Shapes `[B, C, H, W]`, channels-last in memory.

use std::sync::Arc;

use simclr_data::rng::Stream;
use simclr_shim::{KernelGradient, Statistics, Sum, conv2d};
use tch::{Kind, Tensor};

use super::{AllReduce, BatchStatistics, Init, Mode, Padding, group_rows, statistics::averaging_momenta};
use crate::{
    ModelError,
    device::{Precision, channels_last},
    params::{Params, Role},
};

/// Batch-norm epsilon (google-research/simclr `resnet.py` `BATCH_NORM_EPSILON`).
pub const EPSILON: f64 = 1e-5;
/// Standard deviation of a standard normal truncated at two sigma.
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
        let weight = initial_kernel([output, input, kernel, kernel], init, &mut params.stream());
        let weight = params.add(format!("{name}.weight"), Role::Weight, channels_last(&weight));
        Self { weight, kernel, stride }
    }

    /// A handle to the same kernel.
    pub fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), kernel: self.kernel, stride: self.stride }
    }

    /// `[B, in, H, W]` to `[B, out, ceil(H / stride), ceil(W / stride)]`, in the precision's type.
    ///
    /// # Errors
    /// libtorch errors.
    pub fn forward(&self, x: &Tensor, precision: Precision) -> Result<Tensor, ModelError> {
        let kind = precision.kind();
        let (x, weight) = (x.to_kind(kind), self.weight.to_kind(kind));
        Ok(conv2d(&x, &weight, (self.stride, self.kernel / 2), KernelGradient::Fastest)?)
    }
}

fn initial_kernel(shape: [i64; 4], init: Init, stream: &mut Stream) -> Tensor {
    let [output, input, height, width] = shape;
    let count = (output * input * height * width) as usize;
    let (draws, std) = match init {
        // TF `variance_scaling_initializer()`: scale 1, fan-in, normal truncated at 2 sigma and rescaled.
        Init::Official => {
            let std = (1.0 / (input * height * width) as f64).sqrt() / CUT_NORMAL_STD;
            (stream.cut_normals(count), std)
        }
        // torchvision resnet.py: kaiming_normal_(mode="fan_out", nonlinearity="relu").
        Init::He => (stream.normals(count), (2.0 / (output * height * width) as f64).sqrt()),
    };
    Tensor::from_slice(&draws).view(shape) * std
}

/// Batch norm over the batch and all positions; parameters and statistics are f32 for every input dtype.
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

    /// A batch norm without shift, as the last one of the official head (`model_util.py`, `center=False`).
    pub fn without_shift(params: &mut Params, name: &str, channels: i64) -> Self {
        let options = (Kind::Float, params.device());
        let scale = params.add(format!("{name}.weight"), Role::NormScale, Tensor::ones([channels], options));
        let shift = Tensor::zeros([channels], options);
        let (running_mean, running_var) = running_statistics(params, name, channels);
        Self { scale, shift, running_mean, running_var }
    }

    /// A batch norm without scale and shift (`affine=False` of PyTorch).
    pub fn without_affine(params: &mut Params, name: &str, channels: i64) -> Self {
        let options = (Kind::Float, params.device());
        let (scale, shift) = (Tensor::ones([channels], options), Tensor::zeros([channels], options));
        let (running_mean, running_var) = running_statistics(params, name, channels);
        Self { scale, shift, running_mean, running_var }
    }

    /// A handle to the same parameters and running statistics.
    pub fn shallow_clone(&self) -> Self {
        Self {
            scale: self.scale.shallow_clone(),
            shift: self.shift.shallow_clone(),
            running_mean: self.running_mean.shallow_clone(),
            running_var: self.running_var.shallow_clone(),
        }
    }

    /// Same shape and dtype as `x` (`[B, C]` or `[B, C, H, W]`).
    ///
    /// # Errors
    /// Out of memory; a panic of the all-reduce of the statistics.
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Result<Tensor, ModelError> {
        self.apply(x, None, false, mode)
    }

    /// ReLU of [`BatchNorm::forward`].
    ///
    /// # Errors
    /// See [`BatchNorm::forward`].
    pub fn forward_relu(&self, x: &Tensor, mode: &Mode) -> Result<Tensor, ModelError> {
        self.apply(x, None, true, mode)
    }

    /// ReLU of [`BatchNorm::forward`] plus `residual`, of the shape and dtype of `x`.
    ///
    /// # Errors
    /// See [`BatchNorm::forward`].
    pub fn forward_add_relu(&self, x: &Tensor, residual: &Tensor, mode: &Mode) -> Result<Tensor, ModelError> {
        self.apply(x, Some(residual), true, mode)
    }

    fn apply(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
        mode: &Mode,
    ) -> Result<Tensor, ModelError> {
        let Mode::Train(BatchStatistics { all_reduce, momentum, groups }) = mode else {
            return self.normalise(x, residual, relu, Statistics::Running);
        };
        let sum =
            |group: Arc<dyn AllReduce>| Arc::new(move |values: &Tensor| group.all_reduce_sum(values)) as Sum;
        let statistics =
            |momentum: f64| Statistics::Batch { momentum, all_reduce: all_reduce.clone().map(sum) };
        if *groups < 2 {
            return self.normalise(x, residual, relu, statistics(*momentum));
        }
        let groups = group_rows(x.size()[0], *groups);
        let momenta = averaging_momenta(*momentum, groups.len());
        let group = |((start, rows), momentum): ((i64, i64), f64)| {
            let part = |tensor: &Tensor| tensor.narrow(0, start, rows);
            self.normalise(&part(x), residual.map(part).as_ref(), relu, statistics(momentum))
        };
        let parts: Vec<Tensor> = groups.into_iter().zip(momenta).map(group).collect::<Result<_, _>>()?;
        Ok(Tensor::cat(&parts, 0))
    }

    fn normalise(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
        statistics: Statistics,
    ) -> Result<Tensor, ModelError> {
        let norm = simclr_shim::BatchNorm {
            scale: &self.scale,
            shift: &self.shift,
            running_mean: &self.running_mean,
            running_var: &self.running_var,
            epsilon: EPSILON,
        };
        Ok(norm.forward(x, residual, relu, statistics)?)
    }
}

fn running_statistics(params: &mut Params, name: &str, channels: i64) -> (Tensor, Tensor) {
    let options = (Kind::Float, params.device());
    let mean = params.add_buffer(format!("{name}.running_mean"), Tensor::zeros([channels], options));
    let var = params.add_buffer(format!("{name}.running_var"), Tensor::ones([channels], options));
    (mean, var)
}

/// Max-pool 3x3/2 of the ImageNet stem. It follows a ReLU, so padding with zeros has no effect on the maximum.
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

#[cfg(test)]
mod tests {
    use simclr_data::rng::Key;

    use super::*;

    /// TensorFlow's rule written out: output ceil(n / 2), (out - 1) * 2 + 3 - n pixels of padding, the smaller half
    /// first; cells outside the image do not take part.
    fn same_pool(image: &[Vec<f64>]) -> Vec<f64> {
        let (height, width) = (image.len(), image[0].len());
        let window = |side: usize, at: usize| {
            let before = ((side.div_ceil(2) - 1) * 2 + 3 - side) / 2;
            (2 * at).saturating_sub(before)..(2 * at + 3 - before).min(side)
        };
        let mut pooled = Vec::new();
        for y in 0..height.div_ceil(2) {
            for x in 0..width.div_ceil(2) {
                let rows = image[window(height, y)].iter();
                pooled.push(rows.flat_map(|row| &row[window(width, x)]).copied().fold(0.0, f64::max));
            }
        }
        pooled
    }

    #[test]
    fn same_padding_matches_tensorflow() {
        for (height, width) in [(4, 4), (5, 5), (4, 7), (7, 4), (2, 3), (1, 1), (32, 32)] {
            let value = |y: usize, x: usize| ((y * 31 + x * 17) % 23) as f64;
            let image: Vec<Vec<f64>> =
                (0..height).map(|y| (0..width).map(|x| value(y, x)).collect()).collect();
            let tensor = Tensor::from_slice(&image.concat()).view([1, 1, height as i64, width as i64]);
            let pooled = max_pool(&tensor, Padding::Same);
            assert_eq!(pooled.size(), [1, 1, height.div_ceil(2) as i64, width.div_ceil(2) as i64]);
            let found = Vec::<f64>::try_from(pooled.contiguous().view(-1)).unwrap();
            assert_eq!(found, same_pool(&image), "{height} x {width}");
        }
    }

    /// Mean 0, standard deviation 0.87962566, nothing beyond two sigma.
    #[test]
    fn truncated_normal_has_the_expected_moments() {
        let draws = Tensor::from_slice(&Key::weights(0, 0).stream().cut_normals(400_000));
        assert!(draws.abs().max().double_value(&[]) <= 2.0);
        // Standard errors with 400,000 draws: .0014 of the mean, .001 of the deviation.
        assert!(draws.mean(Kind::Double).double_value(&[]).abs() < 0.006);
        assert!((draws.std(true).double_value(&[]) - CUT_NORMAL_STD).abs() < 0.004);
    }

    #[test]
    fn he_initialisation_uses_fan_out() {
        let kernel = initial_kernel([256, 64, 3, 3], Init::He, &mut Key::weights(0, 0).stream());
        // torchvision: sqrt(2 / (256 * 9)); 147,456 draws give the deviation to 0.2 %.
        assert!((kernel.std(true).double_value(&[]) / (2.0f64 / 2304.0).sqrt() - 1.0).abs() < 0.01);
    }

    /// Two groups equal two batch norms, and the running statistics those of the mean.
    #[test]
    fn groups_have_statistics_of_their_own() {
        let norm = || {
            let mut params = Params::new(tch::Device::Cpu, 0);
            (BatchNorm::new(&mut params, "bn", 2, 1.0), params)
        };
        let x = crate::test_normals(3, &[10, 2, 2, 2]) + crate::test_normals(4, &[10, 1, 1, 1]);
        let mode = |groups| Mode::Train(BatchStatistics { groups, ..BatchStatistics::default() });
        let ((grouped, params), parts) = (norm(), [norm(), norm()]);
        let y = grouped.forward_add_relu(&x, &(&x * 0.5), &mode(2)).unwrap();
        // Bounds are even: 4 and 6 rows.
        let narrow = |at: usize| x.narrow(0, [0, 4][at], [4, 6][at]);
        let by_part = [0, 1]
            .map(|at| parts[at].0.forward_add_relu(&narrow(at), &(narrow(at) * 0.5), &mode(1)).unwrap());
        assert_eq!(y, Tensor::cat(&by_part, 0));
        for (at, (name, buffer)) in params.buffers().iter().enumerate() {
            let mean = (&parts[0].1.buffers()[at].1 + &parts[1].1.buffers()[at].1) / 2.0;
            assert!((buffer - mean).abs().max().double_value(&[]) < 1e-6, "{name}");
        }
    }

    /// One batch of two channels by hand: mean and biased variance normalise, the unbiased one enters the running
    /// statistics (PyTorch's convention) with weight 0.1, and inference uses those.
    #[test]
    fn batch_norm_matches_manual_computation() {
        let mut params = Params::new(tch::Device::Cpu, 0);
        let norm = BatchNorm::new(&mut params, "bn", 1, 1.0);
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 6.0]).view([2, 1, 1, 2]);
        let y = norm.forward(&x, &Mode::train()).unwrap().view(-1).detach();
        let y = Vec::<f32>::try_from(y).unwrap();
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        let deviation = (3.5 + EPSILON).sqrt();
        for (found, x) in y.iter().zip([1.0, 2.0, 3.0, 6.0]) {
            near(f64::from(*found), (x - 3.0) / deviation);
        }
        let running = |at: usize| params.buffers()[at].1.double_value(&[0]);
        near(running(0), 0.3);
        near(running(1), 0.9 + 0.1 * 14.0 / 3.0);
        let inferred = norm.forward(&x, &Mode::Eval).unwrap().double_value(&[0, 0, 0, 0]);
        near(inferred, (1.0 - 0.3) / (0.9 + 1.4 / 3.0 + EPSILON).sqrt());
        near(running(0), 0.3);
    }
}
