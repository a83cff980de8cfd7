//! What an evaluation has found, kept in the run folder as soon as it is known: one that was killed, or is asked again,
//! does not do it twice. A figure is kept with everything that it depends on and is taken only where all of that is the same.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::{EvalError, checkpoint::Checkpoint, train::RunFolder};

/// Raised where the same options give other figures than before, or the key of a figure has other parts: figures of earlier
/// versions are then not found.
const VERSION: u32 = 2;

/// The figures of one run: `evaluation/figures/NAME-DIGEST.safetensors`, whole or not there.
#[derive(Debug)]
pub(crate) struct Memory {
    folder: PathBuf,
}

/// What a figure is called, and what it depends on.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    name: String,
    of: Value,
}

/// One figure.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// Accuracy, or whatever is measured, `[0, 1]`.
    pub(crate) value: f64,
    /// Regularisation that was chosen.
    pub(crate) lambda: Option<f64>,
    /// How the fit ended, or the learning rate that was chosen.
    pub(crate) how: String,
    /// Area under the ROC curve, of two classes.
    #[serde(default)]
    pub(crate) auroc: Option<f64>,
    /// What was predicted for each test image, where labels were.
    #[serde(skip)]
    pub(crate) answers: Option<Answers>,
    /// File in the run folder that holds it.
    #[serde(skip)]
    pub(crate) file: String,
}

/// Predicted and true labels of the test images, `[Q]` i64.
#[derive(Debug, PartialEq)]
pub(crate) struct Answers {
    pub(crate) predicted: Tensor,
    pub(crate) truth: Tensor,
}

impl Answers {
    /// Of tensors on the CPU.
    pub(crate) fn new(predicted: &Tensor, truth: &Tensor) -> Self {
        Self { predicted: predicted.shallow_clone(), truth: truth.shallow_clone() }
    }

    /// In the file `file` of [`Memory`]; none where it holds no labels.
    pub(crate) fn load(file: &Path) -> Result<Option<Self>, EvalError> {
        Ok(Self::taken(&mut Checkpoint::load(file)?))
    }

    fn taken(from: &mut Checkpoint) -> Option<Self> {
        let mut labels = |name: &str| Some(from.tensors.remove(name)?.to_kind(Kind::Int64));
        Some(Self { predicted: labels("predicted")?, truth: labels("truth")? })
    }

    fn put(&self, into: &mut Checkpoint) {
        for (name, labels) in [("predicted", &self.predicted), ("truth", &self.truth)] {
            let small = labels.numel() == 0 || labels.max().int64_value(&[]) < 256;
            into.tensors.insert(name.into(), labels.to_kind(if small { Kind::Uint8 } else { Kind::Int64 }));
        }
    }
}

impl Figure {
    /// A value alone.
    pub(crate) fn of(value: f64) -> Self {
        Self { value, lambda: None, how: String::new(), auroc: None, answers: None, file: String::new() }
    }

    /// The accuracy of `predicted` labels `[Q]`.
    pub(crate) fn accuracy(predicted: &Tensor, truth: &Tensor) -> Self {
        Self {
            answers: Some(Answers::new(predicted, truth)),
            ..Self::of(crate::knn::accuracy(predicted, truth))
        }
    }
}

impl Key {
    /// `name` is for people (and a file name), `of` decides.
    pub(crate) fn new(name: &str, of: Value) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() || ".%".contains(c) { c } else { '-' };
        Self { name: name.chars().map(plain).collect(), of: json!({ "version": VERSION, "of": of }) }
    }

    /// Readable and distinct.
    pub(crate) fn file_name(&self) -> String {
        let digest = blake3::hash(self.of.to_string().as_bytes()).to_hex();
        format!("{}-{}", self.name, &digest[..32])
    }
}

impl Memory {
    /// Of `run`; nothing is written yet.
    pub(crate) fn of(run: &RunFolder) -> Self {
        Self { folder: run.path().to_owned() }
    }

