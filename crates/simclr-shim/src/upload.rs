//! Host memory to a device, with one copy on the host.

use tch::{Device, TchError, Tensor, kind::Element};

/// Copies `values` to a tensor on `device`, of one dimension. To a GPU they go from pinned memory, and nobody waits for them:
/// what is started there afterwards finds them.
///
/// # Errors
/// No memory.
pub fn upload<T: Element>(values: &[T], device: Device) -> Result<Tensor, TchError> {
    // SAFETY: the values outlive the tensor over them, which nothing writes to and which does not leave this function.
    let here = unsafe {
        Tensor::f_from_blob(values.as_ptr().cast(), &[values.len() as i64], &[1], T::KIND, Device::Cpu)?
    };
    match device {
        Device::Cpu => here.f_to_device_(device, T::KIND, false, true),
        _ => here.f_pin_memory(device)?.f_to_device_(device, T::KIND, true, false),
    }
}
