//! `simclr export`.

use std::{path::Path, process::ExitCode};

use serde_json::json;
use simclr::{
    EvalError,
    device::DeviceChoice,
    eval::features::load_encoder_on,
    export::{Exported, export_encoder, export_onnx, export_timm, load_classifier},
    train::RunFolder,
};

use crate::{
    args::{Export, ExportFormat},
    failure::Failure,
    terminal,
};

/// Writes the encoder and prints the result of the verification.
pub fn run(arguments: &Export) -> Result<ExitCode, Failure> {
    if arguments.license.is_some() && arguments.format != ExportFormat::Timm {
        return Err(Failure::user("--license: expected --format timm, the format with a model card", None));
    }
    let out = arguments.out.clone().unwrap_or_else(|| arguments.run.join(default_name(arguments.format)));
    check_name(&out, arguments.format)?;
    if arguments.format == ExportFormat::Onnx && !RunFolder::is_run(&arguments.run) && arguments.run.is_file()
    {
        let out = arguments.out.clone().unwrap_or_else(|| arguments.run.with_extension("onnx"));
        let classifier = load_classifier(&arguments.run, Some(DeviceChoice::Cpu))?;
        let parts = Some((&classifier.weight, &classifier.bias));
        return Ok(print(&export_onnx(&classifier.encoder, parts, None, &out)?, arguments.json));
    }
    let folder = RunFolder::open(&arguments.run)?;
    let exported = match arguments.format {
        ExportFormat::Safetensors => export_encoder(&folder, &out)?,
        ExportFormat::Timm => export_timm(&folder, &out, arguments.license.as_deref())?,
        ExportFormat::Onnx => {
            let encoder = load_encoder_on(&folder, Some(DeviceChoice::Cpu))?;
            export_onnx(&encoder, None, Some(&folder), &out)?
        }
    };
    Ok(print(&exported, arguments.json))
}

fn print(exported: &Exported, as_json: bool) -> ExitCode {
    let Exported { path, tensors, bytes, difference, metadata } = exported;
    if as_json {
        let facts = json!({"path": path.to_string_lossy(), "tensors": tensors, "bytes": bytes, "difference": difference, "metadata": metadata});
        terminal::result(&facts.to_string());
        return ExitCode::SUCCESS;
    }
    terminal::result(&format!(
        "{}  {tensors} tensors, {bytes} bytes; read back, its features differ by at most {difference:.1e}",
        path.display()
    ));
    ExitCode::SUCCESS
}

fn default_name(format: ExportFormat) -> &'static str {
    match format {
        ExportFormat::Safetensors => "encoder.safetensors",
        ExportFormat::Timm => "timm",
        ExportFormat::Onnx => "encoder.onnx",
    }
}

/// Refuses endings of other formats.
fn check_name(out: &Path, format: ExportFormat) -> Result<(), EvalError> {
    let ending = out.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let ending = ending.as_deref().unwrap_or_default();
    let known = ["safetensors", "onnx", "pt", "pth", "bin", "ckpt"].contains(&ending);
    let (fits, expected) = match format {
        ExportFormat::Safetensors => (!known || ending == "safetensors", "a name that ends in .safetensors"),
        ExportFormat::Onnx => (ending == "onnx", "a name that ends in .onnx"),
        ExportFormat::Timm => (!known, "the name of a folder"),
    };
    if fits {
        return Ok(());
    }
    let reason = format!("expected {expected} for this --format");
    Err(EvalError::File { path: out.to_owned(), reason })
}
