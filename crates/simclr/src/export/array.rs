//! The array of `simclr views` as a safetensors file of one tensor.

use std::{collections::BTreeMap, path::Path};

use safetensors::{Dtype, tensor::TensorView};

use super::encoder::header;
use crate::{EvalError, checkpoint::encode};

/// Name of the tensor.
const NAME: &str = "views";
/// In the metadata of every such file and of no other: key and version.
const MARK: (&str, &str) = ("simclr.views", "1");

/// The bytes of a file with the tensor `views`, f32 `[n, width]`; the length of `values` is a multiple of `width`.
///
/// # Errors
/// A tensor that the format cannot hold.
pub fn safetensors_of_views(values: &[f32], width: usize) -> Result<Vec<u8>, EvalError> {
    let failed = |error: safetensors::SafeTensorError| EvalError::Encoding {
        what: "views as safetensors".into(),
        reason: error.to_string(),
    };
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![values.len() / width, width], &bytes).map_err(failed)?;
    let metadata = BTreeMap::from([(MARK.0.to_owned(), MARK.1.to_owned())]);
    encode([(NAME, view)], &metadata).map_err(failed)
}

/// Whether `path` is a file of [`safetensors_of_views`].
pub fn is_safetensors_of_views(path: &Path) -> bool {
    header(path).is_ok_and(|header| header["__metadata__"][MARK.0].is_string())
}
