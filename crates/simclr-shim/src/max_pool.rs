//! Max-pooling (C++ side: `max_pool.cpp`).

use std::ffi::c_char;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check};

unsafe extern "C" {
    fn simclr_max_pool(x: *const C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
}

/// Maxima over 2x2 positions with stride 2, `[B, C, H, W]` to `[B, C, H / 2, W / 2]`: values and gradient of `max_pool2d`, faster on CPUs.
///
/// # Errors
/// A tensor of other dimensions; sides below 2.
pub fn max_pool(x: &Tensor) -> Result<Tensor, ShimError> {
    let mut out = std::ptr::null_mut();
    // SAFETY: `x` lives for the call; `out` is an owned tensor on success.
    unsafe {
        check(simclr_max_pool(x.as_ptr(), &mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}
