//! IDX files of MNIST and its successors (`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...`), plain or gzipped.
//! Header: two zero bytes, type 8 (unsigned byte), number of dimensions, then the dimensions, big-endian.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;

use super::{Opened, Sample, Split, identity::FileState, raw::Raw};
use crate::DataError;

/// Maximal unpacked size, against gzip bombs; the largest published set (EMNIST) has 0.6 GB.
const MAX_BYTES: usize = 1 << 34;

/// By the names of files.
pub fn is_idx(files: &[PathBuf]) -> bool {
    files.iter().any(|file| is_images(file))
}

fn is_images(file: &Path) -> bool {
    name(file).contains("images-idx3-ubyte")
}

/// The images file of the split; a single file of any name is the training split.
pub fn find(files: &[PathBuf], split: Split) -> Option<&PathBuf> {
    let images: Vec<_> = files.iter().filter(|file| is_images(file)).collect();
    let is_test = |file: &Path| name(file).starts_with("t10k") || name(file).starts_with("test");
    match split {
        Split::Test if images.len() > 1 => images.into_iter().find(|file| is_test(file)),
        Split::Test | Split::Validation | Split::Unlabelled => None,
        Split::Train if images.len() == 1 => Some(images[0]),
        Split::Train => images.into_iter().find(|file| name(file).starts_with("train")),
    }
}

pub fn open(files: &[PathBuf], split: Split) -> Result<Opened, DataError> {
    let Some(images) = find(files, split) else {
        return Ok(Opened::none());
    };
    let state = FileState::of(images);
    let (shape, pixels) = read(images)?;
    let [count, height, width] = shape[..] else {
        return Err(DataError::format(images, format!("expected 3 dimensions, found {}", shape.len())));
    };
    let labels = labels_file(images).map(|file| read_labels(&file, count)).transpose()?;
    let classes = if labels.is_some() { class_count(files) } else { 0 };
    let stem = name(images);
    let stem = stem.split("images-idx3").next().unwrap_or_default();
    let sample = |index: usize| Sample {
        name: format!("{stem}{index:05}"),
        label: labels.as_ref().map(|labels| u32::from(labels[index])),
    };
    let files = vec![(count, state)];
    let source = Raw { width, height, channels: 1, planar: false, pixels: pixels.into(), files };
    let samples = (0..count).map(sample).collect();
    let classes = (0..classes).map(|class| class.to_string()).collect();
    Ok(Opened::new(samples, classes, Box::new(source)))
}

/// Over both splits, which must number the classes alike. A damaged labels file is reported when its split is opened.
fn class_count(files: &[PathBuf]) -> usize {
    let labels = [Split::Train, Split::Test].iter().filter_map(|&split| labels_file(find(files, split)?));
    let largest = labels.filter_map(|file| read(&file).ok()?.1.into_iter().max()).max();
    largest.map_or(0, |label| usize::from(label) + 1)
}

fn read_labels(path: &Path, count: usize) -> Result<Vec<u8>, DataError> {
    let (shape, labels) = read(path)?;
    if shape != [count] {
        return Err(DataError::format(
            path,
            format!("expected {count} labels, one per image, found dimensions {shape:?}"),
        ));
    }
    Ok(labels)
}

/// The labels file of an images file, gzipped or not.
fn labels_file(images: &Path) -> Option<PathBuf> {
    let labels = name(images).replace("images-idx3", "labels-idx1");
    let plain = labels.trim_end_matches(".gz");
    [labels.clone(), plain.to_owned(), format!("{plain}.gz")]
        .into_iter()
        .map(|name| images.with_file_name(name))
        .find(|file| file.exists())
}

/// Dimensions and bytes of an IDX file of unsigned bytes.
fn read(path: &Path) -> Result<(Vec<usize>, Vec<u8>), DataError> {
    let bytes = fs_err::read(path)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        parse(path, GzDecoder::new(&bytes[..]))
    } else {
        parse(path, &bytes[..])
    }
}

fn parse(path: &Path, mut stream: impl Read) -> Result<(Vec<usize>, Vec<u8>), DataError> {
    let damaged = |error: std::io::Error| DataError::format(path, format!("damaged IDX file: {error}"));
    let mut magic = [0; 4];
    stream.read_exact(&mut magic).map_err(damaged)?;
    let [0, 0, 8, dimensions] = magic else {
        return Err(DataError::format(path, "not an IDX file of unsigned bytes"));
    };
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let mut size = [0; 4];
        stream.read_exact(&mut size).map_err(damaged)?;
        shape.push(u32::from_be_bytes(size) as usize);
    }
    let promised = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let Some(promised) = promised.filter(|&bytes| bytes > 0 && bytes <= MAX_BYTES) else {
        return Err(DataError::format(
            path,
            format!("the header declares {shape:?} bytes, expected 1 to {MAX_BYTES}"),
        ));
    };
    let mut pixels = Vec::new();
    stream.take(promised as u64 + 1).read_to_end(&mut pixels).map_err(damaged)?;
    if pixels.len() != promised {
        let found = if pixels.len() > promised { "more".into() } else { pixels.len().to_string() };
        return Err(DataError::format(
            path,
            format!("the header declares {shape:?} bytes, the file holds {found}"),
        ));
    }
    Ok((shape, pixels))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
