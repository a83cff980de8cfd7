//! Feature sets of the frozen protocols, one row of the table each: the trained encoder, the random-init controls and raw
//! pixels.

use crate::{
    EvalError,
    eval::{
        context::EvalContext,
        features::{FrozenEncoder, pixel_dim},
        layer::Layer,
    },
};

/// Name of the control of a TorchScript module, which contains its own initial weights.
const MODULE: &str = "module as given";

/// Features of one encoder, of several random ones, or raw pixels.
pub(super) struct FeatureSet {
    pub(super) name: String,
    pub(super) dimensions: i64,
    /// Whether these are the features of the evaluated encoder.
    pub(super) is_trained: bool,
    pub(super) columns: Vec<FeatureColumn>,
}

/// Features of one encoder.
pub(super) struct FeatureColumn {
    /// Index among the extracted features: trained encoder, controls, pixels.
    pub(super) index: usize,
    /// First dimension of the layer.
    pub(super) offset: i64,
    /// Weights and layer.
    pub(super) identity: String,
}

/// Every layer of the trained encoder, then of the controls, then raw pixels.
pub(super) fn feature_sets(context: &EvalContext<'_>) -> Result<Vec<FeatureSet>, EvalError> {
    let layers = Layers::of(context)?;
    let trained = std::slice::from_ref(context.encoder);
    let all = 0..layers.0.len();
    let mut sets: Vec<FeatureSet> = all.clone().map(|at| layers.set("trained ", at, trained, 0)).collect();
    if !context.controls.is_empty() {
        let scripted = context.encoder.config().encoder.file.is_some();
        sets.extend(all.map(|at| match (scripted, layers.0[at].0) {
            (true, Layer::H) => FeatureSet { name: MODULE.into(), ..layers.set("", at, context.controls, 1) },
            (true, _) => layers.set(&format!("{MODULE}, "), at, context.controls, 1),
            (false, _) => layers.set("random-init ", at, context.controls, 1),
        }));
    }
    sets.push(raw_pixels(context));
    Ok(sets)
}

fn raw_pixels(context: &EvalContext<'_>) -> FeatureSet {
    let column = FeatureColumn { index: 1 + context.controls.len(), offset: 0, identity: "pixels".into() };
    let dimensions = pixel_dim(context.encoder);
    FeatureSet { name: "raw pixels".into(), dimensions, is_trained: false, columns: vec![column] }
}

/// The evaluated layers with their widths.
struct Layers(Vec<(Layer, i64)>);

impl Layers {
    fn of(context: &EvalContext<'_>) -> Result<Self, EvalError> {
        let width = |&layer: &Layer| Ok((layer, context.encoder.layer_dim(layer)?));
        Ok(Self(context.config.layers.iter().map(width).collect::<Result<_, EvalError>>()?))
    }

    /// Layer number `at` of `encoders`; its extracted features start at index `first`.
    fn set(&self, prefix: &str, at: usize, encoders: &[FrozenEncoder], first: usize) -> FeatureSet {
        let (layer, dimensions) = self.0[at];
        let offset = self.0[..at].iter().map(|(_, width)| width).sum();
        let suffix = if layer == Layer::H { String::new() } else { format!(", {layer}") };
        let column = |(at, encoder): (usize, &FrozenEncoder)| FeatureColumn {
            index: first + at,
            offset,
            identity: encoder.fingerprint() + &suffix,
        };
        let columns = encoders.iter().enumerate().map(column).collect();
        FeatureSet { name: format!("{prefix}{layer}"), dimensions, is_trained: first == 0, columns }
    }
}
