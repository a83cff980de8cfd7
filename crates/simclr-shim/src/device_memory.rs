//! Memory statistics of a GPU (C++ side: `device_memory.cpp`).

use std::ffi::c_char;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check};

unsafe extern "C" {
    fn simclr_device_memory(like: *const C_tensor, out: *mut i64) -> *mut c_char;
    fn simclr_device_peak_reset(like: *const C_tensor) -> *mut c_char;
}

/// Bytes of a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Not allocated by any process.
    pub free: u64,
    /// Peak reserved by this process's libtorch since [`reset_device_peak`].
    pub peak: u64,
}

/// The memory of the GPU of `like`.
///
/// # Errors
/// libtorch errors; always on the CPU.
pub fn device_memory(like: &Tensor) -> Result<DeviceMemory, ShimError> {
    let mut bytes = [0_i64; 2];
    // SAFETY: the tensor is borrowed for the call; `bytes` has room for two numbers.
    check(unsafe { simclr_device_memory(like.as_ptr(), bytes.as_mut_ptr()) })?;
    let [free, peak] = bytes.map(|bytes| u64::try_from(bytes).unwrap_or_default());
    Ok(DeviceMemory { free, peak })
}

/// Frees unused cached blocks and resets the peak of [`device_memory`].
///
/// # Errors
/// As [`device_memory`].
pub fn reset_device_peak(like: &Tensor) -> Result<(), ShimError> {
    // SAFETY: the tensor is borrowed for the call.
    check(unsafe { simclr_device_peak_reset(like.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_no_device_memory() {
        let like = Tensor::zeros([1], (tch::Kind::Float, tch::Device::Cpu));
        assert!(device_memory(&like).is_err() && reset_device_peak(&like).is_err());
    }
}
