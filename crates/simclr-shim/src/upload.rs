//! Copies between host memory and a device (C++ side: `upload.cpp`).

use std::ffi::c_char;

use tch::{Device, Tensor, kind::Element};
use torch_sys::C_tensor;

use crate::{ShimError, check, stream::CudaEvent};

unsafe extern "C" {
    fn simclr_pinned(here: *const C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
    fn simclr_download(there: *const C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
}

/// Copies `values` to a one-dimensional tensor on `device`; to a GPU asynchronously from pinned memory, ordered before later
/// work on the stream.
///
/// # Errors
/// Out of memory.
pub fn upload<T: Element>(values: &[T], device: Device) -> Result<Tensor, ShimError> {
    // SAFETY: the values outlive the tensor over them, which nothing writes to and which does not leave this function.
    let here = unsafe {
        Tensor::f_from_blob(values.as_ptr().cast(), &[values.len() as i64], &[1], T::KIND, Device::Cpu)
    };
    let here = here?;
    let there = match device {
        Device::Cpu => here.f_to_device_(device, T::KIND, false, true),
        _ => pinned(&here)?.f_to_device_(device, T::KIND, true, false),
    };
    Ok(there?)
}

/// A copy of a contiguous CPU tensor in pinned memory.
fn pinned(here: &Tensor) -> Result<Tensor, ShimError> {
    let mut out = std::ptr::null_mut();
    // SAFETY: the tensor is borrowed for the call; `out` is an owned tensor on success, which `from_ptr` takes over.
    unsafe {
        check(simclr_pinned(here.as_ptr(), &mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// A copy of a tensor to host memory that the stream makes while the host goes on.
#[derive(Debug)]
pub struct Download {
    here: Tensor,
    copied: CudaEvent,
}

impl Download {
    /// Launches the copy of `there`, ordered after earlier and before later work on its stream.
    ///
    /// # Errors
    /// Out of memory; CUDA errors.
    pub fn start(there: &Tensor) -> Result<Self, ShimError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the tensor is borrowed for the call; `out` is an owned tensor on success, which `from_ptr` takes over.
        let here = unsafe {
            check(simclr_download(there.as_ptr(), &mut out))?;
            Tensor::from_ptr(out)
        };
        Ok(Self { here, copied: CudaEvent::new(there)? })
    }

    /// Waits until the copy is complete.
    ///
    /// # Errors
    /// CUDA errors, also those of earlier work on the stream.
    pub fn wait(self) -> Result<Tensor, ShimError> {
        self.copied.synchronize()?;
        Ok(self.here)
    }
}
