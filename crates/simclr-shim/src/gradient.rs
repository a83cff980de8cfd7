//! The backward pass from a given gradient, and dropping gradients (C++ side: `gradient.cpp`).

use std::ffi::c_char;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check};

unsafe extern "C" {
    fn simclr_backward(output: *const C_tensor, gradient: *const C_tensor) -> *mut c_char;
    fn simclr_drop_gradient(weight: *const C_tensor) -> *mut c_char;
}

/// Accumulates the gradients of the leaves of `output`'s graph, given the loss's `gradient` with respect to `output`, and frees
/// the graph. All nodes run on the calling thread, so that concurrent passes may wait for each other.
///
/// # Errors
/// A gradient of another shape; errors of the graph's nodes.
pub fn backward(output: &Tensor, gradient: &Tensor) -> Result<(), ShimError> {
    // SAFETY: both tensors are live for the call.
    check(unsafe { simclr_backward(output.as_ptr(), gradient.as_ptr()) })
}

/// Drops the gradient of `weight`, which frees its memory until the next backward pass.
///
/// # Errors
/// libtorch errors.
pub fn drop_gradient(weight: &Tensor) -> Result<(), ShimError> {
    // SAFETY: the tensor is borrowed for the call.
    check(unsafe { simclr_drop_gradient(weight.as_ptr()) })
}
