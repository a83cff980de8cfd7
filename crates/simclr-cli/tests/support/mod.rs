//! Runs the real binary on generated image sets.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

/// A folder of `count` 16x16 PNG files in four class folders, with stripes by class and pseudo-random colours.
pub fn image_folder(data: &Path, count: usize) -> PathBuf {
    for index in 0..count {
        let class = index % 4;
        let folder = data.join(format!("class-{class}"));
        fs_err::create_dir_all(&folder).unwrap();
        stripes(index, class).save(folder.join(format!("{index:04}.png"))).unwrap();
    }
    data.to_owned()
}

/// One image of the set.
pub fn stripes(index: usize, class: usize) -> image::RgbImage {
    let color = |salt: usize| (((index + 1) * (salt + 3) * 2_654_435_761) >> 7) as u8;
    image::RgbImage::from_fn(16, 16, |x, y| {
        let (x, y) = (x as usize, y as usize);
        let along = [x, y, x + y, x + 16 - y][class];
        let on = usize::from((along + index) % 8 < 4);
        image::Rgb([color(3 * on), color(1 + 3 * on), color(2 + 3 * on)])
    })
}

/// A TIFF file of 16x16 pages of one grey level each, little-endian, uncompressed.
pub fn stack(levels: &[u8]) -> Vec<u8> {
    const ENTRIES: u32 = 8;
    let directory = 2 + 12 * ENTRIES + 4;
    let mut bytes = [&b"II*\0"[..], &8u32.to_le_bytes()].concat();
    for (page, &level) in levels.iter().enumerate() {
        let pixels = bytes.len() as u32 + directory;
        let next = if page + 1 < levels.len() { pixels + 256 } else { 0 };
        let tags = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (273, pixels), (278, 16), (279, 256)];
        bytes.extend((ENTRIES as u16).to_le_bytes());
        for (tag, value) in tags {
            bytes.extend([tag as u16, 4].map(u16::to_le_bytes).concat());
            bytes.extend([1, value].map(u32::to_le_bytes).concat());
        }
        bytes.extend(next.to_le_bytes());
        bytes.extend([level; 256]);
    }
    bytes
}

/// Settings under which a run of 40 images takes well under a second.
pub const SMALL: [&str; 15] = [
    "encoder.name=conv-c3",
    "encoder.width=0.25",
    "head.hidden=16",
    "head.out=16",
    "train.image_size=16",
    "train.batch=16",
    "train.epochs=2",
    "train.threads=1",
    "train.precision=f32",
    "optim.kind=adamw",
    "optim.lr=1e-3",
    "optim.warmup_epochs=0",
    // Written, so that they are not chosen by the image size. With those choices the gradients of the striped images of these tests
    // depend on rounding (2e-2 between one process and two), those of CIFAR-10 do not (2e-6).
    "augment.color=1",
    "augment.blur=0.5",
    "loss.temperature=0.1",
];

/// A command of the binary.
pub fn simclr(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simclr"));
    command.args(arguments).env("NO_COLOR", "1");
    command
}

/// `simclr pretrain` with the small settings.
pub fn pretrain(data: &Path, run: &Path, more: &[&str]) -> Command {
    let mut command = simclr(&["pretrain", "--data"]);
    command.arg(data).arg("--run").arg(run);
    for setting in SMALL {
        command.args(["--set", setting]);
    }
    command.args(more);
    command
}

/// What starts several processes and connects them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// `simclr launch`: c10d's store and Gloo.
    Gloo,
    /// mpirun.
    Mpi,
}

/// The launchers of this build.
pub const LAUNCHERS: &[Launcher] =
    if cfg!(feature = "mpi") { &[Launcher::Gloo, Launcher::Mpi] } else { &[Launcher::Gloo] };

impl Launcher {
    /// `command`, which is one of the binary, as several processes.
    pub fn start(self, processes: usize, command: &mut Command) -> Command {
        let mut launcher = match self {
            Self::Gloo => simclr(&["launch", "-n", &processes.to_string()]),
            Self::Mpi => {
                let mut mpirun = Command::new("mpirun");
                mpirun.args(["--oversubscribe", "--bind-to", "none", "-n", &processes.to_string()]);
                mpirun.arg(command.get_program());
                // Tests run as root in containers, which mpirun requires two variables for.
                mpirun.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
                mpirun
            }
        };
        launcher.args(command.get_args()).env("NO_COLOR", "1");
        launcher
    }

    /// Environment variable that holds the rank of a process.
    pub fn rank_variable(self) -> &'static str {
        if self == Self::Gloo { "RANK" } else { "OMPI_COMM_WORLD_RANK" }
    }
}

/// The newest checkpoint of a run.
pub fn newest_checkpoint(run: &Path) -> Option<PathBuf> {
    let folder = fs_err::read_dir(run.join("checkpoints")).ok()?;
    let mut files: Vec<_> = folder.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.retain(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')));
    files.sort();
    files.pop()
}

/// 12 of `step-000000012.safetensors`.
pub fn step_of(checkpoint: &Path) -> u64 {
    let name = checkpoint.file_stem().unwrap().to_string_lossy().into_owned();
    name.trim_start_matches("step-").parse().unwrap()
}

/// Waits, for at most a minute, until a run has a checkpoint of `step` or a later one.
pub fn wait_for_step(run: &Path, step: u64) {
    let begin = Instant::now();
    while newest_checkpoint(run).is_none_or(|path| step_of(&path) < step) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint of step {step} within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for a process with piped outputs; kills it and panics after the time `within`.
#[track_caller]
pub fn finished(mut child: Child, within: Duration) -> Finished {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > within {
            child.kill().unwrap();
            let output = Finished::of(&child.wait_with_output().unwrap());
            panic!("still running after {within:?}: stdout {}\nstderr {}", output.out, output.err);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Finished::of(&child.wait_with_output().unwrap())
}

/// Exit code and outputs of a process.
pub struct Finished {
    /// Exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs `command` to the end.
pub fn execute(command: &mut Command) -> Finished {
    Finished::of(&command.output().expect("the binary starts"))
}

impl Finished {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Expects exit code 2 and exactly one error message, which contains all `parts`.
    #[track_caller]
    pub fn refuses(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(2), "stdout {}\nstderr {}", self.out, self.err);
        let messages: Vec<_> = self.err.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(messages.len(), 1, "{}", self.err);
        for part in parts {
            assert!(messages[0].contains(part), "expected `{part}` in `{}`", messages[0]);
        }
        assert!(!self.err.contains("panicked") && !self.err.contains("internal error"), "{}", self.err);
    }

    /// Expects a hint that contains `part`.
    #[track_caller]
    pub fn hints(&self, part: &str) {
        let hint = self.err.lines().find(|line| line.starts_with("hint: ")).unwrap_or_default();
        assert!(hint.contains(part), "expected `{part}` in the hint of {}", self.err);
    }

    /// Expects exit code 0.
    #[track_caller]
    pub fn succeeds(&self) -> &Self {
        assert_eq!(self.code, Some(0), "stdout {}\nstderr {}", self.out, self.err);
        self
    }
}
