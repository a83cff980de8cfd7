//! The projection head g: h `[B, F]` to z `[B, D]`, discarded after pretraining.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    ModelError,
    device::Precision,
    encoder::{Mode, layers::BatchNorm},
    params::{Params, Role},
};

/// `[head]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeadConfig {
    /// Shape of the head.
    pub kind: HeadKind,
    /// Dense layers of a nonlinear head: 2 (paper v1), 3 (v2).
    pub layers: usize,
    /// Width of hidden layers; 0 = F.
    pub hidden: i64,
    /// Output width D.
    pub out: i64,
    /// Batch norm in the head.
    pub norm: HeadNorm,
    /// Initial weights of its dense layers.
    pub init: HeadInit,
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self {
            kind: HeadKind::Nonlinear,
            layers: 2,
            hidden: 0,
            out: 128,
            norm: HeadNorm::All,
            init: HeadInit::Auto,
        }
    }
}

impl HeadConfig {
    /// `init` with `auto` resolved if it means the same for every dense layer.
    pub fn effective_init(&self) -> HeadInit {
        match self.norm {
            HeadNorm::All | HeadNorm::UnscaledLast => self.init.resolve(true),
            HeadNorm::None => self.init.resolve(false),
            HeadNorm::Hidden => self.init,
        }
    }

    /// Whether a dense layer without a following batch norm is initialised with N(0, 0.01^2), see [`HeadInit`].
    pub fn starts_in_plateau(&self) -> bool {
        let normed = matches!(self.norm, HeadNorm::All | HeadNorm::UnscaledLast);
        self.kind != HeadKind::None && self.init == HeadInit::Official && !normed
    }
}

/// `head.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// z = h.
    None,
    /// One dense layer.
    Linear,
    /// Dense layers with ReLU between.
    Nonlinear,
}

/// `head.norm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadNorm {
    /// After every dense layer, the last one without shift (google-research/simclr `model_util.py`); dense layers
    /// have no bias.
    All,
    /// After every dense layer, the last one without scale and shift (MoCo v3 `builder.py`).
    UnscaledLast,
    /// After hidden layers only; the last dense layer has a bias.
    Hidden,
    /// Nowhere; dense layers have biases (the paper's formula taken literally).
    None,
}

/// `head.init`.
///
/// The scale of a dense layer matters only without a following batch norm. There N(0, 0.01^2) makes z and its gradients so
/// small that ReLUs die: PyTorch with that initialisation stays at chance accuracy for 12 epochs of a setting in which
/// `nn.Linear`'s initialisation learns from the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadInit {
    /// `official` for dense layers followed by batch norm, `linear` for the others.
    Auto,
    /// N(0, 0.01^2), biases 0 (google-research/simclr `model.py` `LinearLayer`).
    Official,
    /// PyTorch's `nn.Linear`: weights and biases uniform in +-1/sqrt(fan-in).
    Linear,
}

impl HeadInit {
    /// Resolves `auto` for a dense layer followed by batch norm (`normed`) or not.
    fn resolve(self, normed: bool) -> Self {
        match self {
            Self::Auto if normed => Self::Official,
            Self::Auto => Self::Linear,
            named => named,
        }
    }

    /// Initial values of shape `shape` for a layer of `fan_in` inputs.
    fn weight(self, params: &Params, shape: [i64; 2]) -> Tensor {
        let count = (shape[0] * shape[1]) as usize;
        match self {
            Self::Linear => uniform(params, count, shape[1]),
            _ => Tensor::from_slice(&params.stream().normals(count)) * 0.01,
        }
        .view(shape)
    }

    fn bias(self, params: &Params, [output, fan_in]: [i64; 2]) -> Tensor {
        match self {
            Self::Linear => uniform(params, output as usize, fan_in),
            _ => Tensor::zeros([output], (Kind::Float, tch::Device::Cpu)),
        }
    }
}

/// `count` draws, uniform in +-1/sqrt(`fan_in`).
fn uniform(params: &Params, count: usize, fan_in: i64) -> Tensor {
    let bound = 1.0 / (fan_in as f32).sqrt();
    let mut stream = params.stream();
    Tensor::from_slice(&(0..count).map(|_| stream.uniform(-bound, bound)).collect::<Vec<f32>>())
}

