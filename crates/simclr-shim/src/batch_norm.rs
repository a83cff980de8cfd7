//! Batch norm as one node of the autograd graph, with statistics that may be shared (C++ side: `batch_norm.cpp`).

use std::{
    any::Any,
    ffi::{CString, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check, message};

/// Adds an `f32` vector up over all members, in place. A panic inside becomes an error of the pass that called it.
pub type Sum = Arc<dyn Fn(&Tensor) + Send + Sync>;

/// The parts of a batch norm over C channels, each `[C]` in `f32`.
#[derive(Debug)]
pub struct BatchNorm<'a> {
    /// gamma.
    pub scale: &'a Tensor,
    /// beta.
    pub shift: &'a Tensor,
    /// Updated by [`BatchNorm::forward`] unless the momentum is 0.
    pub running_mean: &'a Tensor,
    /// Of the unbiased variance.
    pub running_var: &'a Tensor,
    /// Added to the variance.
    pub epsilon: f64,
    /// Weight of the batch at hand in the running statistics.
    pub momentum: f64,
}

#[repr(C)]
struct COptions {
    epsilon: f64,
    momentum: f64,
    relu: c_int,
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
}

impl BatchNorm<'_> {
    /// `relu(norm(x) + residual)`, both optional, on the batch's own statistics or, with `exchange`, on those of all
    /// members. `x` is `[B, C]` or `[B, C, H, W]` in `f32` or `bf16`, `residual` and the result are like it.
    ///
    /// Every member calls `exchange` twice per forward and once per backward pass, in the same order, from whichever
    /// thread runs the pass. Gradients of scale and shift are the member's own share.
    ///
    /// # Errors
    /// Shapes that do not fit, and what `exchange` panicked with. In the backward pass the latter is libtorch's error.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
        exchange: Option<Sum>,
    ) -> Result<Tensor, ShimError> {
        let options = COptions { epsilon: self.epsilon, momentum: self.momentum, relu: c_int::from(relu) };
        let context = exchange.map_or(std::ptr::null_mut(), |sum| Box::into_raw(Box::new(sum)));
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

/// Unwinding must not cross the C++ frames between here and whoever started the pass.
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
        .unwrap_or_else(|| "a panic without words".to_owned())
}
