//! `simclr embed`.

use std::process::ExitCode;

use simclr::{
    export::{EmbedOptions, embed},
    train::RunFolder,
};

use crate::{args::Embed, failure::Failure, report::Stages};

/// Writes h, or another layer, of every image.
pub fn run(arguments: &Embed) -> Result<ExitCode, Failure> {
    let folder = RunFolder::open(&arguments.run)?;
    let mut stages = Stages::new();
    let options =
        EmbedOptions { pixels: arguments.pixels, layer: arguments.layer, ..EmbedOptions::default() };
    let embedded = embed(&folder, &arguments.data, &arguments.out, &options, &mut |done, of| {
        // Ten lines at most.
        stages.show(&format!("{} % of {of} images", 10 * (10 * done / of.max(1))));
    })?;
    for bad in &embedded.bad {
        stages.show(&format!("skipped: {}", bad.reason));
    }
    let skipped = embedded.bad.len();
    super::print(&format!(
        "{}  {} rows of {} features, {skipped} images skipped",
        embedded.path.display(),
        embedded.images,
        embedded.feature_dim
    ));
    Ok(ExitCode::SUCCESS)
}
