//! Parameter groups ([`groups`]), update rules (`momentum`: SGD and LARS; `adam`: AdamW and LAMB), learning rate ([`Schedule`]).
//!
//! An update rule is a function over ATen operations in a file of its own, and one of the GPU kernels of `simclr-shim`.

mod adam;
pub mod groups;
mod momentum;
mod muon;
mod schedule;

use serde::{Deserialize, Serialize};
use simclr_shim::Rule;
use tch::{Device, Kind, Tensor};

use crate::{
    CheckpointError, ModelError,
    device::Precision,
    params::{Param, Params},
};

pub use groups::Decay;
pub use schedule::Schedule;

/// `[optim]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Update rule.
    pub kind: OptimKind,
    /// Base learning rate, before scaling.
    pub lr: f64,
    /// Scaling of `lr` with the batch size.
    pub scaling: Scaling,
    /// Weight decay.
    pub weight_decay: f64,
    /// Parameters that weight decay applies to.
    pub decay: Decay,
    /// Momentum of LARS, SGD and Muon.
    pub momentum: f64,
    /// Nesterov momentum (SGD, LARS, Muon).
    pub nesterov: bool,
    /// Factor of the ratio of weight to gradient norm in LARS (eeta of You et al. 2017, arXiv 1708.03888).
    #[serde(alias = "trust")]
    pub lars_trust_coefficient: f64,
    /// LARS denominator.
    pub lars_norm: LarsNorm,
    /// Whether the learning rate multiplies the gradient before it enters the momentum buffer, or the buffer (LARS, SGD).
    pub lr_in_momentum: bool,
    /// Decay of the first moment (AdamW, LAMB; Muon's parameters that are no matrices).
    pub beta1: f64,
    /// Decay of the second moment (AdamW, LAMB).
    pub beta2: f64,
    /// AdamW and LAMB; unset: 1e-8 for AdamW (PyTorch), 1e-6 for LAMB (arXiv 1904.00962).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// LAMB: bias correction of the moments (arXiv 1904.00962 v5; not in v3 and its public ports).
    pub lamb_bias_correction: bool,
    /// Linear warm-up, in epochs. If it is not set, `pretrain` gives a run of fewer than 100 epochs a tenth of them.
    pub warmup_epochs: f64,
    /// Schedule after warm-up.
    pub schedule: ScheduleKind,
    /// `steps`: epochs after which the learning rate is multiplied by `milestone_factor`, in rising order.
    pub milestones: Vec<f64>,
    /// `steps`: see `milestones`.
    pub milestone_factor: f64,
    /// `stable-decay`: last share of the steps, during which the learning rate falls linearly to 0.
    pub decay_share: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            kind: OptimKind::Lars,
            lr: 0.3,
            scaling: Scaling::Linear,
            weight_decay: 1e-6,
            decay: Decay::default(),
            momentum: 0.9,
            nesterov: false,
            lars_trust_coefficient: 1e-3,
            lars_norm: LarsNorm::Decayed,
            lr_in_momentum: true,
            beta1: 0.9,
            beta2: 0.999,
            eps: None,
            lamb_bias_correction: true,
            warmup_epochs: 10.0,
            schedule: ScheduleKind::Cosine,
            milestones: Vec::new(),
            milestone_factor: 0.1,
            decay_share: 0.3,
        }
    }
}

/// `optim.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimKind {
    /// Layer-wise adaptive rate scaling (arXiv 1708.03888).
    Lars,
    /// Momentum SGD.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
    /// Layer-wise adaptive moments (arXiv 1904.00962).
    Lamb,
    /// Orthogonalised momentum for weights, AdamW for the rest (github.com/KellerJordan/Muon).
    Muon,
}

/// `optim.scaling`. B is the number of images, not views, of the whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// lr * B / 256.
    Linear,
    /// lr * sqrt(B).
    Sqrt,
    /// lr * sqrt(B / 256).
    SqrtOf256,
    /// lr.
    None,
}