    fn path(&self, key: &Key) -> (String, PathBuf) {
        let name = format!("evaluation/figures/{}.safetensors", key.file_name());
        let path = self.folder.join(&name);
        (name, path)
    }

    /// The file that `key` is kept in, relative to the run folder.
    pub(crate) fn file(&self, key: &Key) -> String {
        self.path(key).0
    }

    /// What is kept under `key`; a damaged file counts as none.
    pub(crate) fn note(&self, key: &Key) -> Option<(Value, Option<Answers>)> {
        let path = self.path(key).1;
        let mut kept = if path.exists() { Checkpoint::load(&path).ok()? } else { return None };
        let note = kept.sections.remove("note")?;
        (kept.sections.get("of") == Some(&key.of)).then(|| (note, Answers::taken(&mut kept)))
    }

    /// Keeps `note`, and `answers` with it, in the file of the run folder that is returned.
    pub(crate) fn keep(
        &self,
        key: &Key,
        note: Value,
        answers: Option<&Answers>,
    ) -> Result<String, EvalError> {
        let mut kept = Checkpoint::default();
        kept.sections.insert("of".into(), key.of.clone());
        kept.sections.insert("note".into(), note);
        if let Some(answers) = answers {
            answers.put(&mut kept);
        }
        let (name, path) = self.path(key);
        fs_err::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        kept.save(&path)?;
        Ok(name)
    }

    /// The figure under `key`.
    pub(crate) fn figure(&self, key: &Key) -> Option<Figure> {
        let (note, answers) = self.note(key)?;
        let figure: Figure = serde_json::from_value(note).ok()?;
        Some(Figure { answers, file: self.path(key).0, ..figure })
    }

    /// Keeps a figure and hands it back.
    pub(crate) fn keep_figure(&self, key: &Key, figure: Figure) -> Result<Figure, EvalError> {
        let file = self.keep(key, json!(figure), figure.answers.as_ref())?;
        Ok(Figure { file, ..figure })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]
mod tests {
    use super::*;

    fn answers() -> Answers {
        Answers { predicted: Tensor::from_slice(&[3i64, 1, 2]), truth: Tensor::from_slice(&[3i64, 1, 300]) }
    }

    fn figure(value: f64) -> Figure {
        let (lambda, how) = (Some(1e-3), "converged".into());
        Figure { lambda, how, answers: Some(answers()), ..Figure::of(value) }
    }

    #[test]
    fn a_figure_is_known_under_all_that_it_depends_on_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::of(&RunFolder::create(folder.path()).unwrap());
        let key = |seed: u64| Key::new("trained h, 1 %", json!({ "seed": seed }));
        assert!(memory.figure(&key(1)).is_none());
        let file = memory.keep_figure(&key(1), figure(0.1 + 0.2)).unwrap().file;
        let known = memory.figure(&key(1)).unwrap();
        assert_eq!((known.value, known.lambda, known.how.as_str()), (0.1 + 0.2, Some(1e-3), "converged"));
        assert!(file.starts_with("evaluation/figures/trained-h--1-%-") && known.file == file, "{file}");
        assert_eq!(Answers::load(&folder.path().join(&file)).unwrap(), Some(answers()));
        assert!(memory.figure(&key(2)).is_none());
    }

    #[test]
    fn a_damaged_or_foreign_file_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::of(&RunFolder::create(folder.path()).unwrap());
        let (one, two) = (Key::new("a", json!(1)), Key::new("a", json!(2)));
        let file = folder.path().join(memory.keep_figure(&one, figure(0.5)).unwrap().file);
        // As if two keys had one digest.
        fs_err::copy(&file, memory.path(&two).1).unwrap();
        assert!(memory.figure(&two).is_none());
        let mut bytes = fs_err::read(&file).unwrap();
        bytes.pop();
        fs_err::write(&file, bytes).unwrap();
        assert!(memory.figure(&one).is_none());
    }
}
