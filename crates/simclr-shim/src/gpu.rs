//! Kernels for GPUs (C++ side: `gpu/`), compiled for the GPU at hand when the process starts.

use std::{
    ffi::{CString, c_char, c_int},
    path::Path,
};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check, libtorch_folder};

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

fn text(value: &[u8]) -> Result<CString, ShimError> {
    CString::new(value).map_err(|error| ShimError(error.to_string()))
}

/// Compiles the kernels for the GPU of `like` and loads them; from then on they serve its tensors. Without them all works by
/// libtorch's own operations, slower.
///
/// # Errors
/// No NVRTC or driver, a GPU that NVRTC does not know.
pub fn prepare(like: &Tensor) -> Result<(), ShimError> {
    let library = text(libtorch_folder().join(LIBRARY).as_os_str().as_encoded_bytes())?;
    check(with_sources(|names, texts, count| {
        // SAFETY: all texts outlive the call, and both lists are `count` long.
        unsafe { simclr_gpu_prepare(library.as_ptr(), names, texts, count, like.as_ptr()) }
    }))
}

/// Whether the kernels work on tensors of the device of `like`: a GPU after [`prepare`], or the CPU inside [`emulated`].
pub fn serves(like: &Tensor) -> bool {
    // SAFETY: reads a live tensor's device.
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
