//! The model that is trained: encoder and head over one parameter store.

use tch::{Device, Tensor};

use crate::{
    ModelError,
    device::Precision,
    encoder::{Encoder, EncoderConfig, Mode},
    head::{Head, HeadConfig},
    params::Params,
};

/// f and g with their parameters.
#[derive(Debug)]
pub struct SimClr {
    /// f.
    pub encoder: Encoder,
    /// g.
    pub head: Head,
    /// Parameters `encoder.*`, `head.*`.
    pub params: Params,
    /// Compute type.
    pub precision: Precision,
}

impl SimClr {
    /// A model with fresh weights drawn from `seed`.
    ///
    /// # Errors
    /// See [`Encoder::new`].
    pub fn new(
        encoder: &EncoderConfig,
        head: &HeadConfig,
        (channels, size): (i64, i64),
        seed: u64,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        // The seed is a bit pattern here: libtorch's generator takes it as i64.
        tch::manual_seed(seed as i64);
        let mut params = Params::new(device);
        let encoder = Encoder::new(encoder, channels, size, &mut params)?;
        let head = Head::new(head, encoder.feature_dim(), &mut params);
        Ok(Self { encoder, head, params, precision })
    }

    /// h `[2N, F]` and z `[2N, D]` of all views in one pass, so that batch norm sees both views together.
    ///
    /// # Errors
    /// See [`Encoder::forward`].
    pub fn forward(&self, views: &Tensor, mode: Mode) -> Result<(Tensor, Tensor), ModelError> {
        let h = self.encoder.forward(views, mode, self.precision)?;
        let z = self.head.forward(&h, mode, self.precision);
        Ok((h, z))
    }
}
