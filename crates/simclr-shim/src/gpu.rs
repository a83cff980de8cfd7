//! GPU kernels (C++ side: `gpu/`), compiled by NVRTC at run time, and their CPU emulation.

use std::{
    cmp::Ordering,
    ffi::{CString, c_char, c_int},
    path::Path,
};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::{BatchNorm, ShimError, Statistics, branch, check, libtorch_folder, text};

/// The library next to `libtorch_cuda.so` that depends on NVRTC and the CUDA driver.
pub const LIBRARY: &str = "libcaffe2_nvrtc.so";

/// The translation unit that NVRTC compiles, and the files that it includes.
const SOURCES: [(&str, &str); 14] = [
    (
        "simclr.cu",
        "#include \"batch_norm.cu\"\n#include \"optimizer.cu\"\n#include \"view_blur.cu\"\n\
         #include \"view_color.cu\"\n#include \"view_filter.cu\"\n#include \"view_noise.cu\"\n\
         #include \"view_policy.cu\"\n#include \"view_resize.cu\"\n",
    ),
    ("device.h", include_str!("gpu/device.h")),
    ("batch_norm.h", include_str!("gpu/batch_norm.h")),
    ("batch_norm.cu", include_str!("gpu/batch_norm.cu")),
    ("optimizer.h", include_str!("gpu/optimizer.h")),
    ("optimizer.cu", include_str!("gpu/optimizer.cu")),
    ("views.h", include_str!("gpu/views.h")),
    ("levels.h", include_str!("gpu/levels.h")),
    ("view_blur.cu", include_str!("gpu/view_blur.cu")),
    ("view_color.cu", include_str!("gpu/view_color.cu")),
    ("view_filter.cu", include_str!("gpu/view_filter.cu")),
    ("view_noise.cu", include_str!("gpu/view_noise.cu")),
    ("view_policy.cu", include_str!("gpu/view_policy.cu")),
    ("view_resize.cu", include_str!("gpu/view_resize.cu")),
];

/// Order in which the emulation runs threads and blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// First to last.
    Rising,
    /// Last to first.
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
    fn simclr_gpu_disable(like: *const C_tensor);
    fn simclr_gpu_emulate(order: c_int) -> c_int;
    fn simclr_gpu_kernels_available(like: *const C_tensor) -> c_int;
}

/// Passes names and texts of the sources as C strings.
fn with_sources<T>(call: impl FnOnce(*const *const c_char, *const *const c_char, usize) -> T) -> T {
    let owned = |text: &str| CString::new(text).expect("sources have no NUL");
    let (names, texts) = (SOURCES.map(|(name, _)| owned(name)), SOURCES.map(|(_, text)| owned(text)));
    let [names, texts] = [&names, &texts].map(|list| list.each_ref().map(|text| text.as_ptr()));
    call(names.as_ptr(), texts.as_ptr(), SOURCES.len())
}

/// Compiles the kernels for the GPU of `like`, loads them and runs [`self_test`]; on success they are used for its tensors. On
/// failure ATen operations are used, which are slower.
///
/// # Errors
/// No NVRTC or driver, an unsupported GPU, or a failed self-test.
pub fn prepare(like: &Tensor) -> Result<(), ShimError> {
    let library = text(libtorch_folder().join(LIBRARY).as_os_str().as_encoded_bytes())?;
    check(with_sources(|names, texts, count| {
        // SAFETY: all texts outlive the call, and both lists are `count` long.
        unsafe { simclr_gpu_prepare(library.as_ptr(), names, texts, count, like.as_ptr()) }
    }))?;
    // SAFETY: the tensor is borrowed for the call.
    self_test(like).inspect_err(|_| unsafe { simclr_gpu_disable(like.as_ptr()) })
}

/// Compares batch norm by the kernels with batch norm by ATen operations on the device of `like`, forward and backward.
///
/// # Errors
/// The first quantity that differs, and its relative error.
pub fn self_test(like: &Tensor) -> Result<(), ShimError> {
    for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2)] {
        let [found, expected] = [false, true].map(|via_aten| small_batch_norm(like.device(), kind, via_aten));
        for (what, (found, expected)) in
            ["y", "dx", "the gradient of the scale"].iter().zip(found?.iter().zip(&expected?))
        {
            let norm = |x: &Tensor| x.norm().double_value(&[]);
            let error = norm(&(found - expected)) / norm(expected);
            // NaN counts as a mismatch.
            if error.partial_cmp(&tolerance) != Some(Ordering::Less) {
                return Err(ShimError(format!(
                    "self-test of batch norm in {kind:?}: {what} differs from libtorch's by {error:e}"
                )));
            }
        }
    }
    Ok(())
}

/// y and the gradients of x and scale of a batch norm with addition and ReLU that is used twice, on deterministic inputs.
fn small_batch_norm(device: Device, kind: Kind, via_aten: bool) -> Result<[Tensor; 3], ShimError> {
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
    let statistics = Statistics::Batch { momentum: 0.1, all_reduce: None };
    let forward = if via_aten { BatchNorm::forward_via_aten } else { BatchNorm::forward };
    let y = forward(&norm, &x, Some(&residual), true, statistics)?;
    let weighted =
        |y: &Tensor, phase| (y.to_kind(Kind::Float) * image(phase).to_kind(Kind::Float)).sum(Kind::Float);
    (weighted(&branch(&y)?, 4.0) + weighted(&y, 5.0)).f_backward()?;
    Ok([y.detach(), x.grad(), scale.grad()].map(|t| t.to_kind(Kind::Double)))
}

/// Whether there are kernels for the device of `like`: a GPU for which they were compiled, or the CPU under [`emulated`].
pub fn kernels_available(like: &Tensor) -> bool {
    // SAFETY: the tensor is borrowed for the call.
    unsafe { simclr_gpu_kernels_available(like.as_ptr()) != 0 }
}

/// Compiles the kernels for `architecture`, such as `sm_90`, with the NVRTC that `library` loads, and returns the size of the
/// cubin in bytes. Needs no GPU.
///
/// # Errors
/// The compiler's log.
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

/// Runs `work` with the kernels emulated for this thread's CPU tensors. For tests; slow.
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
