//! Figures cached in the run folder as soon as they are computed, so that an interrupted or repeated evaluation computes
//! each of them once. A figure is stored with everything that it depends on and read only if all of that is equal.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::figure::{Figure, Predictions};
use crate::{EvalError, checkpoint::Checkpoint, train::RunFolder};

/// Raised when the same options give other figures than before, or keys change: figures of earlier versions are then not
/// found.
const VERSION: u32 = 2;

/// The cached figures of one run: `evaluation/figures/NAME-DIGEST.safetensors`, written atomically.
#[derive(Debug)]
pub(crate) struct ResultsCache {
    folder: PathBuf,
}

/// Name of a figure, and everything that it depends on.
#[derive(Debug, Clone)]
pub(crate) struct FigureKey {
    name: String,
    of: Value,
}

impl FigureKey {
    /// `name` is part of the file name only; `of` decides.
    pub(crate) fn new(name: &str, of: Value) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() || ".%".contains(c) { c } else { '-' };
        Self { name: name.chars().map(plain).collect(), of: json!({ "version": VERSION, "of": of }) }
    }

    /// The name and a digest of the dependencies.
    pub(crate) fn file_name(&self) -> String {
        let digest = blake3::hash(self.of.to_string().as_bytes()).to_hex();
        format!("{}-{}", self.name, &digest[..32])
    }
}

impl ResultsCache {
    pub(crate) fn of(run: &RunFolder) -> Self {
        Self { folder: run.path().to_owned() }
    }

    /// The file of `key`, relative to the run folder.
    pub(crate) fn file(key: &FigureKey) -> String {
        format!("evaluation/figures/{}.safetensors", key.file_name())
    }

    fn path(&self, key: &FigureKey) -> PathBuf {
        self.folder.join(Self::file(key))
    }

    /// The note under `key` and the predictions stored with it; none if the file is missing or damaged.
    pub(crate) fn note(&self, key: &FigureKey) -> Option<(Value, Option<Predictions>)> {
        let path = self.path(key);
        let mut cached = if path.exists() { Checkpoint::load(&path).ok()? } else { return None };
        let note = cached.sections.remove("note")?;
        (cached.sections.get("of") == Some(&key.of)).then(|| (note, Predictions::remove_from(&mut cached)))
    }

    /// Stores `note` and `predictions`; returns the file, relative to the run folder.
    pub(crate) fn store(
        &self,
        key: &FigureKey,
        note: Value,
        predictions: Option<&Predictions>,
    ) -> Result<String, EvalError> {
        let mut cached = Checkpoint::default();
        cached.sections.insert("of".into(), key.of.clone());
        cached.sections.insert("note".into(), note);
        if let Some(predictions) = predictions {
            predictions.insert_into(&mut cached);
        }
        let path = self.path(key);
        fs_err::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        cached.save(&path)?;
        Ok(Self::file(key))
    }

    pub(crate) fn figure(&self, key: &FigureKey) -> Option<Figure> {
        let (note, predictions) = self.note(key)?;
        let figure: Figure = serde_json::from_value(note).ok()?;
        Some(Figure { predictions, file: Self::file(key), ..figure })
    }

    /// Stores a figure and returns it with its file.
    pub(crate) fn store_figure(&self, key: &FigureKey, figure: Figure) -> Result<Figure, EvalError> {
        let file = self.store(key, json!(figure), figure.predictions.as_ref())?;
        Ok(Figure { file, ..figure })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]
mod tests {
    use tch::Tensor;

    use super::*;

    fn predictions() -> Predictions {
        Predictions {
            predicted: Tensor::from_slice(&[3i64, 1, 2]),
            truth: Tensor::from_slice(&[3i64, 1, 300]),
        }
    }

    fn figure(value: f64) -> Figure {
        let (lambda, how) = (Some(1e-3), "converged".into());
        Figure { lambda, how, predictions: Some(predictions()), ..Figure::of(value) }
    }

    #[test]
    fn a_figure_is_found_under_all_of_its_dependencies_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ResultsCache::of(&RunFolder::create(folder.path()).unwrap());
        let key = |seed: u64| FigureKey::new("trained h, 1 %", json!({ "seed": seed }));
        assert!(cache.figure(&key(1)).is_none());
        let file = cache.store_figure(&key(1), figure(0.1 + 0.2)).unwrap().file;
        let cached = cache.figure(&key(1)).unwrap();
        assert_eq!((cached.value, cached.lambda, cached.how.as_str()), (0.1 + 0.2, Some(1e-3), "converged"));
        assert!(file.starts_with("evaluation/figures/trained-h--1-%-") && cached.file == file, "{file}");
        assert_eq!(Predictions::load(&folder.path().join(&file)).unwrap(), Some(predictions()));
        assert!(cache.figure(&key(2)).is_none());
    }

    #[test]
    fn a_damaged_or_mismatched_file_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ResultsCache::of(&RunFolder::create(folder.path()).unwrap());
        let (one, two) = (FigureKey::new("a", json!(1)), FigureKey::new("a", json!(2)));
        let file = folder.path().join(cache.store_figure(&one, figure(0.5)).unwrap().file);
        // As if two keys had one digest.
        fs_err::copy(&file, cache.path(&two)).unwrap();
        assert!(cache.figure(&two).is_none());
        let mut bytes = fs_err::read(&file).unwrap();
        bytes.pop();
        fs_err::write(&file, bytes).unwrap();
        assert!(cache.figure(&one).is_none());
    }
}