/// A projection head.
#[derive(Debug)]
pub struct Head {
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    weight: Tensor, // [out, in]
    bias: Option<Tensor>,
    norm: Option<BatchNorm>,
}

impl Head {
    /// Builds the head for features of width `features` under the names `head.{2i}.weight`, `head.{2i}.bias` (dense)
    /// and `head.{2i+1}.*` (batch norm) of layer i.
    pub fn new(config: &HeadConfig, features: i64, params: &mut Params) -> Self {
        let count = match config.kind {
            HeadKind::None => 0,
            HeadKind::Linear => 1,
            HeadKind::Nonlinear => config.layers,
        };
        Self { layers: Self::first_layers(config, (count, count), features, params) }
    }

    /// The first `keep` layers of the projection head (fewer than it has), then a linear classifier of `classes` outputs
    /// under the names `classifier.weight`, `classifier.bias`, initialised to zero as in the official fine-tuning.
    pub fn classifier(
        config: &HeadConfig,
        features: i64,
        keep: usize,
        classes: i64,
        params: &mut Params,
    ) -> Self {
        let mut layers = Self::first_layers(config, (keep, config.layers), features, params);
        let input = layers.last().map_or(features, |layer| layer.weight.size()[0]);
        let options = (Kind::Float, tch::Device::Cpu);
        let weight =
            params.add("classifier.weight", Role::Classifier, Tensor::zeros([classes, input], options));
        let bias = params.add("classifier.bias", Role::Bias, Tensor::zeros([classes], options));
        layers.push(Layer { weight, bias: Some(bias), norm: None });
        Self { layers }
    }

    /// The predictor of MoCo v3: two dense layers from D to `hidden` to D under the names `predictor.*`, with norm and
    /// initialisation of the head.
    pub fn predictor(config: &HeadConfig, hidden: i64, width: i64, params: &mut Params) -> Self {
        let shapes = [[hidden, width], [width, hidden]];
        let layer = |(index, shape): (usize, [i64; 2])| {
            Layer::new(params, ("predictor", index), shape, config, index == 1)
        };
        Self { layers: shapes.into_iter().enumerate().map(layer).collect() }
    }

    /// The first `take` of the `count` layers that the configuration describes.
    fn first_layers(
        config: &HeadConfig,
        (take, count): (usize, usize),
        features: i64,
        params: &mut Params,
    ) -> Vec<Layer> {
        let hidden = if config.hidden > 0 { config.hidden } else { features };
        let mut input = features;
        let mut layers = Vec::new();
        for index in 0..take {
            let last = index + 1 == count;
            let output = if last { config.out } else { hidden };
            layers.push(Layer::new(params, ("head", index), [output, input], config, last));
            input = output;
        }
        layers
    }

    /// A handle to the same parameters.
    pub fn shallow_clone(&self) -> Self {
        Self { layers: self.layers.iter().map(Layer::shallow_clone).collect() }
    }

    /// z `[B, D]` in f32, not normalised.
    ///
    /// # Errors
    /// See [`BatchNorm::forward`].
    pub fn forward(&self, h: &Tensor, mode: &Mode, precision: Precision) -> Result<Tensor, ModelError> {
        let z = self.outputs(h, mode, precision)?.pop();
        Ok(z.unwrap_or_else(|| h.shallow_clone()).to_kind(Kind::Float))
    }

    /// Width of the output of every dense layer.
    pub fn widths(&self) -> Vec<i64> {
        self.layers.iter().map(|layer| layer.weight.size()[0]).collect()
    }

    /// The outputs of all dense layers in f32, after batch norm and, except for the last, ReLU. The last is z.
    ///
    /// # Errors
    /// See [`BatchNorm::forward`].
    pub fn blocks(&self, h: &Tensor, mode: &Mode, precision: Precision) -> Result<Vec<Tensor>, ModelError> {
        let outputs = self.outputs(h, mode, precision)?;
        Ok(outputs.iter().map(|output| output.to_kind(Kind::Float)).collect())
    }

    fn outputs(&self, h: &Tensor, mode: &Mode, precision: Precision) -> Result<Vec<Tensor>, ModelError> {
        let mut outputs: Vec<Tensor> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let relu = index + 1 < self.layers.len();
            outputs.push(layer.forward(outputs.last().unwrap_or(h), relu, mode, precision)?);
        }
        Ok(outputs)
    }
}

