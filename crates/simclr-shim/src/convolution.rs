//! Convolutions (C++ side: `convolution.cpp`).

use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check};

unsafe extern "C" {
    fn simclr_convolution(
        x: *const C_tensor,
        weight: *const C_tensor,
        stride: i64,
        padding: i64,
        by_product: c_int,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// How the gradient of a kernel is computed on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelGradient {
    /// As is fastest: by libtorch, or as a product of matrices.
    Fastest,
    /// As a product of matrices, for tests.
    Product,
}

/// The convolution of images `[B, C, H, W]` with a square kernel `[O, C, k, k]`, without bias.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    (stride, padding): (i64, i64),
    gradient: KernelGradient,
) -> Result<Tensor, ShimError> {
    let mut out = std::ptr::null_mut();
    let by_product = c_int::from(gradient == KernelGradient::Product);
    // SAFETY: both tensors live for the call; `out` is an owned tensor on success.
    unsafe {
        check(simclr_convolution(x.as_ptr(), weight.as_ptr(), stride, padding, by_product, &mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}
