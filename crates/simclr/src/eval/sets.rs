//! A path to the training and test part of a labelled set: its own splits, or a stratified hold-out.

use std::path::Path;

use simclr_data::{Dataset, Split, dataset::Labels, decode::Decoding};

use super::{identity, splits};
use crate::{
    EvalError,
    train::{Observer, RunFolder},
};

/// Share of the training split that is held out where a set has no test split.
const TEST_SHARE: f64 = 0.2;
/// Classes that a note lists at most.
const NAMED: usize = 5;

/// Training and test part of a labelled set.
pub(super) struct Sets {
    pub(super) train: Dataset,
    /// None: the test part is held out of `train`.
    pub(super) test: Option<Dataset>,
    pub(super) train_indices: Vec<usize>,
    pub(super) test_indices: Vec<usize>,
    pub(super) train_labels: Vec<i64>,
    pub(super) test_labels: Vec<i64>,
    pub(super) seed: u64,
    /// What a reader of figures on these parts must know.
    pub(super) notes: Vec<String>,
    /// Where labels come from.
    from: Labels,
    /// Whether the validation part is tested on, for want of labels in the test part.
    tests_on_validation: bool,
}

/// A part to test on.
struct TestPart {
    set: Dataset,
    labels: Vec<i64>,
    /// Why it is the validation part, where it is.
    instead: Option<String>,
}

impl Sets {
    /// Opens the set; labels are those of the training split's numbering.
    pub(super) fn open((path, from): (&Path, &Labels), how: &Decoding, seed: u64) -> Result<Self, EvalError> {
        if *from == Labels::None {
            let reason = "they are switched off: data.labels is \"none\"".into();
            return Err(EvalError::Labels { path: path.to_owned(), reason });
        }
        let train = open_part(path, Split::Train, how, from)?;
        let train_labels = labels(&train, path, "training")?;
        if train.classes().len() < 2 {
            let reason = format!("expected at least 2 classes, got {}", train.classes().len());
            return Err(EvalError::Labels { path: path.to_owned(), reason });
        }
        let sets = match TestPart::open(path, &train, from)? {
            Some(part) => Self::with(train, train_labels, part, seed),
            None => Self::held_out(path, train, train_labels, seed)?,
        };
        let sets = Self { from: from.clone(), ..sets };
        let notes = sets.notes_on_classes(path)?;
        let spelled = sets.train.notes().to_vec();
        Ok(Self { notes: [sets.notes, spelled, notes].concat(), ..sets })
    }

    fn with(train: Dataset, train_labels: Vec<i64>, part: TestPart, seed: u64) -> Self {
        let everything = |set: &Dataset| (0..set.len()).collect();
        let own = part.set.label_notes().iter().filter(|note| !train.notes().contains(note));
        let on_labels = own.map(|note| format!("test part: {note}"));
        let notes = part.instead.iter().cloned().chain(on_labels).collect();
        Self {
            train_indices: everything(&train),
            test_indices: everything(&part.set),
            train,
            test: Some(part.set),
            train_labels,
            test_labels: part.labels,
            seed,
            from: Labels::Auto,
            tests_on_validation: part.instead.is_some(),
            notes,
        }
    }

    fn held_out(path: &Path, train: Dataset, labels: Vec<i64>, seed: u64) -> Result<Self, EvalError> {
        let (train_indices, test_indices) =
            splits::hold_out(&labels, train.classes().len(), TEST_SHARE, seed);
        if test_indices.is_empty() {
            let reason = "too few images to hold some out for testing".into();
            return Err(EvalError::Labels { path: path.to_owned(), reason });
        }
        Ok(Self {
            train,
            test: None,
            train_indices,
            test_indices,
            test_labels: labels.clone(),
            train_labels: labels,
            seed,
            notes: Vec::new(),
            from: Labels::Auto,
            tests_on_validation: false,
        })
    }

    /// Classes that one of the two parts lacks, with the images that this concerns.
    fn notes_on_classes(&self, path: &Path) -> Result<Vec<String>, EvalError> {
        let classes = self.train.classes();
        let count = |labels: &[i64], indices: &[usize]| {
            let mut counts = vec![0usize; classes.len()];
            indices.iter().for_each(|&index| counts[labels[index] as usize] += 1);
            counts
        };
        let train = count(&self.train_labels, &self.train_indices);
        let test = count(&self.test_labels, &self.test_indices);
        let lacking = |here: &[usize], there: &[usize]| -> Vec<(&str, usize)> {
            let of = classes.iter().zip(here.iter().zip(there));
            of.filter(|(_, (here, there))| **here == 0 && **there > 0)
                .map(|(class, (_, there))| (&class[..], *there))
                .collect()
        };
        let (unknown, untested) = (lacking(&train, &test), lacking(&test, &train));
        if train.iter().zip(&test).all(|(train, test)| *train == 0 || *test == 0) {
            let reason = format!(
                "no class has both training and test images; training: {}; test: {}",
                listed(&untested),
                listed(&unknown)
            );
            return Err(EvalError::Labels { path: path.to_owned(), reason });
        }
        let images: usize = unknown.iter().map(|(_, images)| images).sum();
        let wrong = format!(
            "{} of {} classes have no training image, so that {images} of {} test images count as wrong: {}",
            unknown.len(),
            classes.len(),
            self.test_indices.len(),
            listed(&unknown)
        );
        let absent = format!(
            "{} of {} classes have no test image, with so many training images: {}",
            untested.len(),
            classes.len(),
            listed(&untested)
        );
        let notes = [(unknown.is_empty(), wrong), (untested.is_empty(), absent)];
        Ok(notes.into_iter().filter(|(none, _)| !none).map(|(_, note)| note).collect())
    }
}

