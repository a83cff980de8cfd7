//! Residual blocks: two 3x3 convolutions (basic) or 1x1, 3x3, 1x1 (bottleneck), each with batch norm, plus a shortcut.

use simclr_shim::branch;
use tch::Tensor;

use super::{
    EncoderConfig, Mode, ResnetD,
    layers::{BatchNorm, Conv},
    selective_kernel::SelectiveKernel,
};
use crate::{ModelError, device::Precision, params::Params};

/// Geometry of a block.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Channels of its input.
    pub input: i64,
    /// Channels of its 3x3 convolution.
    pub width: i64,
    /// Stride of that convolution; in a basic block of the first one.
    pub stride: i64,
    /// Whether it is a bottleneck.
    pub bottleneck: bool,
    /// Whether the shortcut is a projection even where shapes agree.
    pub project: bool,
}

impl Shape {
    /// Channels of the output.
    pub fn output(self) -> i64 {
        if self.bottleneck { 4 * self.width } else { self.width }
    }
}

/// A residual block.
#[derive(Debug)]
pub struct Block {
    layers: Vec<Layer>, // with ReLU
    last: (Conv, BatchNorm),
    shortcut: Option<Projection>,
}

impl Block {
    /// A block under the names `{name}.*`.
    pub fn new(params: &mut Params, name: &str, config: &EncoderConfig, shape: Shape) -> Self {
        let (width, strided) = (shape.width, (3, shape.stride));
        // (in, out), (kernel, stride) of each convolution but the last.
        let hidden: &[_] = if shape.bottleneck {
            &[((shape.input, width), (1, 1)), ((width, width), strided)]
        } else {
            &[((shape.input, width), strided)]
        };
        let mut layers = Vec::new();
        for (index, &(channels, geometry)) in hidden.iter().enumerate() {
            // Li et al. 2019 replace the 3x3 convolution that has the stride; in a basic block that is the first. The official TF2
            // code leaves basic blocks as they are; its TF1 code also pools the input of their first convolution, and fails.
            let selective = config.sk_ratio > 0.0 && geometry.0 == 3;
            layers.push(Layer::new(params, (name, index + 1), config, (channels, geometry), selective));
        }
        let number = hidden.len() + 1;
        let kernel = if shape.bottleneck { 1 } else { 3 };
        let channels = (width, shape.output());
        let gamma = if config.zero_gamma { 0.0 } else { 1.0 };
        let conv = Conv::new(params, &format!("{name}.conv{number}"), channels, (kernel, 1), config.init);
        let last = (conv, BatchNorm::new(params, &format!("{name}.bn{number}"), channels.1, gamma));
        let projects = shape.project || shape.stride != 1 || shape.input != shape.output();
        let shortcut = projects.then(|| Projection::new(params, name, config, shape));
        Self { layers, last, shortcut }
    }

    /// A handle to the same parameters.
    pub fn shallow_clone(&self) -> Self {
        Self {
            layers: self.layers.iter().map(Layer::shallow_clone).collect(),
            last: (self.last.0.shallow_clone(), self.last.1.shallow_clone()),
            shortcut: self.shortcut.as_ref().map(Projection::shallow_clone),
        }
    }

    /// `[B, in, H, W]` to `[B, out, ceil(H / stride), ceil(W / stride)]`.
    ///
    /// # Errors
    /// See [`BatchNorm::forward`].
    pub fn forward(&self, x: &Tensor, mode: &Mode, precision: Precision) -> Result<Tensor, ModelError> {
        let mut short = branch(x)?;
        if let Some(projection) = &self.shortcut {
            short = projection.forward(&short, mode, precision)?;
        }
        let mut y = x.shallow_clone();
        for layer in &self.layers {
            y = layer.forward(&y, mode, precision)?;
        }
        let (conv, norm) = &self.last;
        norm.forward_add_relu(&conv.forward(&y, precision)?, &short, mode)
    }
}