impl Layer {
    /// Under the names `{prefix}.{2 index}.*` (dense) and `{prefix}.{2 index + 1}.*` (batch norm).
    fn new(
        params: &mut Params,
        (prefix, index): (&str, usize),
        shape: [i64; 2],
        config: &HeadConfig,
        last: bool,
    ) -> Self {
        let output = shape[0];
        let normed = match config.norm {
            HeadNorm::All | HeadNorm::UnscaledLast => true,
            HeadNorm::Hidden => !last,
            HeadNorm::None => false,
        };
        let (dense, norm_name) = (format!("{prefix}.{}", 2 * index), format!("{prefix}.{}", 2 * index + 1));
        let init = config.init.resolve(normed);
        let initial = init.weight(params, shape);
        let weight = params.add(format!("{dense}.weight"), Role::Weight, initial);
        // Batch norm subtracts the mean, so the preceding dense layer has no bias.
        let bias = (!normed).then(|| {
            let initial = init.bias(params, shape);
            params.add(format!("{dense}.bias"), Role::Bias, initial)
        });
        let norm = match (normed, last) {
            (false, _) => None,
            (true, false) => Some(BatchNorm::new(params, &norm_name, output, 1.0)),
            (true, true) if config.norm == HeadNorm::UnscaledLast => {
                Some(BatchNorm::without_affine(params, &norm_name, output))
            }
            (true, true) => Some(BatchNorm::without_shift(params, &norm_name, output)),
        };
        Self { weight, bias, norm }
    }

