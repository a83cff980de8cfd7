//! Selective kernels (Li et al. 2019, arXiv 1903.06586) as in SimCLR v2: two 3x3 convolutions of one input, mixed per image and channel
//! by weights that follow from the mean over positions (google-research/simclr `resnet.py`, `SK_Conv2D`).

use tch::{Kind, Tensor};

use super::{
    EncoderConfig, Mode,
    layers::{BatchNorm, Conv, global_mean},
};
use crate::{ModelError, device::Precision, params::Params};

/// Least width of the layer that weighs the streams (`min_dim`).
const LEAST: i64 = 32;

/// A 3x3 convolution with batch norm and ReLU, in two streams.
#[derive(Debug)]
pub struct SelectiveKernel {
    conv: Conv, // output channels: first stream, second stream
    norm: BatchNorm,
    reduce: Conv,
    reduce_norm: BatchNorm,
    select: Conv,
    channels: i64,
}

impl SelectiveKernel {
    /// Under the names `{name}.conv`, `.bn`, `.reduce`, `.reduce_bn`, `.select`.
    pub fn new(
        params: &mut Params,
        name: &str,
        config: &EncoderConfig,
        (input, output): (i64, i64),
        stride: i64,
    ) -> Self {
        let middle = ((output as f64 * config.sk_ratio) as i64).max(LEAST);
        let (streams, init) = (2 * output, config.init);
        let part = |part: &str| format!("{name}.{part}");
        Self {
            conv: Conv::new(params, &part("conv"), (input, streams), (3, stride), init),
            norm: BatchNorm::new(params, &part("bn"), streams, 1.0),
            reduce: Conv::new(params, &part("reduce"), (output, middle), (1, 1), init),
            reduce_norm: BatchNorm::new(params, &part("reduce_bn"), middle, 1.0),
            select: Conv::new(params, &part("select"), (middle, streams), (1, 1), init),
            channels: output,
        }
    }

    /// A handle to the same parameters.
    pub fn shallow_clone(&self) -> Self {
        Self {
            conv: self.conv.shallow_clone(),
            norm: self.norm.shallow_clone(),
            reduce: self.reduce.shallow_clone(),
            reduce_norm: self.reduce_norm.shallow_clone(),
            select: self.select.shallow_clone(),
            channels: self.channels,
        }
    }

    /// `[B, in, H, W]` to `[B, out, ceil(H / stride), ceil(W / stride)]`.
    ///
    /// # Errors
    /// See [`BatchNorm::forward`].
    pub fn forward(&self, x: &Tensor, mode: &Mode, precision: Precision) -> Result<Tensor, ModelError> {
        let streams = self.norm.forward_relu(&self.conv.forward(x, precision)?, mode)?;
        let shares = self.shares(&streams, mode, precision)?.to_kind(streams.kind());
        let stream = |index: i64| streams.narrow(1, index * self.channels, self.channels);
        let share = |index: i64| shares.select(1, index);
        Ok((stream(0) * share(0)).addcmul(&stream(1), &share(1)))
    }

    /// Shares of the two streams, which add up to 1: `[B, 2, out, 1, 1]` in f32.
    fn shares(&self, streams: &Tensor, mode: &Mode, precision: Precision) -> Result<Tensor, ModelError> {
        let batch = streams.size()[0];
        let per_stream = |x: &Tensor| x.view([batch, 2, self.channels, 1, 1]);
        let sum = per_stream(&global_mean(streams)).sum_dim_intlist(1, false, Kind::Float);
        let reduced = self.reduce_norm.forward_relu(&self.reduce.forward(&sum, precision)?, mode)?;
        let logits = self.select.forward(&reduced, precision)?;
        Ok(per_stream(&logits.contiguous()).softmax(1, Kind::Float))
    }
}
