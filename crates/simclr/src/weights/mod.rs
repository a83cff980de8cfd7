//! Weights of other programs: tensors of a file, the architecture and the input statistics that they belong to, and the encoder that
//! they are copied into.

mod architecture; // tensor names and shapes -> keys of the configuration
mod fit; // tensors of a file -> parameters of a model
mod pickle;
mod statement; // config.json next to a file -> input statistics
mod torch_file;
mod transformers; // names of Hugging Face's transformers -> those of torchvision and timm

use std::path::{Path, PathBuf};

pub use architecture::{IMAGENET_MEAN, IMAGENET_STD, prefix};
pub use fit::{Fitted, Source};

use crate::{ModelError, RunConfig, checkpoint::ForeignTensors};

/// Weight files of a Hugging Face folder, the first that exists.
const FOLDER_FILES: [&str; 3] = ["model.safetensors", "pytorch_model.bin", "pytorch_model.pth"];

/// The weights in `path`: the file, or a file of a Hugging Face folder.
///
/// # Errors
/// [`ModelError::Weights`] for a folder without such a file.
pub fn file_of(path: &Path) -> Result<PathBuf, ModelError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let file = FOLDER_FILES.iter().map(|name| path.join(name)).find(|file| file.is_file());
    file.ok_or_else(|| {
        refused(path, "neither a run folder nor one with model.safetensors or pytorch_model.bin")
    })
}

/// The tensors of a safetensors file, or of one that `torch.save` wrote (`.pth`, `.pt`, `.bin`, `.ckpt`). No code of the file runs.
///
/// # Errors
/// [`ModelError::Weights`] for a file that cannot be read or is of another format.
pub fn read(file: &Path) -> Result<ForeignTensors, ModelError> {
    parse(file, &fs_err::read(file).map_err(|error| refused(file, error))?)
}

/// [`read`] of the contents `bytes` of `file`.
///
/// # Errors
/// As [`read`].
pub fn parse(file: &Path, bytes: &[u8]) -> Result<ForeignTensors, ModelError> {
    // The length of a safetensors header, the first eight bytes, may start as a pickle does.
    let is_safetensors = bytes.get(8) == Some(&b'{');
    if bytes.starts_with(torch_file::ZIP) || !is_safetensors && bytes.first() == Some(&torch_file::PICKLE) {
        let tensors = torch_file::tensors(bytes).map_err(|reason| refused(file, reason))?;
        return Ok(transformers::renamed(ForeignTensors::of(file, tensors)));
    }
    let stored = ForeignTensors::parse(file, bytes).map_err(|error| match error {
        ModelError::File { path, reason } => ModelError::Weights { path, reason },
        other => other,
    });
    stored.map(transformers::renamed)
}

/// Refuses the `config` that `file` states if its encoder is a TorchScript module: that runs code with the rights of the user, and the
/// author of the file chose it.
///
/// # Errors
/// [`ModelError::Weights`] with the module.
pub(crate) fn refuse_module(file: &Path, config: &RunConfig) -> Result<(), ModelError> {
    let Some(module) = &config.encoder.file else { return Ok(()) };
    let reason = format!(
        "its encoder is the TorchScript module `{}`, which would run code with your rights; expected a network of tensors only",
        module.display()
    );
    Err(refused(file, reason))
}

fn refused(path: &Path, reason: impl std::fmt::Display) -> ModelError {
    ModelError::Weights { path: path.to_owned(), reason: reason.to_string() }
}
