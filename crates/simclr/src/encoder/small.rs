//! Two small convolutional encoders for CPUs.

use tch::Tensor;

use super::{
    EncoderConfig, EncoderName, Mode,
    layers::{BatchNorm, Conv, global_mean},
};
use crate::{ModelError, device::Precision, params::Params};

/// Convolutions 3x3 with batch norm and ReLU, then the mean over positions.
#[derive(Debug)]
pub struct SmallConv {
    layers: Vec<(Conv, BatchNorm)>,
    pooled: bool,
    features: i64,
}

impl SmallConv {
    /// Builds `config.name`, or `None` if that is another architecture. The width multiplier applies.
    pub fn new(config: &EncoderConfig, channels: i64, params: &mut Params) -> Option<Self> {
        let (widths, stride, pooled): (&[f64], i64, bool) = match config.name {
            EncoderName::ConvC3 => (&[32.0, 64.0, 128.0], 2, false),
            EncoderName::ConvC4 => (&[16.0, 32.0, 64.0, 128.0], 1, true),
            _ => return None,
        };
        let mut layers = Vec::new();
        let mut input = channels;
        for (index, width) in widths.iter().enumerate() {
            let output = (width * config.width).round() as i64;
            let number = index + 1;
            let conv = Conv::new(
                params,
                &format!("encoder.conv{number}"),
                (input, output),
                (3, stride),
                config.init,
            );
            layers.push((conv, BatchNorm::new(params, &format!("encoder.bn{number}"), output, 1.0)));
            input = output;
        }
        Some(Self { layers, pooled, features: input })
    }

    /// A handle to the same parameters.
    pub fn shallow_clone(&self) -> Self {
        let pair = |(conv, norm): &(Conv, BatchNorm)| (conv.shallow_clone(), norm.shallow_clone());
        Self { layers: self.layers.iter().map(pair).collect(), pooled: self.pooled, features: self.features }
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
        let Some((conv, norm)) = self.layers.get(index) else { return Ok(global_mean(x)) };
        let x = norm.forward_relu(&conv.forward(x, precision), mode)?;
        let pools = self.pooled && index + 1 < self.layers.len();
        Ok(if pools { simclr_shim::max_pool(&x)? } else { x })
    }

    /// F.
    pub fn features(&self) -> i64 {
        self.features
    }
}