/// `optim.lars_norm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LarsNorm {
    /// |g + wd * w| (google-research/simclr `lars_optimizer.py`).
    Decayed,
    /// |g| + wd * |w| (LARS paper; lightly, solo-learn).
    Separate,
}

/// `optim.schedule`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// Half a cosine to 0.
    Cosine,
    /// A line to 0.
    Linear,
    /// Constant, then a line to 0 (`optim.decay_share`).
    StableDecay,
    /// Constant.
    Constant,
    /// Multiplied by a factor at milestones (MoCo, arXiv 1911.05722, section 4.1: 0.1 at epochs 120 and 160).
    Steps,
}

/// An optimizer with its state, for one set of parameters.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimConfig,
    precision: Precision,
    slots: Vec<Slot>,
    /// Updates done, for Adam's bias correction.
    steps: i64,
    groups: String,
    /// `[parameters]` f64 on the parameters' device: the trust ratios of the last step, NaN without one. LARS and LAMB.
    trust_ratios: Option<Tensor>,
    /// Input of the GPU kernels, see [`Rule::step_scalars`].
    step_scalars: Option<Tensor>,
}

/// State of one parameter.
#[derive(Debug)]
struct Slot {
    name: String,
    /// Momentum buffer v (SGD, LARS, Muon), or first moment m (AdamW, LAMB).
    first: Tensor,
    /// Second moment (AdamW, LAMB; Muon's parameters that are updated by AdamW).
    second: Option<Tensor>,
}

impl Optimizer {
    /// Zero state for `params`.
    pub fn new(config: &OptimConfig, params: &Params) -> Self {
        let layerwise = matches!(config.kind, OptimKind::Lars | OptimKind::Lamb);
        let slot = |param: &Param| Slot {
            name: param.name.clone(),
            first: param.tensor.zeros_like().detach(),
            second: has_two_moments(config, param).then(|| param.tensor.zeros_like().detach()),
        };
        Self {
            config: config.clone(),
            precision: Precision::F32,
            slots: params.params().iter().map(slot).collect(),
            steps: 0,
            groups: groups::table(config, params),
            trust_ratios: layerwise.then(|| {
                let count = params.params().len() as i64;
                Tensor::full([count], f64::NAN, (Kind::Double, params.device()))
            }),
            step_scalars: None,
        }
    }

    /// Sets the precision of Muon's products on a CPU, which is f32 otherwise. On a GPU they are in bf16.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Updates `params` from their gradients, which are dropped. A parameter without a gradient is not changed.
    ///
    /// # Errors
    /// libtorch or CUDA errors.
    ///
    /// # Panics
    /// If `params` are not those of [`Optimizer::new`].
    pub fn step(&mut self, params: &Params, lr: f64) -> Result<(), ModelError> {
        if kernels_available(params) {
            self.set_step_scalars(params, lr)?;
            return self.launch_step(params, None);
        }
        self.step_via_aten(params, lr)
    }

    /// Writes the scalars of the next step (learning rate, bias corrections) to device memory. Separate from
    /// [`Optimizer::launch_step`], so that the latter can be captured in a CUDA graph. Does not wait for the device.
    ///
    /// # Errors
    /// CUDA errors.
    pub fn set_step_scalars(&mut self, params: &Params, lr: f64) -> Result<(), ModelError> {
        self.steps += 1;
        let device = params.device();
        let scalars = simclr_shim::upload(&self.rule().step_scalars(lr, self.steps), device)?;
        self.step_scalars.get_or_insert_with(|| Tensor::zeros([3], (Kind::Double, device))).copy_(&scalars);
        Ok(())
    }

    /// [`Optimizer::step`] by the GPU kernels with the scalars of [`Optimizer::set_step_scalars`]. Nothing is updated unless
    /// `guard` (f64 scalar) is finite.
    ///
    /// # Errors
    /// CUDA errors.
    ///
    /// # Panics
    /// Without step scalars, or if `params` are not those of [`Optimizer::new`].
    pub fn launch_step(&self, params: &Params, guard: Option<&Tensor>) -> Result<(), ModelError> {
        let scalars = self.step_scalars.as_ref().expect("set_step_scalars comes first");
        let (parameters, ratios) = (self.parameters(params), self.trust_ratios.as_ref());
        simclr_shim::gpu_optimizer_step(self.rule(), &parameters, scalars, guard, ratios)?;
        let _no_grad = tch::no_grad_guard();
        self.update_matrices(params, &scalars.get(0), guard)
    }

