//! Small convolutional encoders for CPUs.

use tch::Tensor;

use super::{
    EncoderConfig, EncoderName, Mode,
    layers::{BatchNorm, Conv, global_mean},
};
use crate::{ModelError, device::Precision, params::Params};

/// Layers of 3x3 convolutions with batch norm and ReLU, then the mean over positions.
#[derive(Debug)]
pub struct SmallConv {
    layers: Vec<Layer>,
    features: i64,
}

/// A convolution with batch norm and ReLU and what follows it.
#[derive(Debug)]
struct Layer {
    conv: Conv,
    norm: BatchNorm,
    /// Whether the maximum of 2x2 positions is taken.
    pools: bool,
    /// A second convolution, added to its input ahead of its ReLU.
    residual: Option<(Conv, BatchNorm)>,
}

/// Widths at multiplier 1, stride, whether pooling and whether a residual convolution is between the layers; `None` for other encoders.
fn architecture(name: EncoderName) -> Option<(&'static [f64], i64, bool, bool)> {
    match name {
        EncoderName::ConvC3 => Some((&[32.0, 64.0, 128.0], 2, false, false)),
        EncoderName::ConvC4 => Some((&[16.0, 32.0, 64.0, 128.0], 1, true, false)),
        EncoderName::ConvC7 => Some((&[16.0, 32.0, 64.0, 128.0], 1, true, true)),
        _ => None,
    }
}

impl SmallConv {
    /// Builds `config.name`, or `None` if that is another architecture. The width multiplier applies.
    pub fn new(config: &EncoderConfig, channels: i64, params: &mut Params) -> Option<Self> {
        let (widths, stride, pools, residual) = architecture(config.name)?;
        let mut convolution = |name: &str, number: usize, channels: (i64, i64), stride: i64, gamma: f64| {
            let conv =
                Conv::new(params, &format!("encoder.{name}conv{number}"), channels, (3, stride), config.init);
            (conv, BatchNorm::new(params, &format!("encoder.{name}bn{number}"), channels.1, gamma))
        };
        let mut layers = Vec::new();
        let mut input = channels;
        for (index, width) in widths.iter().enumerate() {
            let output = (width * config.width).round() as i64;
            let (number, between) = (index + 1, index + 1 < widths.len());
            let (conv, norm) = convolution("", number, (input, output), stride, 1.0);
            let gamma = if config.zero_gamma { 0.0 } else { 1.0 };
            let residual =
                (residual && between).then(|| convolution("residual_", number, (output, output), 1, gamma));
            layers.push(Layer { conv, norm, pools: pools && between, residual });
            input = output;
        }
        Some(Self { layers, features: input })
    }

    /// A handle to the same parameters.
    pub fn shallow_clone(&self) -> Self {
        Self { layers: self.layers.iter().map(Layer::shallow_clone).collect(), features: self.features }
    }

    /// Number of stages: layers, mean over positions.
    pub fn stages(&self) -> usize {
        self.layers.len() + 1
    }

    /// Stage `index` of the forward pass from images to h `[B, F]`.
    pub fn stage(
        &self,
        index: usize,
        x: &Tensor,
        mode: &Mode,
        precision: Precision,
    ) -> Result<Tensor, ModelError> {
        match self.layers.get(index) {
            Some(layer) => layer.forward(x, mode, precision),
            None => Ok(global_mean(x)),
        }
    }

    /// F.
    pub fn features(&self) -> i64 {
        self.features
    }
}

impl Layer {
    fn shallow_clone(&self) -> Self {
        let Self { conv, norm, pools, residual } = self;
        let pair = |(conv, norm): &(Conv, BatchNorm)| (conv.shallow_clone(), norm.shallow_clone());
        Self {
            conv: conv.shallow_clone(),
            norm: norm.shallow_clone(),
            pools: *pools,
            residual: residual.as_ref().map(pair),
        }
    }

    fn forward(&self, x: &Tensor, mode: &Mode, precision: Precision) -> Result<Tensor, ModelError> {
        let mut x = self.norm.forward_relu(&self.conv.forward(x, precision)?, mode)?;
        if self.pools {
            x = simclr_shim::max_pool(&x)?;
        }
        match &self.residual {
            Some((conv, norm)) => norm.forward_add_relu(&conv.forward(&x, precision)?, &x, mode),
            None => Ok(x),
        }
    }
}
