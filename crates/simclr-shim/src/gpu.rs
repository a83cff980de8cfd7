//! Kernels for GPUs (C++ side: `gpu/`), compiled for the GPU at hand when the process starts.

use std::{
    cmp::Ordering,
    ffi::{CString, c_char, c_int},
    path::Path,
};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::{BatchNorm, ShimError, Statistics, check, libtorch_folder, text};

/// The library beside `libtorch_cuda.so` that brings NVRTC and the driver's interface.
pub const LIBRARY: &str = "libcaffe2_nvrtc.so";

/// What NVRTC compiles: the first text, which includes the others.
const SOURCES: [(&str, &str); 8] = [
    ("simclr.cu", "#include \"batch_norm.cu\"\n#include \"optimizer.cu\"\n#include \"views.cu\"\n"),
    ("device.h", include_str!("gpu/device.h")),
    ("batch_norm.h", include_str!("gpu/batch_norm.h")),
    ("batch_norm.cu", include_str!("gpu/batch_norm.cu")),
    ("optimizer.h", include_str!("gpu/optimizer.h")),
    ("optimizer.cu", include_str!("gpu/optimizer.cu")),
    ("views.h", include_str!("gpu/views.h")),
    ("views.cu", include_str!("gpu/views.cu")),
];

/// In which order an emulated GPU runs threads and blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last.
    Rising,
    /// From the last to the first.
    Falling,
}

unsafe extern "C" {
    fn simclr_gpu_prepare(
        library: *const c_char,
        names: *const *const c_char,
        texts: *const *const c_char,
        count: usize,
        like: *const C_tensor,
    ) -> *mut c_char;
    fn simclr_gpu_compile(
        library: *const c_char,
        names: *const *const c_char,
        texts: *const *const c_char,
        count: usize,
        architecture: *const c_char,
        size: *mut usize,
    ) -> *mut c_char;
    fn simclr_gpu_refuse(like: *const C_tensor);
    fn simclr_gpu_emulate(order: c_int) -> c_int;
    fn simclr_gpu_serves(like: *const C_tensor) -> c_int;
}

/// Names and texts of the sources as C has them, for the time of a call.
fn with_sources<T>(call: impl FnOnce(*const *const c_char, *const *const c_char, usize) -> T) -> T {
    let owned = |text: &str| CString::new(text).expect("sources have no NUL");
    let (names, texts) = (SOURCES.map(|(name, _)| owned(name)), SOURCES.map(|(_, text)| owned(text)));
    let [names, texts] = [&names, &texts].map(|list| list.each_ref().map(|text| text.as_ptr()));
    call(names.as_ptr(), texts.as_ptr(), SOURCES.len())
}

/// Compiles the kernels for the GPU of `like`, loads them and has them [`agree`]; from then on they serve its tensors. Without
/// them all works by libtorch's own operations, slower.
///
/// # Errors
/// No NVRTC or driver, a GPU that NVRTC does not know, kernels that compute something else there.
pub fn prepare(like: &Tensor) -> Result<(), ShimError> {
    let library = text(libtorch_folder().join(LIBRARY).as_os_str().as_encoded_bytes())?;
    check(with_sources(|names, texts, count| {
        // SAFETY: all texts outlive the call, and both lists are `count` long.
        unsafe { simclr_gpu_prepare(library.as_ptr(), names, texts, count, like.as_ptr()) }
    }))?;
    // SAFETY: the tensor is borrowed for the call.
    agree(like).inspect_err(|_| unsafe { simclr_gpu_refuse(like.as_ptr()) })
}

/// Whether batch norm by the kernels is that by libtorch's operations on the device of `like`, forward and backward: a moment's
/// work before a run of days relies on it.
///
/// # Errors
/// What differs, and by how much.
pub fn agree(like: &Tensor) -> Result<(), ShimError> {
    for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2)] {
        let [found, expected] = [false, true].map(|composed| small_batch_norm(like.device(), kind, composed));
        for (what, (found, expected)) in
            ["y", "dx", "the gradient of the scale"].iter().zip(found?.iter().zip(&expected?))
        {
            let norm = |x: &Tensor| x.norm().double_value(&[]);
            let off = norm(&(found - expected)) / norm(expected);
            // What is no number is off, too.
            if off.partial_cmp(&tolerance) != Some(Ordering::Less) {
                let said = format!(
                    "kernels disagree with libtorch in batch norm of {kind:?}: {what} is off by {off:e}"
                );
                return Err(ShimError(said));
            }
        }
    }
    Ok(())
}

/// y, and gradients of x and scale, of a batch norm with addition and ReLU; of waves, so that no generator is used.
fn small_batch_norm(device: Device, kind: Kind, composed: bool) -> Result<[Tensor; 3], ShimError> {
    let wave = |shape: &[i64], phase: f64| {
        let count: i64 = shape.iter().product();
        ((Tensor::arange(count, (Kind::Float, device)) * 0.37 + phase).sin() + 0.1).view(shape)
    };
    let image = |phase| wave(&[6, 5, 5, 24], phase).to_kind(kind).permute([0, 3, 1, 2]);
    let (x, residual) = (image(0.0).set_requires_grad(true), image(1.0));
    let (scale, shift) = (wave(&[24], 2.0).set_requires_grad(true), wave(&[24], 3.0));
    let (running_mean, running_var) = (shift.zeros_like(), shift.ones_like());
    let norm = BatchNorm {
        scale: &scale,
        shift: &shift,
        running_mean: &running_mean,
        running_var: &running_var,
        epsilon: 1e-5,
    };
    let statistics = Statistics::Batch { momentum: 0.1, exchange: None };
    let forward = if composed { BatchNorm::forward_composed } else { BatchNorm::forward };
    let y = forward(&norm, &x, Some(&residual), true, statistics)?;
    let loss = (y.to_kind(Kind::Float) * image(4.0).to_kind(Kind::Float)).sum(Kind::Float);
    loss.f_backward().map_err(|error| ShimError(error.to_string()))?;
    Ok([y.detach(), x.grad(), scale.grad()].map(|t| t.to_kind(Kind::Double)))
}

/// Whether the kernels work on the device of `like`: a GPU for which they were compiled, or the CPU under [`emulated`].
pub fn serves(like: &Tensor) -> bool {
    // SAFETY: the tensor is borrowed for the call.
    unsafe { simclr_gpu_serves(like.as_ptr()) != 0 }
}

/// Compiles the kernels for `architecture`, such as `sm_90`, with the NVRTC that `library` brings; returns the size of what
/// comes out, in bytes. Needs no GPU.
///
/// # Errors
/// What the compiler says.
pub fn compile(library: &Path, architecture: &str) -> Result<usize, ShimError> {
    let (library, architecture) =
        (text(library.as_os_str().as_encoded_bytes())?, text(architecture.as_bytes())?);
    let mut size = 0;
    check(with_sources(|names, texts, count| {
        // SAFETY: as above; `size` is written on success.
        unsafe { simclr_gpu_compile(library.as_ptr(), names, texts, count, architecture.as_ptr(), &mut size) }
    }))?;
    Ok(size)
}

/// Runs `work` with the kernels serving this thread's CPU tensors, for tests: on the CPU, one thread of the GPU after the other.
/// Slow.
pub fn emulated<T>(order: Order, work: impl FnOnce() -> T) -> T {
    struct Restore(c_int);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: sets a number.
            unsafe { simclr_gpu_emulate(self.0) };
        }
    }
    // SAFETY: sets a number.
    let _restore = Restore(unsafe { simclr_gpu_emulate(if order == Order::Rising { 1 } else { 2 }) });
    work()
}