    /// Updates what [`muon::orthogonalizes`] and drops its gradients.
    fn update_matrices(
        &self,
        params: &Params,
        lr: &Tensor,
        guard: Option<&Tensor>,
    ) -> Result<(), ModelError> {
        let mut weights = Vec::new();
        let pairs = params.params().iter().zip(&self.slots);
        for (param, slot) in pairs.filter(|(param, _)| muon::orthogonalizes(&self.config, param)) {
            let gradient = param.tensor.grad();
            if gradient.defined() {
                simclr_shim::drop_gradient(&param.tensor)?;
                weights.push(muon::Weight {
                    value: param.tensor.shallow_clone(),
                    gradient,
                    velocity: slot.first.shallow_clone(),
                    decay: self.config.decay_of(param.role),
                });
            }
        }
        let step = muon::Step {
            momentum: self.config.momentum,
            nesterov: self.config.nesterov,
            precision: self.precision,
            lr: lr.shallow_clone(),
            guard: guard.map(Tensor::shallow_clone),
        };
        Ok(muon::update(&step, weights)?)
    }

    fn rule(&self) -> Rule {
        match self.config.kind {
            OptimKind::Lars | OptimKind::Sgd => momentum::rule(&self.config),
            OptimKind::Adamw | OptimKind::Lamb | OptimKind::Muon => adam::rule(&self.config),
        }
    }

    /// What the GPU kernels update: all but [`Optimizer::update_matrices`].
    fn parameters<'a>(&'a self, params: &'a Params) -> Vec<simclr_shim::Parameter<'a>> {
        assert_eq!(params.params().len(), self.slots.len(), "one state per parameter");
        let pairs = params.params().iter().zip(&self.slots);
        let pairs = pairs.filter(|(param, _)| !muon::orthogonalizes(&self.config, param));
        let parameter = |(param, slot): (&'a Param, &'a Slot)| simclr_shim::Parameter {
            weight: &param.tensor,
            first: &slot.first,
            second: slot.second.as_ref(),
            decayed: self.config.decays(param.role),
            adapted: self.config.adapts(param.role),
        };
        pairs.map(parameter).collect()
    }

    /// [`Optimizer::step`] by ATen operations, parameter by parameter, on any device.
    ///
    /// # Errors
    /// libtorch errors.
    ///
    /// # Panics
    /// If `params` are not those of [`Optimizer::new`].
    pub fn step_via_aten(&mut self, params: &Params, lr: f64) -> Result<(), ModelError> {
        assert_eq!(params.params().len(), self.slots.len(), "one state per parameter");
        self.steps += 1;
        let _no_grad = tch::no_grad_guard();
        self.update_matrices(params, &Tensor::from(lr), None)?;
        for (index, (param, slot)) in params.params().iter().zip(&mut self.slots).enumerate() {
            let gradient = param.tensor.grad();
            if !gradient.defined() {
                continue;
            }
            let ratio = match &mut slot.second {
                None => momentum::update(&self.config, param, &gradient, &mut slot.first, lr),
                Some(second) => {
                    let moments = (&mut slot.first, second);
                    adam::update(&self.config, param, &gradient, moments, lr, self.steps)
                }
            };
            if let (Some(ratio), Some(ratios)) = (ratio, &self.trust_ratios) {
                ratios.select(0, index as i64).copy_(&ratio);
            }
            simclr_shim::drop_gradient(&param.tensor)?;
        }
        Ok(())
    }

