//! A labelled set with its training and test part: its own splits, or a stratified hold-out.

use std::path::Path;

use simclr_data::{Dataset, Split, dataset::Labels, decode::Decoding};

use super::{identity, splits};
use crate::{
    EvalError,
    eval::options::HOLD_OUT,
    train::{Observer, RunFolder},
};

/// Most classes listed in a note.
const LISTED: usize = 5;

/// Training and test part of a labelled set.
pub(crate) struct LabelledSet {
    pub(crate) train: Dataset,
    /// None: the test part is held out of `train`.
    pub(crate) test: Option<Dataset>,
    pub(crate) train_indices: Vec<usize>,
    pub(crate) test_indices: Vec<usize>,
    /// Of all images of the split.
    pub(crate) train_labels: Vec<i64>,
    pub(crate) test_labels: Vec<i64>,
    pub(crate) seed: u64,
    /// Caveats about these parts.
    pub(crate) notes: Vec<String>,
    /// Source of the labels.
    pub(crate) labels: Labels,
    /// Whether the validation part replaces a test part without labels.
    tests_on_validation: bool,
}

/// A part to test on.
struct TestPart {
    set: Dataset,
    labels: Vec<i64>,
    /// Why the validation part is used, if it is.
    replacement: Option<String>,
}

impl LabelledSet {
    /// Opens the set at `path`. Labels of all parts are numbered as in the training split.
    pub(crate) fn open(
        path: &Path,
        labels_from: &Labels,
        decoding: &Decoding,
        seed: u64,
    ) -> Result<Self, EvalError> {
        if *labels_from == Labels::None {
            return Err(no_labels(path, "they are switched off: data.labels is \"none\"".into()));
        }
        let train = open_part(path, Split::Train, decoding, labels_from)?;
        let train_labels = labels(&train, path, "training")?;
        if train.classes().len() < 2 {
            return Err(no_labels(
                path,
                format!("expected at least 2 classes, got {}", train.classes().len()),
            ));
        }
        let part = TestPart::open(path, &train, labels_from)?;
        let seen = |note: &&String| !train.notes().contains(note);
        let own = part.iter().flat_map(|part| part.set.label_notes()).filter(seen);
        let replacement = part.as_ref().and_then(|part| part.replacement.clone());
        let notes = own.map(|note| format!("test part: {note}"));
        let notes = replacement.iter().cloned().chain(notes).chain(train.notes().to_vec()).collect();
        let (train_indices, test_indices) = match &part {
            Some(part) => ((0..train.len()).collect(), (0..part.set.len()).collect()),
            None => splits::hold_out(&train_labels, train.classes().len(), HOLD_OUT, seed),
        };
        if part.is_none() && test_indices.is_empty() {
            return Err(no_labels(path, "too few images to hold some out for testing".into()));
        }
        let (test, test_labels) =
            part.map_or((None, train_labels.clone()), |part| (Some(part.set), part.labels));
        let (labels, tests_on_validation) = (labels_from.clone(), replacement.is_some());
        let mut set = Self {
            train,
            test,
            train_indices,
            test_indices,
            train_labels,
            test_labels,
            seed,
            notes,
            labels,
            tests_on_validation,
        };
        set.notes.extend(set.notes_on_classes(path)?);
        Ok(set)
    }

    /// Classes without images in one of the two parts, with their images in the other.
    fn notes_on_classes(&self, path: &Path) -> Result<Vec<String>, EvalError> {
        let classes = self.train.classes();
        let train = counts(classes.len(), &self.train_labels, &self.train_indices);
        let test = counts(classes.len(), &self.test_labels, &self.test_indices);
        let missing = |here: &[usize], there: &[usize]| -> Vec<(&str, usize)> {
            let of = classes.iter().zip(here.iter().zip(there));
            let missing = of.filter(|(_, (here, there))| **here == 0 && **there > 0);
            missing.map(|(class, (_, there))| (&class[..], *there)).collect()
        };
        let (untrained, untested) = (missing(&train, &test), missing(&test, &train));
        if train.iter().zip(&test).all(|(train, test)| *train == 0 || *test == 0) {
            let (untested, untrained) = (listed(&untested), listed(&untrained));
            let reason = "no class has both training and test images";
            return Err(no_labels(path, format!("{reason}; training: {untested}; test: {untrained}")));
        }
        let mut notes = Vec::new();
        if !untrained.is_empty() {
            let images: usize = untrained.iter().map(|(_, images)| images).sum();
            notes.push(format!(
                "{} of {} classes have no training image, so that {images} of {} test images count as wrong: {}",
                untrained.len(),
                classes.len(),
                self.test_indices.len(),
                listed(&untrained)
            ));
        }
        if !untested.is_empty() {
            notes.push(format!(
                "{} of {} classes have no test image, with so many training images: {}",
                untested.len(),
                classes.len(),
                listed(&untested)
            ));
        }
        Ok(notes)
    }

    /// Sets the identities that figures in `run` are cached under.
    pub(crate) fn identify(&mut self, run: &RunFolder, observer: &mut dyn Observer) -> Result<(), EvalError> {
        identity::identify(run, &mut self.train, observer)?;
        self.test.as_mut().map_or(Ok(()), |test| identity::identify(run, test, observer))
    }

