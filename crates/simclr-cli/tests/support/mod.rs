//! Runs the real binary on image sets that the tests draw.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A folder of `count` 16x16 PNG files in four class folders; stripes differ by class, colours by chance.
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

/// Settings under which a run of 40 images takes well under a second.
pub const SMALL: [&str; 12] = [
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
];

/// The binary, not yet started.
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

/// What a finished process said.
pub struct Said {
    /// Exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs to the end.
pub fn said(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } = command.output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { code: status.code(), out: text(stdout), err: text(stderr) }
}

impl Said {
    /// Exit code 2, exactly one message, which holds every one of `parts`, and no panic.
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

    /// A hint that holds `part`.
    #[track_caller]
    pub fn hints(&self, part: &str) {
        let hint = self.err.lines().find(|line| line.starts_with("hint: ")).unwrap_or_default();
        assert!(hint.contains(part), "expected `{part}` in the hint of {}", self.err);
    }

    /// Exit code 0.
    #[track_caller]
    pub fn succeeds(&self) -> &Self {
        assert_eq!(self.code, Some(0), "stdout {}\nstderr {}", self.out, self.err);
        self
    }
}
