//! Batch norm as one node of the autograd graph, with statistics that may be all-reduced (C++ side: `batch_norm.cpp`).

use std::{
    any::Any,
    ffi::{CString, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check, message, take, text};

/// Sums an `f32` vector over all participants, in place. A panic becomes an error of the calling pass.
pub type Sum = Arc<dyn Fn(&Tensor) + Send + Sync>;

/// Parameters and running statistics of a batch norm over C channels, each `[C]` in `f32`.
#[derive(Debug)]
pub struct BatchNorm<'a> {
    /// gamma.
    pub scale: &'a Tensor,
    /// beta.
    pub shift: &'a Tensor,
    /// Running mean.
    pub running_mean: &'a Tensor,
    /// Running mean of the unbiased variance.
    pub running_var: &'a Tensor,
    /// Added to the variance.
    pub epsilon: f64,
}

/// Statistics used to normalise.
#[derive(Clone)]
pub enum Statistics {
    /// The running statistics, which are not modified.
    Running,
    /// Statistics of the batch.
    Batch {
        /// Weight of this batch in the running statistics; 0 leaves them unchanged.
        momentum: f64,
        /// Sums over all participants. Each calls it twice per forward and once per backward pass, in the same order, on the
        /// thread that runs the pass.
        all_reduce: Option<Sum>,
    },
}

#[repr(C)]
struct COptions {
    epsilon: f64,
    momentum: f64,
    batch: c_int,
    relu: c_int,
    via_aten: c_int,
}

type CSum = extern "C" fn(*mut c_void, *mut C_tensor) -> *mut c_char;
type CDrop = extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn simclr_batch_norm(
        x: *const C_tensor,
        residual: *const C_tensor,
        scale: *const C_tensor,
        shift: *const C_tensor,
        running_mean: *const C_tensor,
        running_var: *const C_tensor,
        options: *const COptions,
        context: *mut c_void,
        call: Option<CSum>,
        drop: Option<CDrop>,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn simclr_branch(y: *const C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
    fn simclr_instructions() -> *mut c_char;
    fn simclr_use_instructions(name: *const c_char) -> *mut c_char;
}

impl BatchNorm<'_> {
    /// `relu(norm(x) + residual)`, both optional. `x` is `[B, C]` or `[B, C, H, W]` in `f32` or `bf16`, `residual` and the
    /// result are like it. Gradients of scale and shift cover this participant's rows only.
    ///
    /// # Errors
    /// Mismatched shapes, and a panic of the all-reduce; in the backward pass the latter is libtorch's error.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
        statistics: Statistics,
    ) -> Result<Tensor, ShimError> {
        self.call(x, residual, relu, statistics, false)
    }

    /// [`BatchNorm::forward`] by ATen operations, as on devices without kernels.
    ///
    /// # Errors
    /// As [`BatchNorm::forward`].
    pub fn forward_via_aten(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
        statistics: Statistics,
    ) -> Result<Tensor, ShimError> {
        self.call(x, residual, relu, statistics, true)
    }

    fn call(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
        statistics: Statistics,
        via_aten: bool,
    ) -> Result<Tensor, ShimError> {
        let (momentum, all_reduce) = match &statistics {
            Statistics::Running => (0.0, None),
            Statistics::Batch { momentum, all_reduce } => (*momentum, all_reduce.clone()),
        };
        let options = COptions {
            epsilon: self.epsilon,
            momentum,
            batch: c_int::from(matches!(statistics, Statistics::Batch { .. })),
            relu: c_int::from(relu),
            via_aten: c_int::from(via_aten),
        };
        let context = all_reduce.map_or(std::ptr::null_mut(), |sum| Box::into_raw(Box::new(sum)));
        let shared = !context.is_null();
        let mut out = std::ptr::null_mut();
        // SAFETY: all tensors are live for the call. `context` fits `sum` and `drop_sum` and is handed over; `out` is an
        // owned tensor on success.
        unsafe {
            check(simclr_batch_norm(
                x.as_ptr(),
                residual.map_or(std::ptr::null(), Tensor::as_ptr),
                self.scale.as_ptr(),
                self.shift.as_ptr(),
                self.running_mean.as_ptr(),
                self.running_var.as_ptr(),
                &options,
                context.cast(),
                shared.then_some(sum as CSum),
                shared.then_some(drop_sum as CDrop),
                &mut out,
            ))?;
            Ok(Tensor::from_ptr(out))
        }
    }
}

/// A second handle to a tensor that is used twice, such as the input of a residual block. For the result of [`BatchNorm::forward`] with a
/// residual and a ReLU, by kernels, the gradients of both handles are summed where the backward pass reads them anyway, in `f32`; the sum
/// by libtorch is a pass over memory of its own. Other tensors are returned as they are.
///
/// # Errors
/// libtorch errors.
pub fn branch(y: &Tensor) -> Result<Tensor, ShimError> {
    let mut out = std::ptr::null_mut();
    // SAFETY: `y` lives for the call; `out` is an owned tensor on success.
    unsafe {
        check(simclr_branch(y.as_ptr(), &mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// Instruction set of the CPU kernels in use: `avx512`, `avx2` or `baseline`; initially the best of this machine.
pub fn instructions() -> String {
    // SAFETY: takes nothing, returns an owned string.
    take(unsafe { simclr_instructions() }).unwrap_or_default()
}

/// Switches all threads to the kernels of another instruction set.
///
/// # Errors
/// An unknown name, or instructions that the machine lacks.
pub fn use_instructions(name: &str) -> Result<(), ShimError> {
    let name = text(name.as_bytes())?;
    // SAFETY: `name` outlives the call.
    check(unsafe { simclr_use_instructions(name.as_ptr()) })
}

/// Catches panics, which must not unwind through the C++ frames of the pass.
extern "C" fn sum(context: *mut c_void, values: *mut C_tensor) -> *mut c_char {
    // SAFETY: `context` is the box that `forward` handed over, alive until `drop_sum`; `values` is ours.
    let (call, values) = unsafe { (&*context.cast::<Sum>(), Tensor::from_ptr(values)) };
    match catch_unwind(AssertUnwindSafe(|| call(&values))) {
        Ok(()) => std::ptr::null_mut(),
        Err(panic) => message(&CString::new(text_of(&*panic).replace('\0', " ")).unwrap_or_default()),
    }
}

extern "C" fn drop_sum(context: *mut c_void) {
    // SAFETY: called once, with the box that `forward` handed over. A destructor that panics aborts the process.
    unsafe { drop(Box::from_raw(context.cast::<Sum>())) }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".to_owned())
}
