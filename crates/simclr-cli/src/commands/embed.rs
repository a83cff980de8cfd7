//! `simclr embed`.

use std::process::ExitCode;

use serde_json::{Value, json};
use simclr::{
    RunConfig,
    data::dataset::as_one_path,
    export::{EmbedOptions, Embedded, MoreColumns, embed},
    train::RunFolder,
};

use crate::{args::Embed, failure::Failure, report::Stages, terminal};

/// Writes h, or another layer, of every image.
pub fn run(arguments: &Embed) -> Result<ExitCode, Failure> {
    let data = as_one_path(&arguments.data)?;
    let folder = RunFolder::open(&arguments.run)?;
    let mut stages = Stages::new();
    let (config, _) = RunConfig::load_run(&folder.config_file(), &[])?;
    let default = EmbedOptions::default();
    let options = EmbedOptions {
        labels: arguments.labels_from.clone().unwrap_or_else(|| config.data.labels_of(&data)),
        split: arguments.split,
        pixels: arguments.pixels,
        layer: arguments.layer,
        more: MoreColumns { map: arguments.map, images: arguments.images },
        transform: arguments.transform.change(),
        batch: arguments.compute.batch.unwrap_or(default.batch),
        threads: arguments.compute.threads.unwrap_or(default.threads),
        device: arguments.compute.device,
    };
    let embedded = embed(&folder, &data, &arguments.out, &options, &mut |done, of| {
        stages.show_progress(done, of);
    })?;
    for bad in &embedded.bad {
        stages.show(&format!("skipped: {}", bad.reason));
    }
    for note in &embedded.notes {
        stages.show(&format!("note: {note}"));
    }
    if arguments.json {
        terminal::result(&facts(&embedded).to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let skipped = embedded.bad.len();
    terminal::result(&format!(
        "{}  {} rows of {} features, {skipped} images skipped; input: {}",
        embedded.path.display(),
        embedded.images,
        embedded.feature_dim,
        embedded.transform
    ));
    Ok(ExitCode::SUCCESS)
}

fn facts(embedded: &Embedded) -> Value {
    let skipped: Vec<&str> = embedded.bad.iter().map(|bad| &bad.reason[..]).collect();
    json!({
        "path": embedded.path.to_string_lossy(),
        "paths_file": embedded.paths_file.as_ref().map(|path| path.to_string_lossy()),
        "rows": embedded.images,
        "features": embedded.feature_dim,
        "transform": embedded.transform,
        "skipped": skipped,
        "notes": embedded.notes,
    })
}
