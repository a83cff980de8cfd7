//! `simclr pretrain`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use simclr::{
    RunConfig, TrainError,
    config::Written,
    data::dataset::canonical,
    dist::{ProcessGroup, all_ok},
    train::{Observer, Outcome, RunFolder, SessionEvent, Silent, fit, may_change},
};

use super::data_path;
use crate::{
    args::{Log, Pretrain, Resume},
    failure::Failure,
    json_log::JsonLog,
    processes,
    report::Terminal,
    terminal,
};

/// Starts or resumes a run, on all processes. A signal ends it after a checkpoint, with exit code 128 + number of the signal.
pub fn run(arguments: Pretrain, group: &ProcessGroup) -> Result<ExitCode, Failure> {
    // Only rank 0 needs access to the configuration file and the run folder.
    let (own, broadcast) =
        processes::broadcast_from_root(group, || RunSpec::new(&arguments), RunSpec::to_json)?;
    let RunSpec { config, written, data, folder } = own.map_or_else(|| RunSpec::from_json(&broadcast), Ok)?;
    let (stop, signal) = watch_signals()?;
    let log = arguments.log;
    let mut observer: Box<dyn Observer> = match (group.is_first(), log) {
        (true, Log::Text) => Box::new(Terminal::new()),
        (true, Log::Json) => Box::new(JsonLog::default()),
        (false, _) => Box::new(Silent),
    };
    observer.message(&format!("run folder     {}", folder.path().display()));
    let outcome = start_session(group, &folder)
        .and_then(|()| fit(group, (&config, &written), &data, &folder, &mut *observer, &stop));
    drop(observer);
    if group.is_first() {
        end_session(&folder, &outcome);
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
                terminal::message(&format!("stopped; to resume: {}", resume_command(folder.path())));
            }
            // 128 + the number, as in shells. The signal may have been sent to another rank.
            let signals = group.all_gather_bytes(&[signal.load(Ordering::Relaxed) as u8]);
            Ok(ExitCode::from(128 + signals.into_iter().flatten().max().unwrap_or_default()))
        }
    }
}

/// Commit that the program was built from; empty where git or its folder is missing, `None` by `cargo build` alone.
const COMMIT: Option<&str> = option_env!("SIMCLR_COMMIT");

fn start_session(group: &ProcessGroup, folder: &RunFolder) -> Result<(), TrainError> {
    let recorded = if group.is_first() {
        let command = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let (version, processes) = (env!("CARGO_PKG_VERSION"), group.count());
        let commit = COMMIT.filter(|commit| !commit.is_empty());
        folder.record_session(&SessionEvent::Start { command, version, commit, processes })
    } else {
        Ok(())
    };
    all_ok(group, recorded)
}

/// Records the end, or removes a folder in which no run was started.
fn end_session(folder: &RunFolder, outcome: &Result<Outcome, TrainError>) {
    if outcome.is_err() && !RunFolder::is_run(folder.path()) {
        return folder.remove_if_unused();
    }
    let outcome = match outcome {
        Ok(Outcome::Finished) => "finished".to_owned(),
        Ok(Outcome::Stopped) => "stopped".to_owned(),
        Err(error) => error.to_string(),
    };
    if let Err(error) = folder.record_session(&SessionEvent::End { outcome: &outcome }) {
        terminal::message(&format!("the end of the run is not recorded: {error}"));
    }
}

/// The shell command that resumes the run in `folder`.
fn resume_command(folder: &Path) -> String {
    let path = folder.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    let path = if path.chars().all(is_plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) };
    format!("simclr pretrain --resume --run {path}")
}

/// Configuration, data and folder of a run.
struct RunSpec {
    config: RunConfig,
    /// Keys that the user has set; rank 0 chooses the others.
    written: Written,
    data: PathBuf,
    folder: RunFolder,
}

impl RunSpec {
    fn new(arguments: &Pretrain) -> Result<Self, Failure> {
        let exists = arguments.run.as_deref().is_some_and(RunFolder::is_run);
        let (config, written, existing) = match arguments.resume {
            Some(Resume::Existing) => resumed(arguments)?,
            Some(Resume::Auto) if exists => continued(arguments)?,
            Some(Resume::Auto) | None => fresh(arguments)?,
        };
        let data = data_path(&arguments.data)?.or_else(|| config.data.path.clone());
        let data = data.ok_or_else(|| {
            Failure::user("no images are named", Some("give a folder of images with --data".into()))
        })?;
        // The path that is recorded; one that does not exist is reported below, or on resuming.
        let recorded = canonical(&data);
        let paths = [Some(&data), recorded.as_ref().ok(), arguments.run.as_ref()];
        paths.into_iter().flatten().try_for_each(|path| check_text(path))?;
        let folder = match existing {
            Some(folder) => {
                folder.hold()?;
                folder
            }
            None => {
                // Checked before the run folder is created, so that a wrong path leaves nothing behind.
                recorded?;
                arguments.run.as_deref().map_or_else(|| free_folder(&data), RunFolder::create)?
            }
        };
        Ok(Self { config, written, data, folder })
    }

