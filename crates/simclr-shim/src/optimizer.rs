//! An optimizer step over all parameters at once (C++ side: `optimizer.cpp` for the CPU, `optimizer_gpu.cpp`).

use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check};

/// A leaf tensor and its state, all `f32` on the CPU.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// The leaf, whose gradient is used.
    pub weight: &'a Tensor,
    /// Momentum buffer (momentum rules), or first moment (Adam's).
    pub first: &'a Tensor,
    /// Second moment (Adam's rules).
    pub second: Option<&'a Tensor>,
    /// Whether weight decay applies.
    pub decayed: bool,
    /// Whether layer-wise rules (LARS, LAMB) scale its step by the trust ratio.
    pub adapted: bool,
}

/// An update rule with this step's learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Momentum SGD, or LARS.
    Momentum {
        /// Learning rate.
        lr: f64,
        /// Weight decay of [`Parameter::decayed`], added to the gradient.
        decay: f64,
        /// Share of the buffer that stays.
        momentum: f64,
        /// Nesterov momentum.
        nesterov: bool,
        /// Whether the buffer holds steps (learning rate included) or gradients.
        lr_in_momentum: bool,
        /// LARS.
        trust: Option<Trust>,
    },
    /// AdamW, or LAMB.
    Adam {
        /// Learning rate.
        lr: f64,
        /// Decoupled weight decay of [`Parameter::decayed`].
        decay: f64,
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the denominator.
        eps: f64,
        /// Updates done, this one included.
        steps: i64,
        /// Whether the moments are divided by 1 - beta^steps.
        bias_correction: bool,
        /// LAMB: the upper bound of the weight's norm.
        max_norm: Option<f64>,
    },
}

/// How LARS sets the step of a layer: `coefficient * |w| / |g + decay w|`, or `/ (|g| + decay |w|)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trust {
    /// eeta.
    pub coefficient: f64,
    /// The second denominator.
    pub separate_norms: bool,
}

#[repr(C)]
struct CParameter {
    weight: *const C_tensor,
    first: *const C_tensor,
    second: *const C_tensor,
    decayed: c_int,
    adapted: c_int,
}

#[repr(C)]
#[derive(Default)]
struct CRule {
    adam: c_int,
    layerwise: c_int,
    nesterov: c_int,
    lr_in_momentum: c_int,
    separate_norms: c_int,
    bias_correction: c_int,
    lr: f64,
    decay: f64,
    momentum: f64,
    trust: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    max_norm: f64,
    steps: i64,
}

