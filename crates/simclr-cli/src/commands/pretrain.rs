//! `simclr pretrain`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use signal_hook::consts::{SIGINT, SIGTERM};
use simclr::{
    RunConfig,
    train::{Observer, Outcome, RunFolder, pretrain},
};

use crate::{args::Pretrain, failure::Failure, report::Terminal};

/// Runs or resumes; a signal ends it after a checkpoint with 128 + its number.
pub fn run(arguments: Pretrain) -> Result<ExitCode, Failure> {
    let (config, folder) = if arguments.resume { resumed(&arguments)? } else { fresh(&arguments)? };
    let data = arguments.data.or_else(|| config.data.path.clone());
    let data = data.ok_or_else(|| {
        Failure::user("no images are named", Some("give a folder of images with --data".into()))
    })?;
    let folder = match folder {
        Where::Existing(folder) => folder,
        Where::New(path) => {
            let path = path.map_or_else(|| free_folder(&data), PathBuf::from);
            // Looked at before the run folder is made, so that a wrong path leaves nothing behind.
            if !data.exists() {
                return Err(Failure::user(format!("`{}`: no such file or folder", data.display()), None));
            }
            RunFolder::create(&path)?
        }
    };
    let (stop, signal) = watch_signals()?;
    let mut terminal = Terminal::new();
    terminal.message(&format!("run folder     {}", folder.path().display()));
    let outcome = pretrain(&config, &data, &folder, &mut terminal, &stop);
    if outcome.is_err() {
        folder.remove_if_unused();
    }
    drop(terminal);
    match outcome? {
        Outcome::Finished => {
            super::print(&folder.path().display().to_string());
            Ok(ExitCode::SUCCESS)
        }
        // 128 + 2 or 15, as a shell reports a process that a signal ended.
        Outcome::Stopped => Ok(ExitCode::from(128 + signal.load(Ordering::Relaxed) as u8)),
    }
}

enum Where {
    Existing(RunFolder),
    New(Option<PathBuf>),
}

fn fresh(arguments: &Pretrain) -> Result<(RunConfig, Where), Failure> {
    let config = RunConfig::load(arguments.config.config.as_deref(), &arguments.overrides())?;
    Ok((config, Where::New(arguments.run.clone())))
}

/// The configuration of a resumed run is its own; flags may still override what does not touch the computation.
fn resumed(arguments: &Pretrain) -> Result<(RunConfig, Where), Failure> {
    let path = arguments.run.as_deref().unwrap_or(Path::new("."));
    let folder = RunFolder::open(path)?;
    let config = RunConfig::load(Some(&folder.config_file()), &arguments.overrides())?;
    Ok((config, Where::Existing(folder)))
}

/// `runs/<name>-<n>`, the first that is free.
fn free_folder(data: &Path) -> PathBuf {
    let name = data.file_stem().unwrap_or_default().to_string_lossy();
    let name = if name.is_empty() { "run".into() } else { name };
    (1..)
        .map(|n| Path::new("runs").join(format!("{name}-{n}")))
        .find(|path| !path.exists())
        .unwrap_or_default()
}

/// The first SIGINT or SIGTERM asks the run to stop; a second one kills as usual.
pub fn watch_signals() -> Result<(Arc<AtomicBool>, Arc<AtomicUsize>), Failure> {
    let (stop, signal) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    for number in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(number, Arc::clone(&stop))?;
        signal_hook::flag::register(number, Arc::clone(&stop))?;
        signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize)?;
    }
    Ok((stop, signal))
}
