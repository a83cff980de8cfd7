//! CIFAR-10 and CIFAR-100 binary files: records of one label byte (CIFAR-100: coarse, then fine) and three 32x32 planes.

use std::path::{Path, PathBuf};

use super::{Opened, Sample, Split, identity::FileState, raw::Raw};
use crate::DataError;

const SIDE: usize = 32;
const PIXELS: usize = 3 * SIDE * SIDE;

/// By the names of `.bin` files.
pub fn is_cifar(files: &[PathBuf]) -> bool {
    files.iter().any(|file| is_train(file) || is_test(file))
}

pub fn has_test(files: &[PathBuf]) -> bool {
    files.iter().any(|file| is_test(file))
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_train(file: &Path) -> bool {
    stem(file).starts_with("data_batch_") || stem(file) == "train"
}

fn is_test(file: &Path) -> bool {
    stem(file) == "test_batch" || stem(file) == "test"
}

pub fn open(path: &Path, files: &[PathBuf], split: Split) -> Result<Opened, DataError> {
    let hundred = files.iter().any(|file| ["train", "test"].contains(&stem(file).as_str()));
    let label_bytes = if hundred { 2 } else { 1 };
    let wanted = files.iter().filter(|file| match split {
        Split::Train => is_train(file),
        Split::Test => is_test(file),
        Split::Validation | Split::Unlabelled => false,
    });
    let mut samples = Vec::new();
    let mut pixels = Vec::new();
    let mut states = Vec::new();
    for file in wanted {
        let state = FileState::of(file);
        let bytes = fs_err::read(file)?;
        if bytes.is_empty() || bytes.len() % (label_bytes + PIXELS) != 0 {
            let reason =
                format!("{} bytes are no whole number of {}-byte records", bytes.len(), label_bytes + PIXELS);
            return Err(DataError::format(file, reason));
        }
        for (index, record) in bytes.chunks_exact(label_bytes + PIXELS).enumerate() {
            let label = Some(u32::from(record[label_bytes - 1]));
            samples.push(Sample { name: format!("{}/{index:05}", stem(file)), label });
            pixels.extend_from_slice(&record[label_bytes..]);
        }
        states.push((samples.len(), state));
    }
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let classes = class_names(folder, if hundred { 100 } else { 10 });
    let out_of_range =
        samples.iter().find(|sample| sample.label.is_some_and(|label| label as usize >= classes.len()));
    if let Some(sample) = out_of_range {
        let reason =
            format!("`{}` has label {:?}, expected below {}", sample.name, sample.label, classes.len());
        return Err(DataError::format(path, reason));
    }
    let source =
        Raw { width: SIDE, height: SIDE, channels: 3, planar: true, pixels: pixels.into(), files: states };
    Ok(Opened::new(samples, classes, Box::new(source)))
}

/// Names from the text file of the published set, else numbers.
fn class_names(folder: &Path, count: usize) -> Vec<String> {
    let file = folder.join(if count == 10 { "batches.meta.txt" } else { "fine_label_names.txt" });
    let text = fs_err::read_to_string(file).unwrap_or_default();
    let names: Vec<_> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if names.len() == count { names } else { (0..count).map(|class| class.to_string()).collect() }
}
