//! Features of several encoders, extracted in pieces that are cached in the run folder until all figures that depend on them
//! are computed: extraction takes hours for large sets on a CPU, and may be interrupted.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};
use simclr_data::{Dataset, augment::EvalTransform};
use tch::{Kind, Tensor};

use super::{
    extract::{BadImage, Extracted, Extractor, ReadOptions, check_bad, extract, flat_pixels},
    frozen_encoder::FrozenEncoder,
};
use crate::{
    EvalError,
    checkpoint::Checkpoint,
    eval::{data::identity, layer::Layer},
    train::{Observer, RunFolder},
};

/// Images of a piece, at most.
const PIECE: usize = 8192;

/// Extracts parts of sets for one evaluation.
pub(crate) struct FeatureCache<'a> {
    run: &'a RunFolder,
    folder: PathBuf,
    options: ReadOptions,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
}

/// The images `indices` of a set.
pub(crate) struct Part<'a> {
    /// Shown with the progress.
    pub(crate) name: &'a str,
    pub(crate) set: &'a Dataset,
    pub(crate) indices: &'a [usize],
}

/// Columns of the extracted features: `layers` of each encoder, concatenated, then the raw pixels if requested.
pub(crate) struct Columns<'a> {
    pub(crate) encoders: &'a [&'a FrozenEncoder],
    pub(crate) layers: &'a [Layer],
    pub(crate) pixels: bool,
}

/// A cached range of images.
struct Piece {
    file: PathBuf,
    /// Set, encoders, transform and layers of the features.
    key: Value,
    /// Images before this piece, and of the whole part.
    before: usize,
    total: usize,
}

impl<'a> FeatureCache<'a> {
    pub(crate) fn of(
        run: &'a RunFolder,
        options: ReadOptions,
        observer: &'a mut dyn Observer,
        stop: &'a AtomicBool,
    ) -> Self {
        Self { run, folder: folder(run), options, observer, stop }
    }

    /// The `columns` of all images of `part`; cached pieces are not computed again.
    pub(crate) fn read(&mut self, part: &Part<'_>, columns: &Columns<'_>) -> Result<Extracted, EvalError> {
        let weights: Vec<String> = columns.encoders.iter().map(|encoder| encoder.fingerprint()).collect();
        let mut key = json!({
            "set": part.set.identity(), "encoders": weights, "transform": self.options.transform,
            "revision": EvalTransform::REVISION,
        });
        key["layers"] = json!(columns.layers);
        let (mut pieces, mut before) = (Vec::new(), 0);
        // Pieces of similar size: a small last one could consist of bad images only.
        let total = part.indices.len();
        for indices in part.indices.chunks(total.div_ceil(total.div_ceil(PIECE).max(1)).max(1)) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(EvalError::Stopped);
            }
            let place = format!("{key} {indices:?}");
            let file = self.folder.join(format!("{:08x}.safetensors", crc32c::crc32c(place.as_bytes())));
            let piece = Piece { file, key: key.clone(), before, total };
            pieces.push(self.piece(&piece, &Part { indices, ..*part }, columns)?);
            before += indices.len();
        }
        let read = concatenated(&pieces);
        check_bad(&read.bad, total, self.options.max_bad_share)?;
        identity::record(self.run, part.set)?;
        Ok(read)
    }

    fn piece(
        &mut self,
        piece: &Piece,
        part: &Part<'_>,
        columns: &Columns<'_>,
    ) -> Result<Extracted, EvalError> {
        let cached = piece.load(part.indices);
        match cached {
            Some(mut cached) if columns.pixels => {
                let mut pixels = self.extract(piece, part, &Columns { encoders: &[], ..*columns })?;
                // A file that vanished since would shift rows against each other.
                if cached.indices != pixels.indices {
                    return Err(EvalError::ImagesChanged("the images changed while they were evaluated"));
                }
                cached.features.append(&mut pixels.features);
                Ok(cached)
            }
            Some(cached) => Ok(cached),
            None => {
                let read = self.extract(piece, part, columns)?;
                piece.store(part.indices, &read, columns.encoders.len())?;
                Ok(read)
            }
        }
    }

    fn extract(
        &mut self,
        piece: &Piece,
        part: &Part<'_>,
        columns: &Columns<'_>,
    ) -> Result<Extracted, EvalError> {
        let forwards: Vec<_> = columns
            .encoders
            .iter()
            .map(|encoder| |pixels: &Tensor| encoder.layers(pixels, columns.layers))
            .collect();
        let flat = |pixels: &Tensor| Ok(flat_pixels(pixels));
        let mut extractors: Vec<&Extractor<'_>> = forwards.iter().map(|forward| forward as _).collect();
        if columns.pixels {
            extractors.push(&flat);
        }
        // Bad images may be clustered: their fraction counts over the whole part.
        let allowed = (self.options.max_bad_share * piece.total as f64 / part.indices.len() as f64).min(1.0);
        let options = ReadOptions { max_bad_share: allowed, ..self.options.clone() };
        let observer = &mut *self.observer;
        let mut progress =
            |done: usize, _: usize| observer.progress(part.name, piece.before + done, piece.total);
        extract(part.set, part.indices, &options, &extractors, &mut progress)
    }
}

impl Piece {
    fn store(&self, indices: &[usize], read: &Extracted, encoders: usize) -> Result<(), EvalError> {
        let mut stored = Checkpoint::default();
        for (at, features) in read.features[..encoders].iter().enumerate() {
            stored.tensors.insert(format!("h.{at:03}"), features.shallow_clone());
        }
        stored.sections.insert("what".into(), json!([self.key, indices, read.indices, read.bad]));
        fs_err::create_dir_all(self.file.parent().unwrap_or(&self.file))?;
        Ok(stored.save(&self.file)?)
    }

    /// None if the file is missing, damaged or of other features.
    fn load(&self, indices: &[usize]) -> Option<Extracted> {
        let mut stored = if self.file.exists() { Checkpoint::load(&self.file).ok()? } else { return None };
        let (key, all, read, bad): (Value, Vec<usize>, Vec<usize>, Vec<BadImage>) =
            serde_json::from_value(stored.sections.remove("what")?).ok()?;
        let features = stored.tensors.into_values().map(|h| h.to_kind(Kind::Float)).collect();
        (key == self.key && all == indices).then_some(Extracted { features, indices: read, bad })
    }
}

/// Removes all pieces of `run`.
pub(crate) fn clear(run: &RunFolder) -> Result<(), EvalError> {
    let folder = folder(run);
    if folder.exists() {
        fs_err::remove_dir_all(folder)?;
    }
    Ok(())
}

fn folder(run: &RunFolder) -> PathBuf {
    run.evaluation().join("features")
}

fn concatenated(pieces: &[Extracted]) -> Extracted {
    let count = pieces.first().map_or(0, |piece| piece.features.len());
    let column = |at: usize| {
        let rows: Vec<&Tensor> = pieces.iter().map(|piece| &piece.features[at]).collect();
        Tensor::cat(&rows, 0)
    };
    let features = (0..count).map(column).collect();
    let indices = pieces.iter().flat_map(|piece| piece.indices.clone()).collect();
    let bad = pieces.iter().flat_map(|piece| piece.bad.clone()).collect();
    Extracted { features, indices, bad }
}
