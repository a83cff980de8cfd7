//! Feature extraction: images of a set, read once, to rows of several extractors.

use std::sync::mpsc::sync_channel;

use serde::{Deserialize, Serialize};
use simclr_data::{
    DataError, Dataset, EvalPixels, EvalReader, augment::EvalTransform, error::allowed_failures,
};
use tch::{Device, Kind, Tensor};

use super::frozen_encoder::FrozenEncoder;
use crate::{EvalError, device::to_device};

/// Raw pixels are averaged down to at most this side: 3 x 32 x 32 values stay tractable for a linear classifier.
pub const RAW_SIDE: i64 = 32;

/// Options of reading images.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOptions {
    /// Input transform.
    pub transform: EvalTransform,
    /// Images per forward pass.
    pub batch: usize,
    /// Decoding threads.
    pub threads: usize,
    /// Fraction of images that may fail to decode.
    pub max_bad_share: f64,
    /// Device of the pixels.
    pub device: Device,
}

impl ReadOptions {
    /// As in the run of `frozen`; 0 `threads` = all processors.
    pub fn of(frozen: &FrozenEncoder, batch: usize, threads: usize) -> Self {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            transform: frozen.transform(),
            batch: batch.max(1),
            threads: if threads == 0 { all() } else { threads },
            max_bad_share: frozen.config().data.max_bad_share,
            device: frozen.device(),
        }
    }
}

/// An image that could not be decoded and was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadImage {
    /// Its name in the data set.
    pub name: String,
    /// Message of the decoder.
    pub reason: String,
}

/// Extracted features.
#[derive(Debug)]
pub struct Extracted {
    /// One `[n, ..]` tensor for each extractor.
    pub features: Vec<Tensor>,
    /// Index in the data set of each row.
    pub indices: Vec<usize>,
    /// Undecodable images.
    pub bad: Vec<BadImage>,
}

/// Called with (images done, total).
pub type Progress<'a> = dyn FnMut(usize, usize) + 'a;

/// h of the images `indices`, `[n, F]` `f32`.
///
/// # Errors
/// See [`stream`].
pub fn features(
    frozen: &FrozenEncoder,
    dataset: &Dataset,
    indices: &[usize],
    options: &ReadOptions,
    progress: &mut Progress<'_>,
) -> Result<Extracted, EvalError> {
    extract(dataset, indices, options, &[&|pixels| frozen.forward(pixels)], progress)
}

/// The pixels of the evaluation view, `[n, C * side * side]` `f32`, averaged down to [`RAW_SIDE`] where larger.
///
/// # Errors
/// See [`stream`].
pub fn raw_pixels(
    dataset: &Dataset,
    indices: &[usize],
    options: &ReadOptions,
    progress: &mut Progress<'_>,
) -> Result<Extracted, EvalError> {
    extract(dataset, indices, options, &[&|pixels| Ok(flat_pixels(pixels))], progress)
}

/// C * side * side: width of [`flat_pixels`] for the images of `frozen`.
pub fn pixel_dim(frozen: &FrozenEncoder) -> i64 {
    let side = (frozen.image_size() as i64).min(RAW_SIDE);
    frozen.channels() * side * side
}

/// Pixels `[B, C, S, S]` to rows `[B, C * side * side]`.
pub fn flat_pixels(pixels: &Tensor) -> Tensor {
    let size = pixels.size();
    let side = size[2].min(RAW_SIDE);
    let pooled =
        if side < size[2] { pixels.adaptive_avg_pool2d([side, side]) } else { pixels.shallow_clone() };
    pooled.contiguous().view([size[0], -1]).to_device(Device::Cpu)
}

/// Pixels `[B, C, S, S]` to rows `[B, ..]`.
pub type Extractor<'a> = dyn Fn(&Tensor) -> Result<Tensor, EvalError> + 'a;

/// Reads every image once and passes each batch to all `extractors`.
///
/// # Errors
/// See [`stream`].
pub fn extract(
    dataset: &Dataset,
    indices: &[usize],
    options: &ReadOptions,
    extractors: &[&Extractor<'_>],
    progress: &mut Progress<'_>,
) -> Result<Extracted, EvalError> {
    let mut rows: Vec<Vec<Tensor>> = extractors.iter().map(|_| Vec::new()).collect();
    let mut kept = Vec::with_capacity(indices.len());
    let mut each = |pixels: &Tensor, chunk: &[usize]| {
        kept.extend_from_slice(chunk);
        for (rows, extractor) in rows.iter_mut().zip(extractors) {
            rows.push(extractor(pixels)?);
        }
        Ok(())
    };
    let bad = stream(dataset, indices, options, &mut each, progress)?;
    if kept.is_empty() {
        return Err(EvalError::NoImages);
    }
    Ok(Extracted { features: rows.iter().map(|rows| Tensor::cat(rows, 0)).collect(), indices: kept, bad })
}

/// Called with pixels `[B, C, S, S]` on the device and the indices of the images.
pub type Receiver<'a> = dyn FnMut(&Tensor, &[usize]) -> Result<(), EvalError> + 'a;

/// Decodes `indices` in order, one batch ahead of `each`. Returns the undecodable images.
///
/// # Errors
/// More bad images than allowed, an operating-system error, or an error of `each`.
pub fn stream(
    dataset: &Dataset,
    indices: &[usize],
    options: &ReadOptions,
    each: &mut Receiver<'_>,
    progress: &mut Progress<'_>,
) -> Result<Vec<BadImage>, EvalError> {
    let size = options.transform.size as i64;
    let shape = |rows: usize| [rows as i64, dataset.channels() as i64, size, size];
    let reader = EvalReader::new(dataset, &options.transform, options.threads)?;
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        scope.spawn(move || {
            for chunk in indices.chunks(options.batch) {
                if sender.send(reader.read(chunk)).is_err() {
                    break;
                }
            }
        });
        let (mut done, mut bad) = (0, Vec::new());
        for chunk in receiver {
            let EvalPixels { ids, pixels, failed: unreadable } = chunk;
            done += ids.len() + unreadable.len();
            let named = |(index, reason): (usize, String)| BadImage {
                name: dataset.samples()[index].name.clone(),
                reason,
            };
            bad.extend(unreadable.into_iter().map(named));
            check_bad(&bad, indices.len(), options.max_bad_share)?;
            if !ids.is_empty() {
                each(&to_device(&pixels, shape(ids.len()), options.device)?, &ids)?;
            }
            progress(done, indices.len());
        }
        Ok(bad)
    })
}

pub(crate) fn check_bad(bad: &[BadImage], seen: usize, allowed: f64) -> Result<(), EvalError> {
    match bad.first() {
        Some(first) if bad.len() > allowed_failures(allowed, seen) => {
            let first = first.reason.clone();
            Err(DataError::TooManyBad { bad: bad.len(), seen, allowed, first }.into())
        }
        _ => Ok(()),
    }
}

/// `labels` at `indices`, `[n]` i64.
pub fn label_tensor(labels: &[i64], indices: &[usize]) -> Tensor {
    let picked: Vec<i64> = indices.iter().map(|&index| labels[index]).collect();
    Tensor::from_slice(&picked).to_kind(Kind::Int64)
}
