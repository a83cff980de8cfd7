//! A classifier in one safetensors file: the encoder under torchvision's names, `classifier.weight` and `classifier.bias`, and in the
//! metadata what an exported encoder has, the names of the classes and the report.

use std::path::Path;

use simclr_data::output;
use tch::{Kind, Tensor};

use super::encoder::{self, Exported};
use crate::{
    EvalError,
    checkpoint::write_atomically,
    device::DeviceChoice,
    eval::classify::{Classifier, ClassifierReport},
    train::RunFolder,
    weights,
};

/// Metadata keys: names of the classes and report, both JSON.
const CLASSES: &str = "simclr.classes";
const REPORT: &str = "simclr.report";
/// Tensors of the classifier.
const WEIGHT: &str = "classifier.weight";
const BIAS: &str = "classifier.bias";
/// Largest difference of a probability that counts as equal.
const TOLERANCE: f64 = 1e-6;

/// Output of [`write_classifier`], and the only kind of file it replaces.
pub const CLASSIFIER: output::Kind = output::Kind { name: "a classifier", is_earlier: is_classifier };

fn is_classifier(path: &Path) -> bool {
    encoder::header(path).is_ok_and(|header| header["__metadata__"][CLASSES].is_string())
}

/// Writes `classifier`, made from `run`, to `out` (atomically), after the contents were read back and compared.
///
/// # Errors
/// A file that cannot be written or must not be replaced; an encoder that is a TorchScript module, which cannot stand alone.
pub fn write_classifier(
    classifier: &Classifier,
    report: Option<&ClassifierReport>,
    run: &RunFolder,
    out: &Path,
) -> Result<Exported, EvalError> {
    let _held = RunFolder::around(out, Some(run)).map_err(Box::new)?;
    output::check(out, CLASSIFIER, None)?;
    let frozen = &classifier.encoder;
    if frozen.config().encoder.file.is_some() {
        let reason =
            "a TorchScript encoder is a file of its own, so that the classifier would not stand alone";
        return Err(EvalError::File { path: out.to_owned(), reason: reason.into() });
    }
    let mut metadata = encoder::metadata(frozen);
    metadata.insert(CLASSES.into(), serde_json::json!(classifier.classes).to_string());
    metadata.extend(report.map(|report| (REPORT.into(), serde_json::json!(report).to_string())));
    let mut tensors = encoder::tensors(frozen);
    for (name, tensor) in [(WEIGHT, &classifier.weight), (BIAS, &classifier.bias)] {
        tensors.insert(name.into(), tensor.to_kind(Kind::Float).contiguous());
    }
    let bytes = encoder::serialise(&tensors, &metadata)?;
    let rebuilt = rebuild(out, &bytes, frozen.config().train.device)?;
    let images =
        encoder::fixed_batch(frozen.channels(), frozen.image_size() as i64).to_device(frozen.device());
    let probabilities = |of: &Classifier| Ok::<_, EvalError>(of.logits(&images)?.softmax(1, Kind::Double));
    let difference = (probabilities(classifier)? - probabilities(&rebuilt)?).abs().max().double_value(&[]);
    if difference > TOLERANCE {
        let reason = format!("its probabilities differ by {difference}, expected at most {TOLERANCE}");
        return Err(EvalError::encoding(format!("`{}`", out.display()), reason));
    }
    write_atomically(out, &bytes)?;
    Ok(Exported {
        path: out.to_owned(),
        bytes: bytes.len() as u64,
        tensors: tensors.len(),
        metadata,
        difference,
    })
}

/// Loads a classifier: a file of [`write_classifier`], or a fine-tuned, supervised or distilled run.
///
/// # Errors
/// A file of another program, or a run without a classifier.
pub fn load_classifier(path: &Path, device: Option<DeviceChoice>) -> Result<Classifier, EvalError> {
    if RunFolder::is_run(path) {
        return Classifier::of_run(&RunFolder::open(path).map_err(Box::new)?, device);
    }
    rebuild(path, &fs_err::read(path)?, device.unwrap_or_default())
}

fn rebuild(path: &Path, bytes: &[u8], device: DeviceChoice) -> Result<Classifier, EvalError> {
    let other = |reason: &str| EvalError::File { path: path.to_owned(), reason: reason.into() };
    let stored = weights::parse(path, bytes)?;
    let classes = stored.metadata(CLASSES).ok_or_else(|| other("not a classifier of `simclr classify`"))?;
    let classes: Vec<String> = serde_json::from_str(classes).map_err(|error| other(&error.to_string()))?;
    let encoder = encoder::rebuild(path, bytes, device)?;
    let count = classes.len() as i64;
    let tensor = |name: &str, shape: &[i64]| Ok::<Tensor, EvalError>(stored.tensor(name, shape)?);
    let weight = tensor(WEIGHT, &[count, encoder.feature_dim()])?;
    let bias = tensor(BIAS, &[count])?;
    Ok(Classifier { encoder, weight, bias, classes })
}
