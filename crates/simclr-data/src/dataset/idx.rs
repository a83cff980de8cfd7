//! IDX files as MNIST introduced them (`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...`), plain or
//! gzipped. Header: two zero bytes, type 8 (unsigned byte), number of dimensions, then each dimension big-endian.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;

use super::{Opened, Sample, Split, raw::Raw};
use crate::DataError;

/// The images file of the split, if this is an IDX set.
pub fn find(files: &[PathBuf], split: Split) -> Option<PathBuf> {
    let images: Vec<_> = files.iter().filter(|file| name(file).contains("images-idx3-ubyte")).collect();
    let prefix = match split {
        Split::Train => "train",
        Split::Test => "t10k",
    };
    let ours = images.iter().find(|file| name(file).starts_with(prefix));
    // A lone file of another name is a training set.
    let lone = (images.len() == 1 && split == Split::Train).then(|| images[0]);
    ours.copied().or(lone).cloned()
}

pub fn open(images: &Path) -> Result<Opened, DataError> {
    let (shape, pixels) = read(images)?;
    let [count, height, width] = shape[..] else {
        return Err(wrong(images, format!("expected 3 dimensions, found {}", shape.len())));
    };
    let labels_file = images.with_file_name(name(images).replace("images-idx3", "labels-idx1"));
    let labels = labels_file.exists().then(|| read_labels(&labels_file, count)).transpose()?;
    let classes = labels.iter().flatten().max().map_or(0, |&most| usize::from(most) + 1);
    let stem = name(images);
    let stem = stem.split("images-idx3").next().unwrap_or_default();
    let sample = |index: usize| Sample {
        name: format!("{stem}{index:05}"),
        label: labels.as_ref().map(|labels| u32::from(labels[index])),
    };
    Ok(Opened {
        samples: (0..count).map(sample).collect(),
        classes: (0..classes).map(|class| class.to_string()).collect(),
        source: Box::new(Raw { width, height, channels: 1, planar: false, pixels }),
    })
}

fn read_labels(path: &Path, count: usize) -> Result<Vec<u8>, DataError> {
    let (shape, labels) = read(path)?;
    if shape != [count] {
        return Err(wrong(path, format!("expected {count} labels, one per image, found dimensions {shape:?}")));
    }
    Ok(labels)
}

/// Dimensions and bytes of an IDX file of unsigned bytes.
fn read(path: &Path) -> Result<(Vec<usize>, Vec<u8>), DataError> {
    let mut bytes = fs_err::read(path)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        let unpacked = GzDecoder::new(&bytes[..]).read_to_end(&mut plain);
        unpacked.map_err(|error| wrong(path, format!("damaged gzip stream: {error}")))?;
        bytes = plain;
    }
    let [0, 0, 8, dimensions, ..] = bytes[..] else {
        return Err(wrong(path, "not an IDX file of unsigned bytes".into()));
    };
    let header = 4 + 4 * usize::from(dimensions);
    let sizes = bytes.get(4..header).ok_or_else(|| wrong(path, "the header is cut".into()))?;
    let sizes = sizes.chunks_exact(4).map(|size| u32::from_be_bytes([size[0], size[1], size[2], size[3]]) as usize);
    let shape: Vec<usize> = sizes.collect();
    let promised = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let found = bytes.len() - header;
    if promised != Some(found) || found == 0 {
        return Err(wrong(path, format!("the header promises {shape:?} bytes, the file holds {found}")));
    }
    bytes.drain(..header);
    Ok((shape, bytes))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn wrong(path: &Path, reason: String) -> DataError {
    DataError::Format { path: path.to_owned(), reason }
}
