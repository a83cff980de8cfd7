//! The images of all parts of a set with their h.

use std::{path::Path, sync::atomic::AtomicBool};

use simclr_data::{Dataset, Split, dataset::Labels, rng::Key};
use tch::{Kind, Tensor};

use crate::{
    EvalError,
    device::DeviceChoice,
    eval::{
        data::identity::identify,
        features::{
            BadImage, Columns, Extracted, FeatureCache, FrozenEncoder, Part, ReadOptions, features,
            load_encoder_on,
        },
        layer::Layer,
    },
    train::{Observer, RunFolder},
};

/// Options of reading a set.
#[derive(Debug, Clone, PartialEq)]
pub struct ExploreOptions {
    /// One part; none = all parts.
    pub split: Option<Split>,
    /// Source of the labels.
    pub labels: Labels,
    /// Images at most, chosen at random from all parts; 0 = all.
    pub images: usize,
    /// Images per forward pass.
    pub batch: usize,
    /// Decoding threads; 0 = all processors.
    pub threads: usize,
    /// Device instead of the run's.
    pub device: Option<DeviceChoice>,
    /// Seed of all choices of images.
    pub seed: u64,
}

impl Default for ExploreOptions {
    fn default() -> Self {
        let labels = Labels::Auto;
        Self { split: None, labels, images: 50_000, batch: 256, threads: 0, device: None, seed: 0 }
    }
}

/// An image of one of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Position in [`EmbeddedSet::parts`].
    pub part: usize,
    /// Index in that part.
    pub index: usize,
}

/// Images of a set with their features, in the order of their rows in `h`.
#[derive(Debug)]
pub struct EmbeddedSet {
    /// Parts of the set, the training part first.
    pub parts: Vec<(Split, Dataset)>,
    /// The images with a row.
    pub members: Vec<Member>,
    /// Names of the classes of all parts.
    pub classes: Vec<String>,
    /// Class of each row, if it has a label.
    pub labels: Vec<Option<usize>>,
    /// `[n, F]` f32 on the CPU, finite.
    pub h: Tensor,
    /// Images of all parts, chosen or not.
    pub total: usize,
    /// Images that could not be decoded, which have no row.
    pub bad: Vec<BadImage>,
    /// The encoder that computed h.
    pub encoder: FrozenEncoder,
}

impl EmbeddedSet {
    /// Computes h of the set at `data` with the newest checkpoint of `run`. Where the run folder can be locked, features are kept in it
    /// until the next evaluation, so that a second command reads them.
    ///
    /// # Errors
    /// No checkpoint, more bad images than the run allows, features that are not finite.
    pub fn open(
        run: &RunFolder,
        data: &Path,
        options: &ExploreOptions,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Self, EvalError> {
        let encoder = load_encoder_on(run, options.device)?;
        let splits = options.split.map_or_else(|| Dataset::splits(data), |split| vec![split]);
        let how = encoder.decoding();
        let open = |split| {
            Ok((split, Dataset::open_as(data, split, &how)?.labelled(&options.labels, data, &[split])?))
        };
        let mut parts = splits.into_iter().map(open).collect::<Result<Vec<_>, EvalError>>()?;
        let total = parts.iter().map(|(_, set)| set.len()).sum();
        let read = ReadOptions::of(&encoder, options.batch, options.threads);
        let keeps = run.hold().is_ok();
        let (mut members, mut h, mut bad) = (Vec::new(), Vec::new(), Vec::new());
        for (at, chosen) in chosen(&parts, options).into_iter().enumerate() {
            let (split, set) = &mut parts[at];
            if chosen.is_empty() {
                continue;
            }
            let part = (split.name(), &mut *set, &chosen[..]);
            let found = if keeps {
                kept(run, &encoder, part, &read, (&mut *observer, stop))?
            } else {
                let mut progress = |done, of| observer.progress(split.name(), done, of);
                features(&encoder, set, &chosen, &read, &mut progress)?
            };
            members.extend(found.indices.iter().map(|&index| Member { part: at, index }));
            h.extend(found.features);
            bad.extend(found.bad);
        }
        let h = finite(Tensor::cat(&h, 0).to_kind(Kind::Float))?;
        let (classes, labels) = classes(&parts, &members);
        Ok(Self { parts, members, classes, labels, h, total, bad, encoder })
    }

    /// Name of the image of row `row`.
    pub fn name(&self, row: usize) -> &str {
        let Member { part, index } = self.members[row];
        &self.parts[part].1.samples()[index].name
    }

    /// Part of the image of row `row`.
    pub fn split(&self, row: usize) -> Split {
        self.parts[self.members[row].part].0
    }

    /// Name of the class of row `row`.
    pub fn class(&self, row: usize) -> Option<&str> {
        self.labels[row].map(|label| &self.classes[label][..])
    }
}

/// Indices by part; a choice of `options.images`, equally likely for all images.
fn chosen(parts: &[(Split, Dataset)], options: &ExploreOptions) -> Vec<Vec<usize>> {
    let total = parts.iter().map(|(_, set)| set.len()).sum::<usize>();
    let mut picked: Vec<usize> = (0..total).collect();
    if options.images > 0 && options.images < total {
        picked = Key::choice(options.seed, 0).stream().permutation(total);
        picked.truncate(options.images);
        picked.sort_unstable();
    }
    let mut before = 0;
    let of_part = |(_, set): &(Split, Dataset)| {
        let range = before..before + set.len();
        before = range.end;
        let own = picked.iter().filter(|at| range.contains(*at));
        own.map(|at| at - range.start).collect()
    };
    parts.iter().map(of_part).collect()
}

fn kept(
    run: &RunFolder,
    encoder: &FrozenEncoder,
    (name, set, indices): (&str, &mut Dataset, &[usize]),
    read: &ReadOptions,
    (observer, stop): (&mut dyn Observer, &AtomicBool),
) -> Result<Extracted, EvalError> {
    identify(run, set, observer)?;
    let columns = Columns { encoders: &[encoder], layers: &[Layer::H], pixels: false };
    let mut cache = FeatureCache::of(run, read.clone(), observer, stop);
    cache.read(&Part { name, set, indices }, &columns)
}

fn finite(h: Tensor) -> Result<Tensor, EvalError> {
    let bad = h.isfinite().logical_not().any_dim(1, false).sum(Kind::Int64).int64_value(&[]);
    if bad == 0 {
        return Ok(h);
    }
    let reason = format!("NaN or infinity for {bad} of {} images: the weights are unusable", h.size()[0]);
    Err(EvalError::Layer { layer: "h".into(), reason })
}

/// Names of all classes, and the class of each member: parts number their classes on their own.
fn classes(parts: &[(Split, Dataset)], members: &[Member]) -> (Vec<String>, Vec<Option<usize>>) {
    let mut names: Vec<String> = Vec::new();
    let mut numbers = Vec::new();
    let mut known = std::collections::HashMap::new();
    for (_, set) in parts {
        let number = |name: &String| {
            *known.entry(name.clone()).or_insert_with(|| {
                names.push(name.clone());
                names.len() - 1
            })
        };
        numbers.push(set.classes().iter().map(number).collect::<Vec<_>>());
    }
    let label = |member: &Member| {
        let label = parts[member.part].1.samples()[member.index].label?;
        numbers[member.part].get(label as usize).copied()
    };
    let labels = members.iter().map(label).collect();
    (names, labels)
}