    fn shallow_clone(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            norm: self.norm.as_ref().map(BatchNorm::shallow_clone),
        }
    }

    fn forward(
        &self,
        x: &Tensor,
        relu: bool,
        mode: &Mode,
        precision: Precision,
    ) -> Result<Tensor, ModelError> {
        let kind = precision.kind();
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(kind));
        let mut y = x.to_kind(kind).linear(&self.weight.to_kind(kind), bias.as_ref());
        match &self.norm {
            Some(norm) if relu => norm.forward_relu(&y, mode),
            Some(norm) => norm.forward(&y, mode),
            None if relu => Ok(y.relu_()),
            None => Ok(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(kind: HeadKind, layers: usize, norm: HeadNorm) -> (Head, Params) {
        let mut params = Params::new(tch::Device::Cpu, 0);
        let config = HeadConfig { kind, layers, hidden: 5, out: 3, norm, init: HeadInit::Auto };
        (Head::new(&config, 4, &mut params), params)
    }

    /// Which dense layers have a bias and which batch norms a shift, by name.
    #[test]
    fn parameters_of_each_kind() {
        let names = |kind, layers, norm| {
            let (_, params) = built(kind, layers, norm);
            params.params().iter().map(|param| param.name.replace("head.", "")).collect::<Vec<_>>().join(" ")
        };
        use {HeadKind::*, HeadNorm as Norm};
        assert_eq!(names(None, 2, Norm::All), "");
        assert_eq!(names(Linear, 2, Norm::All), "0.weight 1.weight");
        assert_eq!(names(Linear, 2, Norm::Hidden), "0.weight 0.bias");
        assert_eq!(names(Nonlinear, 2, Norm::All), "0.weight 1.weight 1.bias 2.weight 3.weight");
        assert_eq!(names(Nonlinear, 2, Norm::UnscaledLast), "0.weight 1.weight 1.bias 2.weight");
        assert_eq!(names(Nonlinear, 2, Norm::Hidden), "0.weight 1.weight 1.bias 2.weight 2.bias");
        assert_eq!(names(Nonlinear, 2, Norm::None), "0.weight 0.bias 2.weight 2.bias");
        let three = "0.weight 1.weight 1.bias 2.weight 3.weight 3.bias 4.weight 5.weight";
        assert_eq!(names(Nonlinear, 3, Norm::All), three);
    }

    /// SimCLRv2: a classifier on a middle layer of the head keeps the layers below under their names.
    #[test]
    fn classifier_on_a_middle_layer_of_the_head() {
        let mut params = Params::new(tch::Device::Cpu, 0);
        let config = HeadConfig { layers: 3, hidden: 5, out: 3, ..HeadConfig::default() };
        let head = Head::classifier(&config, 4, 1, 7, &mut params);
        let names: Vec<_> = params.params().iter().map(|param| param.name.as_str()).collect();
        assert_eq!(
            names,
            ["head.0.weight", "head.1.weight", "head.1.bias", "classifier.weight", "classifier.bias"]
        );
        let h = crate::test_normals(0, &[6, 4]);
        let logits = head.forward(&h, &Mode::train(), Precision::F32).unwrap();
        assert_eq!((logits.size(), logits.abs().max().double_value(&[])), (vec![6, 7], 0.0));
    }

    #[test]
    fn shapes_and_the_identity() {
        let h = crate::test_normals(0, &[6, 4]);
        let z = |kind, layers| {
            let (head, _) = built(kind, layers, HeadNorm::All);
            head.forward(&h, &Mode::train(), Precision::F32).unwrap()
        };
        assert_eq!(z(HeadKind::None, 2), h, "without a head z is h");
        for (kind, layers) in [(HeadKind::Linear, 1), (HeadKind::Nonlinear, 2), (HeadKind::Nonlinear, 3)] {
            assert_eq!(z(kind, layers).size(), [6, 3], "{kind:?} {layers}");
        }
        let (_, params) = built(HeadKind::Nonlinear, 3, HeadNorm::All);
        let kernels = params.params().iter().filter(|param| param.role == Role::Weight);
        assert_eq!(kernels.map(|kernel| kernel.tensor.size()).collect::<Vec<_>>(), [[5, 4], [5, 5], [3, 5]]);
    }

    /// Moments of the initial weights and biases of every layer, by `head.init` and `head.norm`.
    #[test]
    fn initial_weights_have_the_specified_scale() {
        let spread = |norm, init| {
            let mut params = Params::new(tch::Device::Cpu, 3);
            let config = HeadConfig { hidden: 300, out: 200, norm, init, ..HeadConfig::default() };
            let _ = Head::new(&config, 400, &mut params);
            let dense =
                params.params().iter().filter(|param| matches!(param.role, Role::Weight | Role::Bias));
            dense.map(|param| param.tensor.std(false).double_value(&[])).collect::<Vec<_>>()
        };
        // Uniform in +-b has a deviation of b / sqrt(3).
        let linear = |fan_in: f64| 1.0 / (3.0 * fan_in).sqrt();
        let (first, last) = (linear(400.0), linear(300.0));
        for (norm, init, expected) in [
            (HeadNorm::All, HeadInit::Auto, vec![0.01, 0.01]),
            (HeadNorm::Hidden, HeadInit::Auto, vec![0.01, last, last]),
            (HeadNorm::None, HeadInit::Auto, vec![first, first, last, last]),
            (HeadNorm::None, HeadInit::Official, vec![0.01, 0.0, 0.01, 0.0]),
            (HeadNorm::All, HeadInit::Linear, vec![first, last]),
        ] {
            let found = spread(norm, init);
            assert_eq!(found.len(), expected.len(), "{norm:?} {init:?}");
            // 200 to 120,000 draws: at most 7 % from the expectation.
            let close = |(found, expected): (&f64, &f64)| (found - expected).abs() <= 0.07 * expected;
            assert!(
                found.iter().zip(&expected).all(close),
                "{norm:?} {init:?}: {found:?}, expected {expected:?}"
            );
        }
    }

    /// z = W2 relu(W1 h + b1) + b2, the paper's formula with biases.
    #[test]
    fn head_without_batch_norm_matches_the_formula() {
        let (head, params) = built(HeadKind::Nonlinear, 2, HeadNorm::None);
        for param in params.params() {
            let _ = tch::no_grad(|| param.tensor.shallow_clone().uniform_(-1.0, 1.0));
        }
        let h = crate::test_normals(0, &[6, 4]);
        let weight = |at: usize| &params.params()[at].tensor;
        let hidden = (h.matmul(&weight(0).tr()) + weight(1)).clamp_min(0.0);
        let expected = hidden.matmul(&weight(2).tr()) + weight(3);
        let z = head.forward(&h, &Mode::train(), Precision::F32).unwrap();
        assert!((z - expected).abs().max().double_value(&[]) < 1e-5);
    }
}
