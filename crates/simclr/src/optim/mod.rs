//! Parameter groups ([`groups`]), update rules (`momentum`: SGD and LARS; `adam`: AdamW and LAMB), learning rate ([`Schedule`]).

mod adam;
pub mod groups;
mod momentum;
mod schedule;

use serde::{Deserialize, Serialize};
use simclr_shim::Rule;
use tch::{Device, Kind, Tensor};

use crate::{
    CheckpointError,
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
    /// How the base is scaled with the batch of N images.
    pub scaling: Scaling,
    /// Weight decay.
    pub weight_decay: f64,
    /// Parameters that it applies to.
    pub decay: Decay,
    /// Momentum of LARS and SGD.
    pub momentum: f64,
    /// Nesterov momentum (SGD, LARS).
    pub nesterov: bool,
    /// LARS trust coefficient (eeta).
    pub trust: f64,
    /// LARS denominator.
    pub lars_norm: LarsNorm,
    /// Where the learning rate enters the momentum buffer (LARS, SGD).
    pub lr_in_momentum: bool,
    /// AdamW and LAMB.
    pub beta1: f64,
    /// AdamW and LAMB.
    pub beta2: f64,
    /// AdamW and LAMB; unset: 1e-8 for AdamW (PyTorch), 1e-6 for LAMB (arXiv 1904.00962).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// LAMB: whether moments are corrected for their zero start (arXiv 1904.00962 v5; v3 and its public ports do not).
    pub lamb_bias_correction: bool,
    /// Linear warm-up, in epochs.
    pub warmup_epochs: f64,
    /// After warm-up.
    pub schedule: ScheduleKind,
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
            trust: 1e-3,
            lars_norm: LarsNorm::Decayed,
            lr_in_momentum: true,
            beta1: 0.9,
            beta2: 0.999,
            eps: None,
            lamb_bias_correction: true,
            warmup_epochs: 10.0,
            schedule: ScheduleKind::Cosine,
        }
    }
}

/// `optim.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimKind {
    /// Layer-wise adaptive rate scaling (docs/method.md 4.1).
    Lars,
    /// Momentum SGD.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
    /// Layer-wise adaptive moments (docs/method.md 4.4).
    Lamb,
}

/// `optim.scaling` (docs/method.md 4.2). B is the number of images of the whole batch, not of views.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// lr * B / 256.
    Linear,
    /// lr * sqrt(B).
    Sqrt,
    /// lr * sqrt(B / 256), for Adam-like rules anchored at 256.
    SqrtOf256,
    /// lr.
    None,
}

/// `optim.lars_norm` (docs/method.md 4.1).
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
    /// Half a cosine to 0 (docs/method.md 4.3).
    Cosine,
    /// Constant.
    Constant,
}

/// An optimizer with its state, over the parameters it was built for.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimConfig,
    slots: Vec<Slot>,
    /// Updates done; Adam's bias correction needs it.
    steps: i64,
    groups: String,
    /// `[parameters]` f64 on the parameters' device: the trust ratios of the last step, NaN where there is none. LARS and LAMB.
    trust_ratios: Option<Tensor>,
    /// What the kernels of a GPU read anew in every step, see [`simclr_shim::Rule::now`].
    now: Option<Tensor>,
}

/// State of one parameter.
#[derive(Debug)]
struct Slot {
    name: String,
    /// Momentum buffer v (SGD, LARS), or first moment m (AdamW, LAMB).
    first: Tensor,
    /// Second moment (AdamW, LAMB).
    second: Option<Tensor>,
}

impl Optimizer {
    /// Zero state for `params`.
    pub fn new(config: &OptimConfig, params: &Params) -> Self {
        let two_moments = matches!(config.kind, OptimKind::Adamw | OptimKind::Lamb);
        let layerwise = matches!(config.kind, OptimKind::Lars | OptimKind::Lamb);
        let slot = |param: &Param| Slot {
            name: param.name.clone(),
            first: param.tensor.zeros_like().detach(),
            second: two_moments.then(|| param.tensor.zeros_like().detach()),
        };
        Self {
            config: config.clone(),
            slots: params.params().iter().map(slot).collect(),
            steps: 0,
            groups: groups::table(config, params),
            trust_ratios: layerwise.then(|| {
                let count = params.params().len() as i64;
                Tensor::full([count], f64::NAN, (Kind::Double, params.device()))
            }),
            now: None,
        }
    }

    /// One update with learning rate `lr` from the parameters' gradients, which are dropped. A parameter without a
    /// gradient stays as it is.
    ///
    /// # Panics
    /// If `params` are not the ones that this optimizer was built for.
    pub fn step(&mut self, params: &Params, lr: f64) {
        if served(params) {
            self.announce(params, lr);
            return self.enqueue(params, None);
        }
        if params.device() != Device::Cpu {
            return self.step_composed(params, lr);
        }
        self.steps += 1;
        let done =
            simclr_shim::optimizer_step(self.rule(lr), &self.parameters(params), self.trust_ratios.as_ref());
        done.unwrap_or_else(|error| panic!("{error}"));
    }

    /// On a GPU with kernels, the first half of [`Optimizer::step`]: tells the device what this step's learning rate is. It is
    /// apart, so that [`Optimizer::enqueue`] can be recorded once and done again for every step.
    pub fn announce(&mut self, params: &Params, lr: f64) {
        self.steps += 1;
        let now = Tensor::from_slice(&self.rule(lr).now());
        let kept = self.now.get_or_insert_with(|| Tensor::zeros([3], (Kind::Double, params.device())));
        kept.copy_(&now);
    }

