//! The backward pass from a tensor whose gradient is known (C++ side: `gradient.cpp`).

use std::ffi::c_char;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check};

unsafe extern "C" {
    fn simclr_backward(output: *const C_tensor, gradient: *const C_tensor) -> *mut c_char;
}

/// Adds to the leaves of `output`'s graph what `gradient`, the loss's gradient at `output`, makes of them, and frees the
/// graph. All of it runs on the calling thread, so that passes may wait for each other inside.
///
/// # Errors
/// A gradient of another shape, and what a node of the graph raised.
pub fn backward(output: &Tensor, gradient: &Tensor) -> Result<(), ShimError> {
    // SAFETY: both tensors are live for the call.
    check(unsafe { simclr_backward(output.as_ptr(), gradient.as_ptr()) })
}
