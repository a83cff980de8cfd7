//! An optimizer step on a GPU over all parameters at once (C++ side: `optimizer.cpp`).

use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check};

/// A leaf tensor and its optimizer state, all `f32` on one device and in one memory layout.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// The leaf.
    pub weight: &'a Tensor,
    /// Momentum buffer, or Adam's first moment.
    pub first: &'a Tensor,
    /// Adam's second moment.
    pub second: Option<&'a Tensor>,
    /// Whether weight decay applies.
    pub decayed: bool,
    /// Whether layer-wise rules (LARS, LAMB) scale its step by the trust ratio.
    pub adapted: bool,
}

/// An update rule; its formulas: `gpu/optimizer.h`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Momentum SGD, or LARS.
    Momentum {
        /// Weight decay of [`Parameter::decayed`], added to the gradient.
        decay: f64,
        /// Momentum coefficient.
        momentum: f64,
        /// Nesterov momentum.
        nesterov: bool,
        /// Whether the learning rate multiplies the gradient before it enters the buffer, or the buffer.
        lr_in_momentum: bool,
        /// Present for LARS.
        trust: Option<Trust>,
    },
    /// AdamW, or LAMB.
    Adam {
        /// Decoupled weight decay of [`Parameter::decayed`].
        decay: f64,
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the denominator.
        eps: f64,
        /// Whether the moments are divided by 1 - beta^steps.
        bias_correction: bool,
        /// Present for LAMB: the upper bound of the weight's norm.
        max_norm: Option<f64>,
    },
}

/// Trust ratio of LARS: `coefficient * |w| / |g + decay w|`, or `coefficient * |w| / (|g| + decay |w|)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trust {
    /// `eeta`.
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
    decay: f64,
    momentum: f64,
    trust: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    max_norm: f64,
}

unsafe extern "C" {
    fn simclr_gpu_optimizer_step(
        rule: *const CRule,
        parameters: *const CParameter,
        count: usize,
        scalars: *const C_tensor,
        guard: *const C_tensor,
        trust_ratios: *const C_tensor,
    ) -> *mut c_char;
    fn simclr_gpu_gradient_norm(
        weights: *const *const C_tensor,
        count: usize,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

impl Rule {
    /// What changes from step to step: the learning rate, and Adam's 1 - beta^steps for both betas. `steps` counts from 1.
    pub fn step_scalars(self, lr: f64, steps: i64) -> [f64; 3] {
        match self {
            Self::Adam { beta1, beta2, bias_correction: true, .. } => {
                [lr, 1.0 - beta1.powf(steps as f64), 1.0 - beta2.powf(steps as f64)]
            }
            _ => [lr, 1.0, 1.0],
        }
    }

    fn to_c(self) -> CRule {
        match self {
            Self::Momentum { decay, momentum, nesterov, lr_in_momentum, trust } => CRule {
                layerwise: c_int::from(trust.is_some()),
                nesterov: c_int::from(nesterov),
                lr_in_momentum: c_int::from(lr_in_momentum),
                separate_norms: c_int::from(trust.is_some_and(|trust| trust.separate_norms)),
                trust: trust.map_or(0.0, |trust| trust.coefficient),
                decay,
                momentum,
                ..CRule::default()
            },
            Self::Adam { decay, beta1, beta2, eps, max_norm, .. } => CRule {
                adam: 1,
                layerwise: c_int::from(max_norm.is_some()),
                max_norm: max_norm.unwrap_or_default(),
                decay,
                beta1,
                beta2,
                eps,
                ..CRule::default()
            },
        }
    }
}

/// Updates every parameter that has a gradient, in place, and drops the gradient. Asynchronous; the device must have kernels
/// ([`crate::gpu::kernels_available`]).
///
/// `scalars` is [`Rule::step_scalars`] on the device. Nothing is updated unless `guard` (`f64` scalar) is finite. `trust_ratios`
/// (`[parameters]` `f64`, on the device) receives the ratio of every adapted parameter under LARS and LAMB, in the order of the
/// parameters that have a gradient.
///
/// # Errors
/// A tensor that is not `f32` on its weight's device and in its layout.
pub fn gpu_optimizer_step(
    rule: Rule,
    parameters: &[Parameter],
    scalars: &Tensor,
    guard: Option<&Tensor>,
    trust_ratios: Option<&Tensor>,
) -> Result<(), ShimError> {
    let (parameters, guard) = (to_c(parameters), guard.map_or(std::ptr::null(), Tensor::as_ptr));
    let (rule, count) = (rule.to_c(), parameters.len());
    let ratios = trust_ratios.map_or(std::ptr::null(), Tensor::as_ptr);
    // SAFETY: the tensors are borrowed for the call; libtorch frees memory that the kernels read later in stream order.
    check(unsafe {
        simclr_gpu_optimizer_step(&rule, parameters.as_ptr(), count, scalars.as_ptr(), guard, ratios)
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

/// Norm of the gradients of all `weights` together: `[]` in `f64`, on the device, which must have kernels
/// ([`crate::gpu::kernels_available`]). Asynchronous.
///
/// # Errors
/// A gradient that is not `f32` on its weight's device; no gradient at all.
pub fn gpu_gradient_norm(weights: &[&Tensor]) -> Result<Tensor, ShimError> {
    let weights: Vec<_> = weights.iter().map(|weight| weight.as_ptr()).collect();
    let mut norm = std::ptr::null_mut();
    // SAFETY: the tensors are borrowed for the call; `norm` is an owned tensor on success.
    unsafe {
        check(simclr_gpu_gradient_norm(weights.as_ptr(), weights.len(), &mut norm))?;
        Ok(Tensor::from_ptr(norm))
    }
}