/// "`a` (12), `b` (3)".
fn listed(classes: &[(&str, usize)]) -> String {
    let name = |(class, images): &(&str, usize)| format!("`{class}` ({images})");
    let names: Vec<String> = classes.iter().take(NAMED).map(name).collect();
    let more = classes.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

impl TestPart {
    /// The test part, or the validation part where no test image has a label; none where there is no test part.
    fn open(path: &Path, train: &Dataset, from: &Labels) -> Result<Option<Self>, EvalError> {
        if !Dataset::has_split(path, Split::Test) {
            return Ok(None);
        }
        let open = |split| open_part(path, split, train.decoding(), from);
        let test = open(Split::Test)?;
        let withheld = test.samples().iter().all(|sample| sample.label.is_none());
        if !withheld || !Dataset::has_split(path, Split::Validation) {
            let labels = labels_as(&test, train, path, "test")?;
            return Ok(Some(Self { set: test, labels, instead: None }));
        }
        let validation = open(Split::Validation)?;
        let labels = labels_as(&validation, train, path, "validation").map_err(|error| match error {
            EvalError::Labels { path, reason } => {
                let reason = format!("none of the {} images of the test part has one; {reason}", test.len());
                EvalError::Labels { path, reason }
            }
            other => other,
        })?;
        let instead = format!(
            "none of the {} images of the test part has a label: evaluated on the validation part, {} images",
            test.len(),
            validation.len()
        );
        Ok(Some(Self { set: validation, labels, instead: Some(instead) }))
    }
}

impl Sets {
    /// Finds out whether these are the images that figures in `run` are of.
    pub(super) fn identify(&mut self, run: &RunFolder, observer: &mut dyn Observer) -> Result<(), EvalError> {
        identity::identify(run, &mut self.train, observer)?;
        self.test.as_mut().map_or(Ok(()), |test| identity::identify(run, test, observer))
    }

    /// The set's own validation part to choose by, and its labels in the numbering of the training part; none where it is what
    /// is tested on.
    pub(super) fn validation(
        &self,
        path: &Path,
        run: &RunFolder,
        observer: &mut dyn Observer,
    ) -> Result<Option<(Dataset, Vec<i64>)>, EvalError> {
        if self.tests_on_validation || !Dataset::has_split(path, Split::Validation) {
            return Ok(None);
        }
        let mut set = open_part(path, Split::Validation, self.train.decoding(), &self.from)?;
        let labels = labels_as(&set, &self.train, path, "validation")?;
        identity::identify(run, &mut set, observer)?;
        Ok(Some((set, labels)))
    }

    /// Where labels come from.
    pub(super) fn labels(&self) -> &Labels {
        &self.from
    }

    /// The split that the test images are in.
    pub(super) fn test_set(&self) -> &Dataset {
        self.test.as_ref().unwrap_or(&self.train)
    }

    /// What a figure on this set depends on: training split, test split or the seed of the hold-out.
    pub(super) fn identities(&self) -> [String; 2] {
        let held_out = || format!("held out by seed {}", self.seed);
        [self.train.identity(), self.test.as_ref().map_or_else(held_out, Dataset::identity)]
    }
}

/// A part of the set; where some of its images have a label, those, and a note counts the others.
fn open_part(path: &Path, split: Split, how: &Decoding, from: &Labels) -> Result<Dataset, EvalError> {
    let part = Dataset::open_as(path, split, how)?.labelled(from, path, &[split])?;
    let labelled: Vec<usize> = (0..part.len()).filter(|&at| part.samples()[at].label.is_some()).collect();
    let some = !labelled.is_empty() && labelled.len() < part.len();
    Ok(if some { part.subset(&labelled) } else { part })
}

/// Labels of a part, of which all images have one or none has.
fn labels(set: &Dataset, path: &Path, part: &str) -> Result<Vec<i64>, EvalError> {
    if let Some(labels) = set.labels() {
        return Ok(labels.into_iter().map(i64::from).collect());
    }
    let notes: String = set.label_notes().iter().map(|note| format!("; {note}")).collect();
    let reason = format!("none of the {} images of the {part} part has one{notes}", set.len());
    Err(EvalError::Labels { path: path.to_owned(), reason })
}

/// Labels of `part` in the numbering of `train`, matched by class name.
fn labels_as(set: &Dataset, train: &Dataset, path: &Path, part: &str) -> Result<Vec<i64>, EvalError> {
    let labels = labels(set, path, part)?;
    let number = |name: &String| train.classes().iter().position(|class| class == name);
    let numbers: Vec<Option<usize>> = set.classes().iter().map(number).collect();
    let mut unknown = vec![0; set.classes().len()];
    labels.iter().for_each(|&label| unknown[label as usize] += 1);
    let classes = set.classes().iter().zip(&unknown).zip(&numbers);
    let unknown: Vec<(&str, usize)> = classes
        .filter(|((_, images), number)| **images > 0 && number.is_none())
        .map(|((class, images), _)| (&class[..], *images))
        .collect();
    if !unknown.is_empty() {
        let reason = format!("the training part has no class {} of the {part} part", listed(&unknown));
        return Err(EvalError::Labels { path: path.to_owned(), reason });
    }
    let number = |label: &i64| numbers[*label as usize].expect("classes with images are known") as i64;
    Ok(labels.iter().map(number).collect())
}
