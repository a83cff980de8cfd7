//! Export of features h with image paths.

use std::path::{Path, PathBuf};

use simclr_data::{
    Dataset, Split,
    augment::{EvalTransform, TransformChange},
    dataset::Labels,
    decode::Decoding,
};
use tch::Tensor;

use super::{
    feature_table::{Format, MoreColumns, Table},
    rows::Rows,
};
use crate::{
    EvalError,
    device::DeviceChoice,
    eval::{
        features::{BadImage, ReadOptions, flat_pixels, load_encoder_on, pixel_dim, stream},
        layer::Layer,
    },
    train::RunFolder,
};

/// Options of [`embed`].
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedOptions {
    /// One split; none = every image of the set.
    pub split: Option<Split>,
    /// Source of the labels.
    pub labels: Labels,
    /// Images per forward pass.
    pub batch: usize,
    /// Decoding threads; 0 = all processors.
    pub threads: usize,
    /// Device instead of the run's.
    pub device: Option<DeviceChoice>,
    /// Write the raw pixels of an evaluation's control instead of h.
    pub pixels: bool,
    /// Changes of the run's input transform.
    pub transform: TransformChange,
    /// The output of the model; its parquet column is called `h` in any case.
    pub layer: Layer,
    /// What the table contains besides.
    pub more: MoreColumns,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        let transform = TransformChange::default();
        let labels = Labels::Auto;
        let (batch, threads, device) = (256, 0, None);
        let more = MoreColumns::default();
        Self { split: None, labels, batch, threads, device, pixels: false, transform, layer: Layer::H, more }
    }
}

/// Result of [`embed`].
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// The table.
    pub path: PathBuf,
    /// The file of paths of a `.npy` or `.tsv`.
    pub paths_file: Option<PathBuf>,
    /// Rows n.
    pub images: usize,
    /// F, or the number of pixel values.
    pub feature_dim: usize,
    /// Input transform.
    pub transform: EvalTransform,
    /// Caveats about transform and data set.
    pub notes: Vec<String>,
    /// Undecodable images, which have no row.
    pub bad: Vec<BadImage>,
}

/// Writes h of every image at `data` to `out`, `.parquet`, `.npy` or `.tsv` by its name. Only an earlier table is replaced, once the
/// new one is whole.
///
/// # Errors
/// Another ending, no checkpoint, more bad images than the run allows, or a file that cannot be written or must not be
/// replaced.
pub fn embed(
    run: &RunFolder,
    data: &Path,
    out: &Path,
    options: &EmbedOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Embedded, EvalError> {
    let format = Format::of(out, options.more)?;
    let _held = RunFolder::around(out, Some(run)).map_err(Box::new)?;
    format.check(out, data)?;
    let frozen = load_encoder_on(run, options.device)?.with_transform(&options.transform)?;
    let sets = open(data, options, &frozen.decoding())?;
    let read = ReadOptions::of(&frozen, options.batch, options.threads);
    let total: usize = sets.iter().map(|(_, set)| set.len()).sum();
    let layer = frozen.layer_dim(options.layer)?;
    let width = if options.pixels { pixel_dim(&frozen) } else { layer } as usize;
    let side = frozen.image_size();
    let mut table = Table::create(format, out, [total, width, side], options.more)?;
    let (mut before, mut bad) = (0, Vec::new());
    for (part, set) in &sets {
        let indices: Vec<usize> = (0..set.len()).collect();
        let mut each = |pixels: &Tensor, rows: &[usize]| {
            let values =
                if options.pixels { flat_pixels(pixels) } else { frozen.layers(pixels, &[options.layer])? };
            table.push(Rows { set, part: part.name(), rows, h: &values, pixels })
        };
        let mut report = |done: usize, _: usize| progress(before + done, total);
        bad.extend(stream(set, &indices, &read, &mut each, &mut report)?);
        before += set.len();
    }
    let images = total - bad.len();
    let paths_file = table.finish(out)?;
    let transform = read.transform;
    let of_images = sets.first().map_or(Vec::new(), |(_, set)| transform.notes_on_images(set));
    let of_sets = sets.iter().flat_map(|(_, set)| set.notes()).cloned();
    let notes = frozen.origin().assumed.iter().cloned().chain(of_images).chain(of_sets).collect();
    Ok(Embedded { path: out.to_owned(), paths_file, images, feature_dim: width, transform, notes, bad })
}

/// One split, or all there are.
fn open(data: &Path, options: &EmbedOptions, how: &Decoding) -> Result<Vec<(Split, Dataset)>, EvalError> {
    let splits = options.split.map_or_else(|| Dataset::splits(data), |split| vec![split]);
    let open =
        |split| Ok((split, Dataset::open_as(data, split, how)?.labelled(&options.labels, data, &[split])?));
    splits.into_iter().map(open).collect()
}