/// A convolution with batch norm and ReLU.
#[derive(Debug)]
enum Layer {
    Plain(Conv, BatchNorm),
    Selective(SelectiveKernel),
}

impl Layer {
    fn new(
        params: &mut Params,
        (block, number): (&str, usize),
        config: &EncoderConfig,
        (channels, geometry): ((i64, i64), (i64, i64)),
        selective: bool,
    ) -> Self {
        let name = format!("{block}.conv{number}");
        if selective {
            return Self::Selective(SelectiveKernel::new(params, &name, config, channels, geometry.1));
        }
        let conv = Conv::new(params, &name, channels, geometry, config.init);
        Self::Plain(conv, BatchNorm::new(params, &format!("{block}.bn{number}"), channels.1, 1.0))
    }

    fn shallow_clone(&self) -> Self {
        match self {
            Self::Plain(conv, norm) => Self::Plain(conv.shallow_clone(), norm.shallow_clone()),
            Self::Selective(layer) => Self::Selective(layer.shallow_clone()),
        }
    }

    fn forward(&self, x: &Tensor, mode: &Mode, precision: Precision) -> Result<Tensor, ModelError> {
        match self {
            Self::Plain(conv, norm) => norm.forward_relu(&conv.forward(x, precision)?, mode),
            Self::Selective(layer) => layer.forward(x, mode, precision),
        }
    }
}

/// A 1x1 convolution with batch norm as shortcut; with ResNet-D after average-pooling.
#[derive(Debug)]
struct Projection {
    pool: Option<(ResnetD, i64)>, // and stride
    conv: Conv,
    norm: BatchNorm,
}

impl Projection {
    /// Under torchvision's names `downsample.0` and `.1`, or with pooling timm's `downsample.1` and `.2`.
    fn new(params: &mut Params, block: &str, config: &EncoderConfig, shape: Shape) -> Self {
        let kind = config.effective_resnet_d();
        let pool = (kind != ResnetD::Off).then_some((kind, shape.stride));
        let (first, stride) = if pool.is_some() { (1, 1) } else { (0, shape.stride) };
        let name = |index: usize| format!("{block}.downsample.{index}");
        let channels = (shape.input, shape.output());
        let conv = Conv::new(params, &name(first), channels, (1, stride), config.init);
        Self { pool, conv, norm: BatchNorm::new(params, &name(first + 1), channels.1, 1.0) }
    }

    fn shallow_clone(&self) -> Self {
        Self { pool: self.pool, conv: self.conv.shallow_clone(), norm: self.norm.shallow_clone() }
    }

    fn forward(&self, x: &Tensor, mode: &Mode, precision: Precision) -> Result<Tensor, ModelError> {
        let pooled = self.pool.map(|(kind, stride)| average_pool(x, kind, stride));
        self.norm.forward(&self.conv.forward(pooled.as_ref().unwrap_or(x), precision)?, mode)
    }
}

/// Average of 2x2 positions: `[B, C, H, W]` to `[B, C, ceil(H / stride), ceil(W / stride)]`.
fn average_pool(x: &Tensor, kind: ResnetD, stride: i64) -> Tensor {
    let [_, _, height, width] = x.size()[..] else { unreachable!("images have four dimensions") };
    match (kind, stride) {
        // TensorFlow's SAME: a window starts at each position; what lies outside does not count.
        (ResnetD::Official, 1) => {
            let windows = x.avg_pool2d([2], [1], [1], false, false, None::<i64>);
            windows.narrow(2, 1, height).narrow(3, 1, width)
        }
        // FixedPadding(2): one row and column of zeros at the end, which even sides never reach.
        (ResnetD::Official, _) => {
            let padded =
                (height % 2 + width % 2 > 0).then(|| x.constant_pad_nd([0, width % 2, 0, height % 2]));
            padded.as_ref().unwrap_or(x).avg_pool2d([2], [stride], [0], false, true, None::<i64>)
        }
        (_, 1) => x.shallow_clone(),
        (_, _) => x.avg_pool2d([2], [stride], [0], true, false, None::<i64>),
    }
}