    /// State by name (`optim.first.encoder.conv1.weight`, ...), for checkpoints.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = vec![("optim.steps".to_owned(), Tensor::from_slice(&[self.steps]))];
        for slot in &self.slots {
            state.push((format!("optim.first.{}", slot.name), slot.first.shallow_clone()));
            let second = slot.second.as_ref();
            state
                .extend(second.map(|second| (format!("optim.second.{}", slot.name), second.shallow_clone())));
        }
        state
    }

    /// Restores a state. `get` returns the tensor of a name and shape.
    ///
    /// # Errors
    /// Errors of `get`.
    pub fn load_state(
        &mut self,
        get: &dyn Fn(&str, &[i64]) -> Result<Tensor, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        self.steps = get("optim.steps", &[1])?.int64_value(&[0]);
        for slot in &mut self.slots {
            let first = get(&format!("optim.first.{}", slot.name), &slot.first.size())?;
            slot.first.copy_(&first);
            if let Some(second) = &mut slot.second {
                second.copy_(&get(&format!("optim.second.{}", slot.name), &second.size())?);
            }
        }
        Ok(())
    }

    /// Smallest and largest trust ratio of the last step over the adapted parameters; `None` before the first step, and for
    /// rules without one. Synchronises with the device.
    pub fn trust_ratio_range(&self) -> Option<[f64; 2]> {
        let ratios = Vec::<f64>::try_from(self.trust_ratios.as_ref()?.to_device(Device::Cpu)).ok()?;
        let ratios: Vec<f64> = ratios.into_iter().filter(|ratio| !ratio.is_nan()).collect();
        let fold = |start: f64, pick: fn(f64, f64) -> f64| ratios.iter().copied().fold(start, pick);
        (!ratios.is_empty()).then(|| [fold(f64::INFINITY, f64::min), fold(0.0, f64::max)])
    }

    /// One line per parameter group: tensors, parameters, decay, adaptation.
    pub fn group_table(&self) -> &str {
        &self.groups
    }
}

fn has_two_moments(config: &OptimConfig, param: &Param) -> bool {
    match config.kind {
        OptimKind::Adamw | OptimKind::Lamb => true,
        OptimKind::Muon => !muon::orthogonalizes(config, param),
        OptimKind::Lars | OptimKind::Sgd => false,
    }
}

/// Whether there are GPU kernels for the device of `params`.
pub fn kernels_available(params: &Params) -> bool {
    params.params().first().is_some_and(|param| simclr_shim::gpu::kernels_available(&param.tensor))
}

/// Norm of the gradients of all parameters together, 0 without gradients. Synchronises with the device.
///
/// # Errors
/// CUDA errors.
pub fn gradient_norm(params: &Params) -> Result<f64, ModelError> {
    let gradients = params.params().iter().map(|param| param.tensor.grad()).filter(Tensor::defined);
    let gradients: Vec<Tensor> = gradients.collect();
    if gradients.is_empty() {
        return Ok(0.0);
    }
    if kernels_available(params) {
        return Ok(gradient_norm_on_gpu(params)?.double_value(&[]));
    }
    let norms: Vec<Tensor> = gradients.iter().map(Tensor::norm).collect();
    Ok(Tensor::stack(&norms, 0).to_kind(Kind::Double).norm().double_value(&[]))
}

/// [`gradient_norm`] by the GPU kernels: `[]` in f64 on the device, without synchronisation.
///
/// # Errors
/// CUDA errors; no parameter has a gradient.
pub fn gradient_norm_on_gpu(params: &Params) -> Result<Tensor, ModelError> {
    let weights: Vec<_> = params.params().iter().map(|param| &param.tensor).collect();
    Ok(simclr_shim::gpu_gradient_norm(&weights)?)
}

/// The layer-wise ratio `numerator / denominator`, 1 unless both are positive (a zero-initialised layer must be able to leave
/// zero). A scalar on the device.
fn ratio_or_one(numerator: &Tensor, denominator: &Tensor) -> Tensor {
    let usable = numerator.gt(0.0).logical_and(&denominator.gt(0.0));
    (numerator / denominator).where_self(&usable, &numerator.ones_like())
}
