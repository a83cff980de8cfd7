//! Data and files of a study: image sets, the choice of training images, run folders, cached figures.
//!
//! `runs/NAME-DIGEST` is the run folder of a network, `figures/NAME-DIGEST.json` what was measured on it, both under a digest of
//! everything that they depend on, so that a study that was interrupted continues, and studies share runs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use simclr_data::{
    Dataset, Split,
    dataset::{Labels, canonical},
    decode::Decoding,
    tinted_shapes,
};

use super::{
    arm::{H, KNN, OWN, Probe, Run, Z},
    images::{Classes, ImageSet, Images},
    scale::{Budget, Scale},
    table::{DIVERGED, Figures},
};
use crate::{
    EvalError, RunConfig,
    checkpoint::write_atomically,
    eval::data::{LabelledSet, splits},
};

/// Raised when the same run or probe gives other figures than before.
const VERSION: u32 = 2;
/// Seed of the choice of images and of a hold-out; not that of a run, so that all seeds train on the same images.
pub(super) const CHOICE: u64 = 0;
/// Seed of the synthetic images, and their number in training and test part.
const TINTED: (u64, usize, usize) = (20_260, 4000, 2000);
const TINTED_QUICK: (usize, usize) = (80, 40);

/// Where a study reads and writes.
pub struct Workspace {
    /// The recipe.
    pub scale: Scale,
    /// Threads of this process; 0 = all processors. Figures do not depend on it but for rounding.
    pub threads: usize,
    out: PathBuf,
    sets: BTreeMap<ImageSet, Opened>,
    /// Digest of the images of each set.
    fingerprints: BTreeMap<ImageSet, String>,
}

/// A labelled set, and where it is.
pub(super) struct Opened {
    pub(super) path: PathBuf,
    pub(super) set: LabelledSet,
}

/// Images of a part of a set with their labels, numbered from 0 without gaps.
pub(super) struct Part<'a> {
    pub(super) set: &'a Dataset,
    pub(super) indices: Vec<usize>,
    pub(super) labels: Vec<i64>,
    pub(super) classes: i64,
}

impl Workspace {
    /// Opens the sets; writes the synthetic images below `out`, which take the place of `data` in a smoke run.
    ///
    /// # Errors
    /// Sets without labels, files that cannot be written.
    pub fn open(data: Option<&Path>, out: &Path, scale: &Scale) -> Result<Self, EvalError> {
        let quick = scale.budget == Budget::Quick;
        let (seed, train, test) = TINTED;
        let (train, test) = if quick { TINTED_QUICK } else { (train, test) };
        // Before anything is written, so that a wrong path leaves nothing behind.
        let given = data.filter(|_| !quick).map(canonical).transpose()?;
        fs_err::create_dir_all(out)?;
        let out = canonical(out)?;
        let tinted = out.join(format!("tinted-shapes-{train}"));
        if !tinted.join("test_batch.bin").exists() {
            tinted_shapes::write(&tinted, seed, train, test)?;
        }
        let given = given.unwrap_or_else(|| tinted.clone());
        let sets = [(ImageSet::Given, given), (ImageSet::Tinted, tinted)];
        let sets = sets.map(|(name, path)| Ok((name, Opened::at(path)?)));
        let sets: BTreeMap<_, _> = sets.into_iter().collect::<Result<_, EvalError>>()?;
        let fingerprint = |opened: &Opened| {
            let test = opened.set.test.as_ref().map(Dataset::fingerprint);
            format!("{} {}", opened.set.train.fingerprint(), test.unwrap_or_default())
        };
        let fingerprints = sets.iter().map(|(name, opened)| (*name, fingerprint(opened))).collect();
        Ok(Self { scale: scale.clone(), threads: 0, out, sets, fingerprints })
    }

    /// The folder of all studies.
    pub fn out(&self) -> &Path {
        &self.out
    }

    pub(super) fn opened(&self, set: ImageSet) -> &Opened {
        &self.sets[&set]
    }

    /// Training images that `images` chooses, ascending, as indices of the training part.
    pub(super) fn chosen(&self, images: &Images) -> Vec<usize> {
        let set = &self.opened(images.set).set;
        let classes = set.train.classes().len();
        let (low, high) = images.range(classes);
        let in_range = |index: &usize| (low..high).contains(&set.train_labels[*index]);
        let all: Vec<usize> = set.train_indices.iter().copied().filter(in_range).collect();
        let labels: Vec<i64> = all.iter().map(|&index| set.train_labels[index]).collect();
        let per_class = images.count.div_ceil((high - low) as usize);
        let positions = splits::few_shot(&labels, classes, per_class, CHOICE, 0);
        positions.into_iter().map(|position| all[position]).collect()
    }

