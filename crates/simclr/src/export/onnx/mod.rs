//! Export as ONNX: the encoder with the normalisation of its input, for a batch of any size; of a classifier its probabilities, too.

mod convolutional;
mod proto;
mod read;
mod transformer;

use std::{collections::BTreeMap, path::Path};

use proto::{Attribute, Graph};
use simclr_data::output;
use tch::Tensor;

use super::encoder::{self, Exported};
use crate::{
    EvalError, checkpoint::write_atomically, encoder::EncoderConfig, eval::features::FrozenEncoder,
    train::RunFolder,
};

/// Name of the input: f32 `[N, C, S, S]` in `[0, 1]`, and of the outputs.
const INPUT: &str = "images";
const FEATURES: &str = "h";
const PROBABILITIES: &str = "probabilities";

/// Output of [`export_onnx`], and the only kind of file it replaces.
pub const ONNX: output::Kind = output::Kind { name: "an encoder in ONNX", is_earlier: is_onnx };

/// The start of a model of [`Graph::into_model`]: IR version 8, producer `simclr`.
fn is_onnx(path: &Path) -> bool {
    let start = b"\x08\x08\x12\x06simclr";
    let bytes = fs_err::read(path).unwrap_or_default();
    bytes.starts_with(start)
}

/// A network under conversion.
struct Network<'a> {
    graph: Graph,
    config: &'a EncoderConfig,
    tensors: BTreeMap<String, Tensor>,
}

impl Network<'_> {
    fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    fn shape(&self, name: &str) -> Vec<i64> {
        self.tensor(name).size()
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor `name` as a constant of the graph.
    fn parameter(&mut self, name: &str) -> String {
        let Self { graph, tensors, .. } = self;
        graph.constant(name, &tensors[name])
    }

    /// (images - mean) / std.
    fn normalised(&mut self, channels: i64) -> String {
        let per_channel = |values: &[f64], otherwise: f64| {
            let values = if values.is_empty() { vec![otherwise; channels as usize] } else { values.to_vec() };
            Tensor::from_slice(&values).view([1, channels, 1, 1])
        };
        if self.config.input_mean.is_empty() && self.config.input_std.is_empty() {
            return INPUT.to_owned();
        }
        let mean = self.graph.constant("input_mean", &per_channel(&self.config.input_mean, 0.0));
        let std = self.graph.constant("input_std", &per_channel(&self.config.input_std, 1.0));
        let centred = self.graph.node("Sub", &[INPUT, &mean], &[]);
        self.graph.node("Div", &[&centred, &std], &[])
    }
}

/// Writes the encoder `frozen`, and with `classifier` (`[K, F]` and `[K]`) the probabilities of its classes, to `out` (atomically).
///
/// # Errors
/// A TorchScript module, which has no conversion; a file that must not be replaced.
pub fn export_onnx(
    frozen: &FrozenEncoder,
    classifier: Option<(&Tensor, &Tensor)>,
    run: Option<&RunFolder>,
    out: &Path,
) -> Result<Exported, EvalError> {
    let _held = RunFolder::around(out, run).map_err(Box::new)?;
    output::check(out, ONNX, None)?;
    let config = &frozen.config().encoder;
    if let Some(reason) = unsupported(config) {
        return Err(EvalError::File { path: out.to_owned(), reason: reason.into() });
    }
    let metadata = encoder::metadata(frozen);
    let bytes = model(frozen, classifier, &metadata);
    let difference = verify(frozen, &bytes)
        .map_err(|reason| EvalError::encoding(format!("`{}`", out.display()), reason))?;
    write_atomically(out, &bytes)?;
    if fs_err::read(out)? != bytes {
        let reason = "the file read back differs from what was written";
        return Err(EvalError::encoding(format!("`{}`", out.display()), reason));
    }
    let tensors = encoder::tensors(frozen).len();
    Ok(Exported { path: out.to_owned(), bytes: bytes.len() as u64, tensors, metadata, difference })
}

/// Largest difference between features of the encoder and of the model as read back, which has another order of operations.
const TOLERANCE: f64 = 1e-4;

/// Runs the model of `bytes` on a fixed batch and compares its h with that of `frozen`.
fn verify(frozen: &FrozenEncoder, bytes: &[u8]) -> Result<f64, String> {
    let images = encoder::fixed_batch(frozen.channels(), frozen.image_size() as i64);
    let _guard = tch::no_grad_guard();
    let h = read::Model::parse(bytes)?.run((INPUT, &images), FEATURES)?;
    let own = frozen.forward(&images.to_device(frozen.device())).map_err(|error| error.to_string())?;
    let scale = own.abs().max().double_value(&[]).max(1.0);
    let difference = (h - own).abs().max().double_value(&[]) / scale;
    if difference <= TOLERANCE {
        return Ok(difference);
    }
    Err(format!(
        "features of the exported encoder differ by {difference} of the largest, expected at most {TOLERANCE}"
    ))
}

fn unsupported(config: &EncoderConfig) -> Option<&'static str> {
    config.file.is_some().then_some("a TorchScript module has no conversion to ONNX here")
}

fn model(
    frozen: &FrozenEncoder,
    classifier: Option<(&Tensor, &Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let config = &frozen.config().encoder;
    let (channels, side) = (frozen.channels(), frozen.image_size() as i64);
    let mut network = Network { graph: Graph::default(), config, tensors: encoder::tensors(frozen) };
    let x = network.normalised(channels);
    let h = if config.is_vit() {
        network.transformer(&x)
    } else if config.is_resnet() {
        network.resnet(&x, side)
    } else {
        network.small(&x)
    };
    let mut graph = network.graph;
    graph.node_to(FEATURES, "Identity", &[&h], &[]);
    let mut outputs = vec![(FEATURES, frozen.feature_dim())];
    if let Some((weight, bias)) = classifier {
        let (w, b) = (graph.constant("classifier.weight", weight), graph.constant("classifier.bias", bias));
        let logits = graph.node("Gemm", &[FEATURES, &w, &b], &[("transB", Attribute::Int(1))]);
        graph.node_to(PROBABILITIES, "Softmax", &[&logits], &[("axis", Attribute::Int(1))]);
        outputs.push((PROBABILITIES, weight.size()[0]));
    }
    let entries = metadata.iter().map(|(key, value)| (key.clone(), value.clone()));
    graph.into_model((INPUT, &[channels, side, side]), &outputs, entries)
}
