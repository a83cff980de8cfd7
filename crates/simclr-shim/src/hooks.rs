//! Gradient hooks of leaf tensors, and access to the memory of CPU tensors.

use std::ffi::{c_int, c_void};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn simclr_hook_set(
        leaf: *mut C_tensor,
        context: *mut c_void,
        call: extern "C" fn(*mut c_void),
        release: extern "C" fn(*mut c_void),
    ) -> c_int;
    fn simclr_hook_clear(leaf: *mut C_tensor);
}

type Call = Box<dyn Fn() + Send + Sync>;

/// A function called on the thread of the backward pass when the gradient of a leaf has been accumulated. Dropping it removes
/// the hook.
#[derive(Debug)]
pub struct GradientHook {
    leaf: Tensor,
}

impl GradientHook {
    /// Sets the only hook of `leaf`, which must require a gradient; `None` if libtorch rejects it. `call` must not panic: its
    /// caller is C++.
    pub fn new(leaf: &Tensor, call: impl Fn() + Send + Sync + 'static) -> Option<Self> {
        extern "C" fn run(context: *mut c_void) {
            // SAFETY: `context` is the boxed function below, shared and alive until `release`.
            unsafe { (*context.cast::<Call>())() }
        }
        extern "C" fn release(context: *mut c_void) {
            // SAFETY: made by `Box::into_raw` below; C++ calls this once, when the hook is removed.
            drop(unsafe { Box::from_raw(context.cast::<Call>()) });
        }
        let mut leaf = leaf.shallow_clone();
        let context = Box::into_raw(Box::new(Box::new(call) as Call)).cast();
        // SAFETY: the leaf is live; `context` is handed over and fits both functions.
        let set = unsafe { simclr_hook_set(leaf.as_mut_ptr(), context, run, release) };
        (set != 0).then_some(Self { leaf })
    }
}

impl Drop for GradientHook {
    fn drop(&mut self) {
        // SAFETY: the leaf is live.
        unsafe { simclr_hook_clear(self.leaf.as_mut_ptr()) }
    }
}

/// Passes the `f32` values of a contiguous CPU tensor to `work`, to modify in place; `None` for any other tensor.
pub fn with_floats<R>(tensor: &mut Tensor, work: impl FnOnce(&mut [f32]) -> R) -> Option<R> {
    let plain = tensor.device() == Device::Cpu && tensor.kind() == Kind::Float && tensor.is_contiguous();
    plain.then(|| with_memory(tensor, work))
}

/// Passes the bytes of a contiguous CPU tensor to `work`, to modify in place; `None` for any other tensor.
pub fn with_bytes<R>(tensor: &mut Tensor, work: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
    let plain = tensor.device() == Device::Cpu && tensor.is_contiguous();
    plain.then(|| with_memory(tensor, work))
}

/// `T` is the tensor's element type, or `u8`.
fn with_memory<T, R>(tensor: &mut Tensor, work: impl FnOnce(&mut [T]) -> R) -> R {
    let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    let start: *mut T = tensor.data_ptr().cast();
    if bytes == 0 || start.is_null() {
        return work(&mut []);
    }
    // SAFETY: a contiguous tensor of the CPU is one block of so many bytes, alive as long as the tensor, which is borrowed;
    // every bit pattern is valid.
    work(unsafe { std::slice::from_raw_parts_mut(start, bytes / size_of::<T>()) })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn hook_runs_once_per_backward_pass_until_dropped() {
        let leaf = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&calls);
        let hook = GradientHook::new(&leaf, move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        // Two uses of the leaf give one gradient.
        (&leaf * 2.0 + &leaf * 3.0).sum(Kind::Float).backward();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        drop(hook);
        assert_eq!(Arc::strong_count(&calls), 1, "the closure is dropped with its hook");
        (&leaf * 2.0).sum(Kind::Float).backward();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert_eq!(Vec::<f32>::try_from(leaf.grad()).unwrap(), [7.0; 3]);
    }

    #[test]
    fn values_are_modified_in_place() {
        let mut tensor = Tensor::from_slice(&[1.0f32, 2.0]);
        with_floats(&mut tensor, |values| values[1] = 5.0).unwrap();
        assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), [1.0, 5.0]);
        assert_eq!(with_bytes(&mut tensor, |bytes| bytes.len()), Some(8));
        assert_eq!(with_floats(&mut Tensor::from_slice(&[1i64]), |_| ()), None);
        let mut slanted = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)).tr();
        assert_eq!(with_floats(&mut slanted, |_| ()), None);
        assert_eq!(with_bytes(&mut Tensor::zeros([0], (Kind::Float, Device::Cpu)), |b| b.len()), Some(0));
    }
}
