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
    RunConfig, TrainError,
    config::Written,
    data::dataset::canonical,
    dist::ProcessGroup,
    train::{Observer, Outcome, RunFolder, Silent, fit},
};

use super::data_path;
use crate::{args::Pretrain, failure::Failure, processes, report::Terminal, terminal};

/// Runs or resumes, on every process alike; a signal ends it after a checkpoint with 128 + its number.
pub fn run(arguments: Pretrain, group: &ProcessGroup) -> Result<ExitCode, Failure> {
    // Rank 0 decides; the other processes need neither the configuration's file nor the run's folder.
    let (own, told) = processes::broadcast_from_root(group, || decide(&arguments), Decided::to_json)?;
    let Decided { config, written, data, folder } = own.map_or_else(|| Decided::of_json(&told), Ok)?;
    let (stop, signal) = watch_signals()?;
    let outcome = if group.is_first() {
        let mut terminal = Terminal::new();
        terminal.message(&format!("run folder     {}", folder.path().display()));
        fit(group, (&config, &written), &data, &folder, &mut terminal, &stop)
    } else {
        fit(group, (&config, &written), &data, &folder, &mut Silent, &stop)
    };
    if outcome.is_err() && group.is_first() {
        folder.remove_if_unused();
    }
    match outcome? {
        Outcome::Finished => {
            if group.is_first() {
                terminal::result(&folder.path().display().to_string());
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped => {
            if group.is_first() {
                terminal::message(&format!("stopped; to go on: {}", resuming(folder.path())));
            }
            // 128 + 2 or 15, as a shell reports a process that a signal ended; it may have come to another rank only.
            let signals = group.all_gather_bytes(&[signal.load(Ordering::Relaxed) as u8]);
            Ok(ExitCode::from(128 + signals.into_iter().flatten().max().unwrap_or_default()))
        }
    }
}

/// The command that goes on with the run in `folder`, for a shell.
fn resuming(folder: &Path) -> String {
    let path = folder.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    // Between single quotes a shell takes everything as it is but a single quote.
    let path = if path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) };
    format!("simclr pretrain --resume --run {path}")
}

/// What is run, and where.
struct Decided {
    config: RunConfig,
    /// Of rank 0, which chooses the rest for all.
    written: Written,
    data: PathBuf,
    folder: RunFolder,
}

fn decide(arguments: &Pretrain) -> Result<Decided, Failure> {
    let (config, written, folder) = if arguments.resume { resumed(arguments)? } else { fresh(arguments)? };
    let data = data_path(&arguments.data)?.or_else(|| config.data.path.clone());
    let data = data.ok_or_else(|| {
        Failure::user("no images are named", Some("give a folder of images with --data".into()))
    })?;
    let folder = match folder {
        Where::Existing(folder) => {
            folder.hold()?;
            folder
        }
        Where::New(path) => {
            // Looked at before the run folder is made, so that a wrong path leaves nothing behind.
            canonical(&data)?;
            path.map_or_else(|| free_folder(&data), |path| RunFolder::create(&path))?
        }
    };
    Ok(Decided { config, written, data, folder })
}

impl Decided {
    fn to_json(&self) -> String {
        serde_json::json!([self.config.to_toml(), self.data, self.folder.path()]).to_string()
    }

    fn of_json(text: &str) -> Result<Self, Failure> {
        let (config, data, folder): (String, PathBuf, PathBuf) =
            serde_json::from_str(text).map_err(|error| Failure::user(error.to_string(), None))?;
        let folder = RunFolder::of_another_process(&folder);
        let (config, written) = (RunConfig::of_toml(&config)?, Written::EVERYTHING);
        Ok(Self { config, written, data, folder })
    }
}

enum Where {
    Existing(RunFolder),
    New(Option<PathBuf>),
}

fn fresh(arguments: &Pretrain) -> Result<(RunConfig, Written, Where), Failure> {
    let file = arguments.config.config.as_deref();
    let (config, written) = RunConfig::load_written(file, &arguments.overrides())?;
    Ok((config, written, Where::New(arguments.run.clone())))
}

/// The configuration of a resumed run is its own, with all that was chosen at its start; flags may still override what does not
/// touch the computation.
fn resumed(arguments: &Pretrain) -> Result<(RunConfig, Written, Where), Failure> {
    let path = arguments.run.as_deref().unwrap_or(Path::new("."));
    let folder = RunFolder::open(path)?;
    let (config, _) = RunConfig::load_run(&folder.config_file(), &arguments.overrides())?;
    Ok((config, Written::EVERYTHING, Where::Existing(folder)))
}

/// `runs/<name>-<n>`, the first that is free and that no other process takes at the same moment.
fn free_folder(data: &Path) -> Result<RunFolder, TrainError> {
    let name = data.file_stem().unwrap_or_default().to_string_lossy();
    // A pattern for several paths is no name.
    let name = if name.is_empty() || name.contains(['{', '}']) { "run".into() } else { name };
    let mut free = (1..).map(|n| Path::new("runs").join(format!("{name}-{n}"))).filter(|path| !path.exists());
    loop {
        let path = free.next().unwrap_or_default();
        match RunFolder::create(&path) {
            Err(TrainError::InUse { .. } | TrainError::RunFolder { .. }) => {}
            created => return created,
        }
    }
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