    fn to_json(&self) -> String {
        serde_json::json!([self.config.to_toml(), self.data, self.folder.path()]).to_string()
    }

    fn from_json(text: &str) -> Result<Self, Failure> {
        let (config, data, folder): (String, PathBuf, PathBuf) =
            serde_json::from_str(text).map_err(|error| Failure::user(error.to_string(), None))?;
        let folder = RunFolder::of_another_process(&folder);
        let (config, written) = (RunConfig::of_toml(&config)?, Written::EVERYTHING);
        Ok(Self { config, written, data, folder })
    }
}

/// A run records its paths in texts, and its processes exchange them.
fn check_text(path: &Path) -> Result<(), Failure> {
    if path.to_str().is_some() {
        return Ok(());
    }
    let message =
        format!("`{}`: expected a path in UTF-8 for the images and the folder of a run", path.display());
    Err(Failure::user(message, Some("rename the files or folders with such names".into())))
}

type Loaded = (RunConfig, Written, Option<RunFolder>);

fn fresh(arguments: &Pretrain) -> Result<Loaded, Failure> {
    let (config, written) = arguments.load()?;
    Ok((config, written, None))
}

/// A resumed run has the configuration in its folder, with all keys chosen at its start. Flags may override keys that do not
/// affect the computation.
fn resumed(arguments: &Pretrain) -> Result<Loaded, Failure> {
    let path = arguments.run.as_deref().unwrap_or(Path::new("."));
    let folder = RunFolder::open(path)?;
    let config = arguments.load_resumed(&folder.config_file())?;
    Ok((config, Written::EVERYTHING, Some(folder)))
}

/// Resumes a run by the command line that started it: refused if another result would be expected of it.
fn continued(arguments: &Pretrain) -> Result<Loaded, Failure> {
    let path = arguments.run.as_deref().unwrap_or(Path::new("."));
    let folder = RunFolder::open(path)?;
    let (_, written) = arguments.load()?;
    let before = folder.written()?.unwrap_or_else(|| written.clone());
    let (free, fixed): (Vec<_>, Vec<_>) =
        written.changes_since(&before).into_iter().partition(|change| may_change(&change.key));
    if !fixed.is_empty() {
        let changes: Vec<String> = fixed.iter().map(ToString::to_string).collect();
        let message = format!("`{}` was started with other settings: {}", path.display(), changes.join("; "));
        let hint =
            "repeat the settings of its start, or resume it with those of the run by `--resume` without auto";
        return Err(Failure::user(message, Some(hint.into())));
    }
    let overrides: Vec<String> =
        free.into_iter().filter_map(|change| Some(format!("{}={}", change.key, change.is?))).collect();
    let config = RunConfig::load_run(&folder.config_file(), &overrides)?.0;
    Ok((config, Written::EVERYTHING, Some(folder)))
}

/// Creates the first free folder `runs/<name>-<n>`; retries if another process creates it at the same time.
fn free_folder(data: &Path) -> Result<RunFolder, TrainError> {
    let name = data.file_stem().unwrap_or_default().to_string_lossy();
    // The name of a pattern is not a usable file name.
    let name = if name.is_empty() || name.contains(['{', '}']) { "run".into() } else { name };
    let mut free = (1..).map(|n| Path::new("runs").join(format!("{name}-{n}"))).filter(|path| !path.exists());
    loop {
        let path = free.next().unwrap_or_default();
        match RunFolder::create(&path) {
            Err(TrainError::InUse { .. } | TrainError::RunExists { .. }) => {}
            created => return created,
        }
    }
}

/// Signals that end a command after a checkpoint: of a user, of a batch system before the end of its time limit, and of a closed
/// terminal.
const ENDING: [i32; 6] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];

/// Those of [`ENDING`] that are not ignored, as SIGHUP is under nohup.
pub fn ending_signals() -> impl Iterator<Item = i32> {
    let ignored = ignored_signals();
    ENDING.into_iter().filter(move |number| ignored >> (number - 1) & 1 == 0)
}

/// A flag that the first of the [`ending_signals`] sets, and the number of the signal. A second signal kills the process.
pub fn watch_signals() -> Result<(Arc<AtomicBool>, Arc<AtomicUsize>), Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let signal = Arc::new(AtomicUsize::new(0));
    for number in ending_signals() {
        signal_hook::flag::register_conditional_default(number, Arc::clone(&stop))?;
        signal_hook::flag::register(number, Arc::clone(&stop))?;
        signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize)?;
    }
    Ok((stop, signal))
}

/// The signals that this process ignores, bit n - 1 for signal n (proc(5), `SigIgn`); none where there is no `/proc`.
fn ignored_signals() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or_default()
}
