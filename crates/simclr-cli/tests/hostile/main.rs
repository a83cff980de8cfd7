//! Invalid, damaged and hostile inputs: each gives one clear message and exit code 2, and loses no data.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod configurations;
mod data_sets;
#[cfg(unix)]
mod file_system;
mod images;
#[path = "../support/mod.rs"]
mod support;

use fs_err as fs;
use std::path::{Path, PathBuf};

use support::{execute, image_folder, pretrain, stripes};

struct Place {
    temp: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { temp: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// 40 valid images.
    fn images(&self) -> PathBuf {
        image_folder(&self.path("images"), 40)
    }

    /// Adds a file to 40 valid images; a run must name and skip it.
    #[track_caller]
    fn is_skipped(&self, name: &str, bytes: &[u8], reason: &str) {
        let data = self.images();
        let file = data.join("class-0").join(name);
        fs::write(&file, bytes).unwrap();
        let more = ["--set", "data.max_bad_share=0.1", "--batch", "41", "--epochs", "1"];
        let output = execute(&mut pretrain(&data, &self.path("run"), &more));
        output.succeeds();
        let skipped: Vec<_> = output.err.lines().filter(|line| line.starts_with("skipped: ")).collect();
        assert_eq!(skipped.len(), 1, "{}", output.err);
        assert!(skipped[0].contains(name) && skipped[0].contains(reason), "{}", skipped[0]);
        let list = fs::read_to_string(self.path("run/bad_files.txt")).unwrap();
        assert!(list.starts_with(&format!("class-0/{name}\t")), "{list}");
        assert_eq!(fs::read(&file).unwrap(), bytes, "the file itself is untouched");
    }
}

fn jpeg() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    stripes(1, 1).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

fn png() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    stripes(1, 1).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}