unsafe extern "C" {
    fn simclr_optimizer_step(
        rule: *const CRule,
        parameters: *const CParameter,
        count: usize,
        trust_ratios: *const C_tensor,
    ) -> *mut c_char;
    fn simclr_gradient_norm(weights: *const *const C_tensor, count: usize, out: *mut f64) -> *mut c_char;
    fn simclr_gpu_optimizer_step(
        rule: *const CRule,
        parameters: *const CParameter,
        count: usize,
        now: *const C_tensor,
        guard: *const C_tensor,
        trust_ratios: *const C_tensor,
    ) -> *mut c_char;
    fn simclr_gpu_gradient_norm(
        weights: *const *const C_tensor,
        count: usize,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn simclr_drop_gradient(weight: *const C_tensor) -> *mut c_char;
}

impl Rule {
    /// What changes from step to step: the learning rate, and Adam's 1 - beta^steps for both betas.
    pub fn now(self) -> [f64; 3] {
        match self {
            Self::Momentum { lr, .. } | Self::Adam { lr, bias_correction: false, .. } => [lr, 1.0, 1.0],
            Self::Adam { lr, beta1, beta2, steps, .. } => {
                let steps = steps as f64;
                [lr, 1.0 - beta1.powf(steps), 1.0 - beta2.powf(steps)]
            }
        }
    }

    fn to_c(self) -> CRule {
        match self {
            Self::Momentum { lr, decay, momentum, nesterov, lr_in_momentum, trust } => CRule {
                layerwise: c_int::from(trust.is_some()),
                nesterov: c_int::from(nesterov),
                lr_in_momentum: c_int::from(lr_in_momentum),
                separate_norms: c_int::from(trust.is_some_and(|trust| trust.separate_norms)),
                trust: trust.map_or(0.0, |trust| trust.coefficient),
                lr,
                decay,
                momentum,
                ..CRule::default()
            },
            Self::Adam { lr, decay, beta1, beta2, eps, steps, bias_correction, max_norm } => CRule {
                adam: 1,
                bias_correction: c_int::from(bias_correction),
                layerwise: c_int::from(max_norm.is_some()),
                max_norm: max_norm.unwrap_or_default(),
                lr,
                decay,
                beta1,
                beta2,
                eps,
                steps,
                ..CRule::default()
            },
        }
    }
}

/// Updates every parameter that has a gradient, in place, and drops the gradient. The result is independent of the number of
/// threads. `trust_ratios` (`[parameters]` `f64`, on the CPU) receives the ratio of every adapted parameter under LARS and LAMB.
///
/// # Errors
/// A tensor that is not `f32` on the CPU, or not laid out like its weight.
pub fn optimizer_step(
    rule: Rule,
    parameters: &[Parameter],
    trust_ratios: Option<&Tensor>,
) -> Result<(), ShimError> {
    let parameters = to_c(parameters);
    let (rule, ratios) = (rule.to_c(), trust_ratios.map_or(std::ptr::null(), Tensor::as_ptr));
    // SAFETY: the tensors are borrowed for the call.
    check(unsafe { simclr_optimizer_step(&rule, parameters.as_ptr(), parameters.len(), ratios) })
}

/// [`optimizer_step`] where [`crate::gpu::serves`] the parameters; comes back before it is done, as operations on GPUs do.
///
/// What changes from step to step is read on the device, from `now` (three `f64`): see [`Rule::now`]. Nothing is updated unless
/// `guard` (`f64`, one number) is finite. `trust_ratios` (`[parameters]` `f64`, on the device) as in [`optimizer_step`], in the order
/// of the parameters that have a gradient.
///
/// # Errors
/// A tensor that is not `f32` on its weight's device, or not laid out like it.
pub fn gpu_optimizer_step(
    rule: Rule,
    parameters: &[Parameter],
    now: &Tensor,
    guard: Option<&Tensor>,
    trust_ratios: Option<&Tensor>,
) -> Result<(), ShimError> {
    let (parameters, guard) = (to_c(parameters), guard.map_or(std::ptr::null(), Tensor::as_ptr));
    let (rule, count) = (rule.to_c(), parameters.len());
    let ratios = trust_ratios.map_or(std::ptr::null(), Tensor::as_ptr);
    // SAFETY: the tensors are borrowed for the call; what the kernels read later libtorch frees in the stream's order.
    check(unsafe {
        simclr_gpu_optimizer_step(&rule, parameters.as_ptr(), count, now.as_ptr(), guard, ratios)
    })
}

fn to_c(parameters: &[Parameter]) -> Vec<CParameter> {
    let parameter = |parameter: &Parameter| CParameter {
        weight: parameter.weight.as_ptr(),
        first: parameter.first.as_ptr(),
        second: parameter.second.map_or(std::ptr::null(), Tensor::as_ptr),
        decayed: c_int::from(parameter.decayed),
        adapted: c_int::from(parameter.adapted),
    };
    parameters.iter().map(parameter).collect()
}

/// [`gradient_norm`] where [`crate::gpu::serves`] the weights: `[]` in `f64`, on the device.
///
/// # Errors
/// A gradient that is not `f32` on its weight's device; none at all.
pub fn gpu_gradient_norm(weights: &[&Tensor]) -> Result<Tensor, ShimError> {
    let weights: Vec<_> = weights.iter().map(|weight| weight.as_ptr()).collect();
    let mut norm = std::ptr::null_mut();
    // SAFETY: the tensors are borrowed for the call; `norm` is an owned tensor on success.
    unsafe {
        check(simclr_gpu_gradient_norm(weights.as_ptr(), weights.len(), &mut norm))?;
        Ok(Tensor::from_ptr(norm))
    }
}

/// Norm of the gradients of `weights` (CPU, `f32`) together; those without one count nothing.
///
/// # Errors
/// A gradient that is not `f32` on the CPU.
pub fn gradient_norm(weights: &[&Tensor]) -> Result<f64, ShimError> {
    let weights: Vec<_> = weights.iter().map(|weight| weight.as_ptr()).collect();
    let mut norm = f64::NAN;
    // SAFETY: the tensors are borrowed for the call; `norm` is written on success.
    check(unsafe { simclr_gradient_norm(weights.as_ptr(), weights.len(), &mut norm) })?;
    Ok(norm)
}

/// Forgets the gradient of `weight`, which frees its memory until the next backward pass.
///
/// # Errors
/// What libtorch said.
pub fn drop_gradient(weight: &Tensor) -> Result<(), ShimError> {
    // SAFETY: the tensor is borrowed for the call.
    check(unsafe { simclr_drop_gradient(weight.as_ptr()) })
}
