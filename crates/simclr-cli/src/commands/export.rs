//! `simclr export`.

use std::process::ExitCode;

use simclr::{export::export_encoder, train::RunFolder};

use crate::{args::Export, failure::Failure, terminal};

/// Writes the encoder and prints the result of the verification.
pub fn run(arguments: &Export) -> Result<ExitCode, Failure> {
    let folder = RunFolder::open(&arguments.run)?;
    let out = arguments.out.clone().unwrap_or_else(|| folder.path().join("encoder.safetensors"));
    let exported = export_encoder(&folder, &out)?;
    terminal::result(&format!(
        "{}  {} tensors, {} bytes; read back, its features differ by at most {:.1e}",
        exported.path.display(),
        exported.tensors,
        exported.bytes,
        exported.difference
    ));
    Ok(ExitCode::SUCCESS)
}
