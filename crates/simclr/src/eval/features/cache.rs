//! Images to features of several encoders at once, in pieces that stay in the run folder until all figures that rest on
//! them are known: reading a large set takes hours on a CPU, and may be interrupted.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};
use simclr_data::Dataset;
use tch::{Kind, Tensor};

use crate::eval::data::identity;
use crate::eval::features::frozen_encoder::{BadImage, Extracted, Extractor, FrozenEncoder, ReadOptions};
use crate::eval::layer::Layer;
use crate::{
    EvalError,
    checkpoint::Checkpoint,
    train::{Observer, RunFolder},
};

/// Images of a piece, at most.
const PIECE: usize = 8192;

/// Reads parts of sets for one evaluation.
pub(crate) struct Reading<'a> {
    run: &'a RunFolder,
    folder: PathBuf,
    options: ReadOptions,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
}

/// A part of a set: its name for people, the set, and the indices of its images.
pub(crate) struct Part<'a> {
    pub(crate) name: &'a str,
    pub(crate) set: &'a Dataset,
    pub(crate) indices: &'a [usize],
}

impl<'a> Reading<'a> {
    pub(crate) fn of(
        run: &'a RunFolder,
        options: ReadOptions,
        observer: &'a mut dyn Observer,
        stop: &'a AtomicBool,
    ) -> Self {
        Self { run, folder: pieces(run), options, observer, stop }
    }

    /// The outputs `layers` of each of `encoders` side by side, then, where `pixels` are asked for, the raw pixels. Pieces that are there already
    /// are not computed again.
    pub(crate) fn read(
        &mut self,
        part: &Part<'_>,
        encoders: &[&FrozenEncoder],
        layers: &[Layer],
        pixels: bool,
    ) -> Result<Extracted, EvalError> {
        let weights: Vec<String> = encoders.iter().map(|encoder| encoder.fingerprint()).collect();
        let mut what = json!({
            "set": part.set.identity(), "encoders": weights, "transform": self.options.transform,
        });
        what["layers"] = json!(layers);
        let (mut pieces, mut done) = (Vec::new(), 0);
        // Pieces of about one size: none is so small that a single bad image leaves it empty.
        let all = part.indices.len();
        for indices in part.indices.chunks(all.div_ceil(all.div_ceil(PIECE).max(1)).max(1)) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(EvalError::Stopped);
            }
            let place = format!("{what} {indices:?}");
            let file = self.folder.join(format!("{:08x}.safetensors", crc32c::crc32c(place.as_bytes())));
            let piece = Part { indices, ..*part };
            pieces.push(self.piece(&file, &what, &piece, (done, all), (encoders, layers), pixels)?);
            done += indices.len();
        }
        let read = together(&pieces);
        crate::eval::features::check_bad(&read.bad, all, self.options.max_bad_share)?;
        identity::remember(self.run, part.set)?;
        Ok(read)
    }

    fn piece(
        &mut self,
        file: &Path,
        what: &Value,
        part: &Part<'_>,
        (before, all): (usize, usize),
        (encoders, layers): (&[&FrozenEncoder], &[Layer]),
        pixels: bool,
    ) -> Result<Extracted, EvalError> {
        let mut kept = stored(file, what, part.indices);
        if kept.is_some() && !pixels {
            return Ok(kept.take().expect("it was just seen"));
        }
        let forwards: Vec<_> =
            encoders.iter().map(|encoder| |pixels: &Tensor| encoder.layers(pixels, layers)).collect();
        let flat = |pixels: &Tensor| Ok(crate::eval::features::flat_pixels(pixels));
        let missing = if kept.is_some() { &[] } else { &forwards[..] };
        let mut extractors: Vec<&Extractor<'_>> = missing.iter().map(|forward| forward as _).collect();
        if pixels {
            extractors.push(&flat);
        }
        // Bad images may come in clusters: their share is that of the whole part.
        let allowed = (self.options.max_bad_share * all as f64 / part.indices.len() as f64).min(1.0);
        let options = ReadOptions { max_bad_share: allowed, ..self.options.clone() };
        let observer = &mut *self.observer;
        let mut progress = |done: usize, _: usize| observer.progress(part.name, before + done, all);
        let mut read =
            crate::eval::features::extract(part.set, part.indices, &options, &extractors, &mut progress)?;
        let Some(mut kept) = kept else {
            store(file, what, part.indices, &read, encoders.len())?;
            return Ok(read);
        };
        // A file that vanished since would shift rows against each other.
        if kept.indices != read.indices {
            return Err(EvalError::Refused("the images changed while they were evaluated".into()));
        }
        kept.features.append(&mut read.features);
        Ok(kept)
    }
}

/// Forgets the pieces of `run`: all that rests on them is known.
pub(crate) fn forget(run: &RunFolder) -> Result<(), EvalError> {
    let folder = pieces(run);
    if folder.exists() {
        fs_err::remove_dir_all(folder)?;
    }
    Ok(())
}

fn pieces(run: &RunFolder) -> PathBuf {
    run.path().join("evaluation/features")
}

fn store(
    file: &Path,
    what: &Value,
    indices: &[usize],
    read: &Extracted,
    encoders: usize,
) -> Result<(), EvalError> {
    let mut piece = Checkpoint::default();
    for (at, features) in read.features[..encoders].iter().enumerate() {
        piece.tensors.insert(format!("h.{at:03}"), features.shallow_clone());
    }
    piece.sections.insert("what".into(), json!([what, indices, read.indices, read.bad]));
    fs_err::create_dir_all(file.parent().unwrap_or(file))?;
    Ok(piece.save(file)?)
}

/// The piece in `file`; none where it is not there, damaged or of something else.
fn stored(file: &Path, what: &Value, indices: &[usize]) -> Option<Extracted> {
    let mut piece = if file.exists() { Checkpoint::load(file).ok()? } else { return None };
    let of: (Value, Vec<usize>, Vec<usize>, Vec<BadImage>) =
        serde_json::from_value(piece.sections.remove("what")?).ok()?;
    let features = piece.tensors.into_values().map(|h| h.to_kind(Kind::Float)).collect();
    (of.0 == *what && of.1 == indices).then_some(Extracted { features, indices: of.2, bad: of.3 })
}

fn together(pieces: &[Extracted]) -> Extracted {
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