    /// The chosen training images with their labels.
    pub(super) fn train_part(&self, images: &Images) -> Part<'_> {
        let set = &self.opened(images.set).set;
        Part::of(&set.train, self.chosen(images), &set.train_labels, images)
    }

    /// The test images of the classes of `images`.
    pub(super) fn test_part(&self, images: &Images) -> Part<'_> {
        let set = &self.opened(images.set).set;
        let (low, high) = images.range(set.train.classes().len());
        let in_range = |index: &usize| (low..high).contains(&set.test_labels[*index]);
        let indices = set.test_indices.iter().copied().filter(in_range).collect();
        Part::of(set.test_set(), indices, &set.test_labels, images)
    }

    /// `share` of the labels of `images` as a share of all labels of the set.
    pub(super) fn share_of_all(&self, images: &Images, share: f64) -> f64 {
        let all = self.opened(images.set).set.train_indices.len();
        (share * self.chosen(images).len() as f64 / all as f64).min(1.0)
    }

    /// Figures of a run that diverged: accuracies at chance.
    pub(super) fn diverged(&self, run: &Run) -> Figures {
        let classes = self.opened(run.images.set).set.train.classes().len();
        let mut figures = Figures::of(DIVERGED, 1.0);
        [H, Z, KNN, OWN].into_iter().for_each(|name| figures.set(name, 100.0 / classes as f64));
        figures
    }

    /// Decoding of the images of `config`, as the sets were opened.
    pub(super) fn decoding(&self, set: ImageSet) -> &Decoding {
        self.opened(set).set.train.decoding()
    }

    /// A digest of `run` with `seed` and its images.
    pub(super) fn digest(&self, run: &Run, seed: u64) -> Result<String, EvalError> {
        Ok(digest(&json!([run.identity(&self.scale, seed)?, self.fingerprints[&run.images.set]])))
    }

    /// The run folder of `run`.
    ///
    /// # Errors
    /// An invalid configuration.
    pub fn run_folder(&self, run: &Run, seed: u64) -> Result<PathBuf, EvalError> {
        let config = run.config(&self.scale, seed)?;
        Ok(self.out.join("runs").join(format!("{}-{}", run_name(run, &config), self.digest(run, seed)?)))
    }

    /// File of the figures of `probe` on `run`, or of the note that `run` is trained (`None`).
    pub(super) fn figures_file(
        &self,
        run: &Run,
        seed: u64,
        probe: Option<&Probe>,
    ) -> Result<PathBuf, EvalError> {
        let key = json!([self.digest(run, seed)?, probe, &self.fingerprints]);
        let name = probe.map_or_else(|| "trained".to_owned(), |probe| probe_name(probe).to_owned());
        Ok(self.out.join("figures").join(format!("{name}-{}.json", digest(&key))))
    }

    /// Stored figures; none if they are not computed yet, or the file is damaged.
    pub(super) fn stored(&self, file: &Path) -> Option<Figures> {
        serde_json::from_slice(&fs_err::read(file).ok()?).ok()
    }

    pub(super) fn store(&self, file: &Path, figures: &Figures) -> Result<(), EvalError> {
        fs_err::create_dir_all(file.parent().unwrap_or(&self.out))?;
        Ok(write_atomically(file, format!("{}\n", json!(figures)).as_bytes())?)
    }
}

impl Opened {
    fn at(path: PathBuf) -> Result<Self, EvalError> {
        let config = RunConfig::default();
        let channels = Dataset::open(&path, Split::Train, config.data.open_options())?.channels();
        let (jpeg, range) = (config.transform.jpeg, config.data.value_range());
        let decoding = Decoding { channels, jpeg, range, pages: config.data.pages };
        let set = LabelledSet::open(&path, &Labels::Auto, &decoding, CHOICE)?;
        Ok(Self { path, set })
    }
}

impl Images {
    /// First class, and the one after the last, of a set of `classes`.
    fn range(&self, classes: usize) -> (i64, i64) {
        let half = classes / 2;
        let (low, high) = match self.classes {
            Classes::All => (0, classes),
            Classes::First => (0, half),
            Classes::Second => (half, classes),
        };
        (low as i64, high as i64)
    }
}

impl<'a> Part<'a> {
    fn of(set: &'a Dataset, indices: Vec<usize>, labels: &[i64], images: &Images) -> Self {
        let (low, high) = images.range(set.classes().len());
        let labels = indices.iter().map(|&index| labels[index] - low).collect();
        Self { set, indices, labels, classes: high - low }
    }

    /// The first `count` images of an even choice over the part.
    pub(super) fn thinned(&self, count: usize) -> Part<'a> {
        let step = self.indices.len().div_ceil(count.max(1)).max(1);
        let positions: Vec<usize> = (0..self.indices.len()).step_by(step).collect();
        Part {
            set: self.set,
            indices: positions.iter().map(|&at| self.indices[at]).collect(),
            labels: positions.iter().map(|&at| self.labels[at]).collect(),
            classes: self.classes,
        }
    }
}

fn digest(key: &Value) -> String {
    blake3::hash(json!([VERSION, key]).to_string().as_bytes()).to_hex()[..16].to_owned()
}

/// Human-readable part of the name of a run folder: what trains it.
fn run_name(run: &Run, config: &RunConfig) -> &'static str {
    use super::arm::How;
    use crate::task::MethodKind;
    match (&run.how, config.task.objective) {
        (How::Finetune { .. }, _) => "fine-tuned",
        (How::Distill { .. }, _) => "distilled",
        (_, MethodKind::Contrastive) => "simclr",
        (_, MethodKind::SimclrMomentum) => "simclr-momentum",
        (_, MethodKind::Moco) => "moco",
        (_, MethodKind::MocoV3) => "moco-v3",
        (_, MethodKind::Supervised) => "supervised",
        (_, MethodKind::Distillation) => "distilled",
    }
}

fn probe_name(probe: &Probe) -> &'static str {
    match probe {
        Probe::Frozen => "frozen",
        Probe::Classifier => "classifier",
        Probe::FewLabels(_) => "few-labels",
        Probe::Transfer(..) => "transfer",
        Probe::Transformations => "transformations",
        Probe::Spectrum => "spectrum",
        Probe::Entropy => "entropy",
        Probe::Projection => "projection",
        Probe::Histograms => "histograms",
        Probe::Pixels => "pixels",
    }
}
