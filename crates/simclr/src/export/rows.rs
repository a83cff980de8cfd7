//! Rows of features, from the encoder to the writers of tables.

use simclr_data::Dataset;
use tch::Tensor;

use crate::EvalError;

/// Quality of the JPEGs in a table.
pub(super) const JPEG_QUALITY: u8 = 85;

/// Rows of a table.
pub(super) struct Rows<'a> {
    pub(super) set: &'a Dataset,
    /// Name of the part that the set is.
    pub(super) part: &'a str,
    /// Indices into the set.
    pub(super) rows: &'a [usize],
    /// `[n, F]`.
    pub(super) h: &'a Tensor,
    /// What the encoder saw, `[n, C, S, S]` in `[0, 1]`.
    pub(super) pixels: &'a Tensor,
}

pub(super) fn values(h: &Tensor) -> Result<Vec<f32>, EvalError> {
    Ok(Vec::<f32>::try_from(h.contiguous().view([-1]))?)
}

/// Values of images `[n, C, S, S]`, with C and S.
pub(super) fn planes(pixels: &Tensor) -> Result<(Vec<f32>, (usize, usize)), EvalError> {
    Ok((values(pixels)?, (pixels.size()[1] as usize, pixels.size()[2] as usize)))
}