    /// The second half: has the device update the parameters from their gradients, which are dropped. Nothing is updated
    /// unless `guard` (f64, one number) is finite.
    ///
    /// # Panics
    /// If nothing was announced before, or `params` are not the ones that this optimizer was built for.
    pub fn enqueue(&self, params: &Params, guard: Option<&Tensor>) {
        let now = self.now.as_ref().expect("a step is announced first");
        let done = simclr_shim::gpu_optimizer_step(
            self.rule(0.0),
            &self.parameters(params),
            now,
            guard,
            self.trust_ratios.as_ref(),
        );
        done.unwrap_or_else(|error| panic!("{error}"));
    }

    fn rule(&self, lr: f64) -> Rule {
        match self.config.kind {
            OptimKind::Lars | OptimKind::Sgd => momentum::rule(&self.config, lr),
            OptimKind::Adamw | OptimKind::Lamb => adam::rule(&self.config, lr, self.steps),
        }
    }

    fn parameters<'a>(&'a self, params: &'a Params) -> Vec<simclr_shim::Parameter<'a>> {
        assert_eq!(params.params().len(), self.slots.len(), "one state per parameter");
        let pairs = params.params().iter().zip(&self.slots);
        let parameter = |(param, slot): (&'a Param, &'a Slot)| simclr_shim::Parameter {
            weight: &param.tensor,
            first: &slot.first,
            second: slot.second.as_ref(),
            decayed: self.config.decays(param.role),
            adapted: self.config.adapts(param.role),
        };
        pairs.map(parameter).collect()
    }

    /// [`Optimizer::step`] by libtorch's operations, parameter by parameter, as on devices without kernels.
    ///
    /// # Panics
    /// As there.
    pub fn step_composed(&mut self, params: &Params, lr: f64) {
        assert_eq!(params.params().len(), self.slots.len(), "one state per parameter");
        self.steps += 1;
        let (config, steps) = (&self.config, self.steps);
        tch::no_grad(|| {
            for (index, (param, slot)) in params.params().iter().zip(&mut self.slots).enumerate() {
                let gradient = param.tensor.grad();
                if !gradient.defined() {
                    continue;
                }
                let ratio = match &mut slot.second {
                    None => momentum::update(config, param, &gradient, &mut slot.first, lr),
                    Some(second) => {
                        adam::update(config, param, &gradient, (&mut slot.first, second), lr, steps)
                    }
                };
                if let (Some(ratio), Some(ratios)) = (ratio, &self.trust_ratios) {
                    ratios.select(0, index as i64).copy_(&ratio);
                }
                simclr_shim::drop_gradient(&param.tensor).unwrap_or_else(|error| panic!("{error}"));
            }
        });
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

    /// Puts a state back. `get` answers with a tensor of the wanted name and shape, or says what is wrong.
    ///
    /// # Errors
    /// What `get` said.
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
    /// rules without one. Reads from the device.
    pub fn trust_ratio_range(&self) -> Option<[f64; 2]> {
        let ratios = Vec::<f64>::try_from(self.trust_ratios.as_ref()?.to_device(Device::Cpu)).ok()?;
        let ratios: Vec<f64> = ratios.into_iter().filter(|ratio| !ratio.is_nan()).collect();
        let fold = |start: f64, pick: fn(f64, f64) -> f64| ratios.iter().copied().fold(start, pick);
        (!ratios.is_empty()).then(|| [fold(f64::INFINITY, f64::min), fold(0.0, f64::max)])
    }

    /// One line per parameter group: tensors, numbers, decay, adaptation.
    pub fn group_table(&self) -> &str {
        &self.groups
    }
}

/// Whether the kernels for GPUs work on `params`.
pub fn served(params: &Params) -> bool {
    params.params().first().is_some_and(|param| simclr_shim::gpu::serves(&param.tensor))
}

/// Norm of the gradient of all parameters together, one number back from the device; 0 where there is none.
pub fn gradient_norm(params: &Params) -> f64 {
    let weights: Vec<_> = params.params().iter().map(|param| &param.tensor).collect();
    if params.device() == Device::Cpu && !served(params) {
        return simclr_shim::gradient_norm(&weights).unwrap_or_else(|error| panic!("{error}"));
    }
    if served(params) && weights.iter().any(|weight| weight.grad().defined()) {
        return gradient_norm_on_gpu(params).double_value(&[]);
    }
    let gradients = params.params().iter().map(|param| param.tensor.grad()).filter(Tensor::defined);
    let norms: Vec<Tensor> = gradients.map(|gradient| gradient.norm()).collect();
    if norms.is_empty() {
        return 0.0;
    }
    Tensor::stack(&norms, 0).to_kind(Kind::Double).norm().double_value(&[])
}

/// [`gradient_norm`] on a GPU with kernels, `[]` in f64, without waiting for it.
///
/// # Panics
/// If no parameter has a gradient.
pub fn gradient_norm_on_gpu(params: &Params) -> Tensor {
    let weights: Vec<_> = params.params().iter().map(|param| &param.tensor).collect();
    simclr_shim::gpu_gradient_norm(&weights).unwrap_or_else(|error| panic!("{error}"))
}

/// The layer-wise ratio `numerator / denominator`, 1 where either is not above 0 (a zero-initialised layer must be
/// able to leave zero). No dimension; on the device.
fn ratio_or_one(numerator: &Tensor, denominator: &Tensor) -> Tensor {
    let usable = numerator.gt(0.0).logical_and(&denominator.gt(0.0));
    (numerator / denominator).where_self(&usable, &numerator.ones_like())
}
