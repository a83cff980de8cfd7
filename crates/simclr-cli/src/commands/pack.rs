//! `simclr pack`.

use std::{process::ExitCode, sync::atomic::Ordering};

use serde_json::json;
use simclr::{
    data::{
        Dataset, Split, ValueRange,
        dataset::{Channels, as_one_path},
        pack::{PackOptions, Packed, pack},
    },
    train::RunFolder,
};

use super::pretrain::watch_signals;
use crate::{args::Pack, failure::Failure, report::Stages, terminal};

/// Packs a set and prints a summary with the fingerprint.
pub fn run(arguments: &Pack) -> Result<ExitCode, Failure> {
    let data = as_one_path(&arguments.data)?;
    let all_processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let options = PackOptions {
        channels: arguments.channels.map_or(Channels::Auto, Channels::Count),
        size: arguments.size,
        jpeg: arguments.jpeg,
        range: arguments.range.clone(),
        pages: arguments.pages,
        labels: arguments.labels_from.clone(),
        threads: arguments.threads.unwrap_or_else(all_processors),
    };
    let _held = RunFolder::around(&arguments.out, None)?;
    let (stop, signal) = watch_signals()?;
    let mut stages = Stages::new();
    let mut progress = |done: usize, of: usize| stages.show_progress(done, of);
    let Some(packed) = pack(&data, &arguments.out, &options, &mut progress, &stop)? else {
        return Ok(ExitCode::from(128 + signal.load(Ordering::Relaxed) as u8));
    };
    let Packed { train, test, validation, unlabelled, bytes, failed, range, notes } = packed;
    notes.iter().for_each(|note| stages.show(&format!("note: {note}")));
    for (name, reason) in &failed {
        stages.show(&format!("cannot decode `{name}`: {reason}"));
    }
    let fingerprint = Dataset::open(&arguments.out, Split::Train, Channels::Auto)?.fingerprint();
    if arguments.json {
        let facts = json!({
            "path": arguments.out.to_string_lossy(),
            "images": {"train": train, "test": test, "validation": validation, "unlabelled": unlabelled},
            "undecodable": failed.iter().map(|(name, reason)| json!({"image": name, "reason": reason})).collect::<Vec<_>>(),
            "bytes": bytes,
            "range": range.to_string(),
            "fingerprint": fingerprint,
            "notes": notes,
        });
        terminal::result(&facts.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let further = [("validation", validation), ("unlabelled", unlabelled)].into_iter();
    let further = further.filter(|(_, images)| *images > 0);
    let further: String = further.map(|(part, images)| format!(", {images} {part} images")).collect();
    let scaled = if range == ValueRange::Full { String::new() } else { format!(", values {range}") };
    terminal::result(&format!(
        "{}  {train} training and {test} test images{further}, {} undecodable, {:.1} MB{scaled}, fingerprint {fingerprint}",
        arguments.out.display(),
        failed.len(),
        bytes as f64 / 1e6,
    ));
    Ok(ExitCode::SUCCESS)
}