    /// The set's own validation part and its labels in the numbering of the training part; none if it is the test part.
    pub(crate) fn validation(
        &self,
        path: &Path,
        run: &RunFolder,
        observer: &mut dyn Observer,
    ) -> Result<Option<(Dataset, Vec<i64>)>, EvalError> {
        if self.tests_on_validation || !Dataset::has_split(path, Split::Validation) {
            return Ok(None);
        }
        let mut set = open_part(path, Split::Validation, self.train.decoding(), &self.labels)?;
        let labels = labels_as(&set, &self.train, path, "validation")?;
        identity::identify(run, &mut set, observer)?;
        Ok(Some((set, labels)))
    }

    /// The split of the test images.
    pub(crate) fn test_set(&self) -> &Dataset {
        self.test.as_ref().unwrap_or(&self.train)
    }

    /// Dependencies of a figure on this set: training split, and test split or seed of the hold-out.
    pub(crate) fn identities(&self) -> [String; 2] {
        let held_out = || format!("held out by seed {}", self.seed);
        [self.train.identity(), self.test.as_ref().map_or_else(held_out, Dataset::identity)]
    }
}

/// 32 hex digits over the indices of images.
pub(crate) fn checksum(indices: &[usize]) -> String {
    let bytes: Vec<u8> = indices.iter().flat_map(|&index| (index as u64).to_le_bytes()).collect();
    blake3::hash(&bytes).to_hex()[..32].to_owned()
}

fn no_labels(path: &Path, reason: String) -> EvalError {
    EvalError::Labels { path: path.to_owned(), reason }
}

/// Images of each class among `indices`.
fn counts(classes: usize, labels: &[i64], indices: &[usize]) -> Vec<usize> {
    let mut counts = vec![0; classes];
    indices.iter().for_each(|&index| counts[labels[index] as usize] += 1);
    counts
}

/// "`a` (12), `b` (3)".
fn listed(classes: &[(&str, usize)]) -> String {
    let name = |(class, images): &(&str, usize)| format!("`{class}` ({images})");
    let names: Vec<String> = classes.iter().take(LISTED).map(name).collect();
    let more = classes.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

impl TestPart {
    /// The test part, or the validation part if no test image has a label; none without a test part.
    fn open(path: &Path, train: &Dataset, labels_from: &Labels) -> Result<Option<Self>, EvalError> {
        if !Dataset::has_split(path, Split::Test) {
            return Ok(None);
        }
        let open = |split| open_part(path, split, train.decoding(), labels_from);
        let test = open(Split::Test)?;
        let withheld = test.samples().iter().all(|sample| sample.label.is_none());
        if !withheld || !Dataset::has_split(path, Split::Validation) {
            let labels = labels_as(&test, train, path, "test")?;
            return Ok(Some(Self { set: test, labels, replacement: None }));
        }
        let validation = open(Split::Validation)?;
        let labels = labels_as(&validation, train, path, "validation").map_err(|error| match error {
            EvalError::Labels { path, reason } => {
                let reason = format!("none of the {} images of the test part has one; {reason}", test.len());
                EvalError::Labels { path, reason }
            }
            other => other,
        })?;
        let replacement = format!(
            "none of the {} images of the test part has a label: evaluated on the validation part, {} images",
            test.len(),
            validation.len()
        );
        Ok(Some(Self { set: validation, labels, replacement: Some(replacement) }))
    }
}

/// A part of the set. If only some of its images have a label, these, with a note that counts the others.
fn open_part(
    path: &Path,
    split: Split,
    decoding: &Decoding,
    labels_from: &Labels,
) -> Result<Dataset, EvalError> {
    let part = Dataset::open_as(path, split, decoding)?.labelled(labels_from, path, &[split])?;
    let labelled: Vec<usize> = (0..part.len()).filter(|&at| part.samples()[at].label.is_some()).collect();
    let some = !labelled.is_empty() && labelled.len() < part.len();
    Ok(if some { part.subset(&labelled) } else { part })
}

/// Labels of a part in which either all images or none have one.
fn labels(set: &Dataset, path: &Path, part: &str) -> Result<Vec<i64>, EvalError> {
    if let Some(labels) = set.labels() {
        return Ok(labels.into_iter().map(i64::from).collect());
    }
    let notes: String = set.label_notes().iter().map(|note| format!("; {note}")).collect();
    Err(no_labels(path, format!("none of the {} images of the {part} part has one{notes}", set.len())))
}

/// Labels of `part` in the numbering of `train`, matched by class name.
fn labels_as(set: &Dataset, train: &Dataset, path: &Path, part: &str) -> Result<Vec<i64>, EvalError> {
    let labels = labels(set, path, part)?;
    let number = |name: &String| train.classes().iter().position(|class| class == name);
    let numbers: Vec<Option<usize>> = set.classes().iter().map(number).collect();
    let all: Vec<usize> = (0..labels.len()).collect();
    let images = counts(numbers.len(), &labels, &all);
    let classes = set.classes().iter().zip(&images).zip(&numbers);
    let unknown = classes.filter(|((_, images), number)| **images > 0 && number.is_none());
    let unknown: Vec<(&str, usize)> = unknown.map(|((class, images), _)| (&class[..], *images)).collect();
    if !unknown.is_empty() {
        let unknown = listed(&unknown);
        return Err(no_labels(path, format!("the training part has no class {unknown} of the {part} part")));
    }
    let number = |label: &i64| numbers[*label as usize].expect("all classes with images are known") as i64;
    Ok(labels.iter().map(number).collect())
}
