//! Parts of libtorch that `tch` 0.24 does not bind: TorchScript modules with their buffers, loading `libtorch_cuda` at run time,
//! batch norm, convolutions and max-pooling as autograd nodes, gradient hooks, recordings of operations, streams and CUDA graphs; GPU kernels of
//! views, batch norm and optimizers; c10d's store and Gloo; NCCL; and, with the feature `mpi`, MPI.

mod batch_norm;
pub mod c10d;
mod channel;
mod convolution;
mod device_memory;
pub mod gpu;
mod gradient;
pub mod hooks;
mod max_pool;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
mod optimizer;
mod parallel;
pub mod profile;
pub mod stream;
mod upload;
pub mod views;

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

pub use batch_norm::{BatchNorm, Statistics, Sum, branch, instructions, use_instructions};
pub use channel::{Channel, exit_now};
pub use convolution::{KernelGradient, conv2d};
pub use device_memory::{DeviceMemory, device_memory, reset_device_peak};
pub use gradient::{backward, drop_gradient};
pub use max_pool::max_pool;
pub use optimizer::{Parameter, Rule, Trust, gpu_gradient_norm, gpu_optimizer_step};
pub use parallel::in_parallel;
pub use profile::operations;
pub use upload::{Download, upload};

/// First line of an error of libtorch, CUDA or NCCL.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ShimError(String);

impl From<tch::TchError> for ShimError {
    fn from(error: tch::TchError) -> Self {
        Self(error.to_string())
    }
}

#[repr(C)]
struct CModule {
    _opaque: [u8; 0],
}

type Visit = extern "C" fn(*mut c_void, *const c_char, *mut C_tensor);

unsafe extern "C" {
    fn simclr_free(text: *mut c_char);
    fn simclr_message(text: *const c_char) -> *mut c_char;
    fn simclr_libtorch_folder() -> *mut c_char;
    fn simclr_libtorch_version() -> *mut c_char;
    fn simclr_cpu_capability() -> *mut c_char;
    fn simclr_cache_memory() -> *mut c_char;
    fn simclr_trim_memory();
    fn simclr_module_load(path: *const c_char, out: *mut *mut CModule) -> *mut c_char;
    fn simclr_module_free(module: *mut CModule);
    fn simclr_module_to(module: *mut CModule, like: *const C_tensor) -> *mut c_char;
    fn simclr_module_forward(
        module: *mut CModule,
        images: *const C_tensor,
        train: c_int,
        bf16: c_int,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn simclr_module_tensors(
        module: *mut CModule,
        buffers: c_int,
        context: *mut c_void,
        visit: Visit,
    ) -> *mut c_char;
}

/// Takes ownership of a string that the shim allocated.
fn take(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the shim returns null or a NUL-terminated malloc'ed string that is ours to free, once.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        simclr_free(text);
        Some(owned)
    }
}

fn check(message: *mut c_char) -> Result<(), ShimError> {
    take(message).map_or(Ok(()), |text| Err(ShimError(text)))
}

/// A C string; an error if `value` contains NUL.
fn text(value: &[u8]) -> Result<CString, ShimError> {
    CString::new(value).map_err(|error| ShimError(error.to_string()))
}

/// A copy of `text` owned by C++.
fn message(text: &CStr) -> *mut c_char {
    // SAFETY: `text` is NUL-terminated and copied.
    unsafe { simclr_message(text.as_ptr()) }
}

/// Outcome of [`load_cuda`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cuda {
    /// Loaded; there may be no GPU (`tch::Cuda::is_available`).
    Loaded,
    /// No such file next to libtorch: a CPU build.
    NotThere,
    /// The file could not be loaded.
    Failed(String),
}

/// Directory of the loaded libtorch.
pub fn libtorch_folder() -> PathBuf {
    // SAFETY: takes nothing, returns an owned string.
    PathBuf::from(take(unsafe { simclr_libtorch_folder() }).unwrap_or_default())
}

/// Version of libtorch at build time, such as `2.11.0`.
pub fn libtorch_version() -> String {
    // SAFETY: takes nothing, returns an owned string.
    take(unsafe { simclr_libtorch_version() }).unwrap_or_default()
}

/// Instruction set of libtorch's own CPU kernels, such as `AVX512`.
pub fn cpu_capability() -> String {
    // SAFETY: takes nothing, returns an owned string.
    take(unsafe { simclr_cpu_capability() }).unwrap_or_default()
}

/// Installs a caching allocator of huge pages for CPU tensors of a megabyte or more, and has glibc's malloc keep blocks that are freed.
/// Idempotent.
///
/// # Errors
/// libtorch errors.
pub fn cache_memory() -> Result<(), ShimError> {
    // SAFETY: takes nothing; existing tensors keep their deleter.
    check(unsafe { simclr_cache_memory() })
}

/// Returns cached and unused memory to the kernel; see [`cache_memory`].
pub fn trim_memory() {
    // SAFETY: takes nothing; affects free blocks only.
    unsafe { simclr_trim_memory() }
}

/// Loads `libtorch_cuda.so` if it is next to libtorch, so that one binary runs on CPU and GPU. Call before creating tensors.
pub fn load_cuda() -> Cuda {
    let file = libtorch_folder().join("libtorch_cuda.so");
    if !file.exists() {
        return Cuda::NotThere;
    }
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: libtorch_cuda registers its kernels in static initialisers; it is never unloaded.
    match unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library);
            Cuda::Loaded
        }
        Err(error) => Cuda::Failed(error.to_string()),
    }
}

/// A TorchScript module (`torch.jit.save`).
#[derive(Debug)]
pub struct ScriptModule {
    module: *mut CModule,
}

// SAFETY: a module is reference-counted tensors and code; any one thread at a time may run it.
unsafe impl Send for ScriptModule {}

impl ScriptModule {
    /// Reads a `.pt` file onto the CPU.
    ///
    /// # Errors
    /// Not a TorchScript file, or a newer version.
    pub fn load(path: &Path) -> Result<Self, ShimError> {
        let path = text(path.as_os_str().as_encoded_bytes())?;
        let mut module = std::ptr::null_mut();
        // SAFETY: `path` outlives the call; `module` is written on success.
        check(unsafe { simclr_module_load(path.as_ptr(), &mut module) })?;
        Ok(Self { module })
    }

    /// Moves parameters and buffers to `device`. Tensors obtained before keep the old storage.
    ///
    /// # Errors
    /// Out of memory.
    pub fn to(&mut self, device: Device) -> Result<(), ShimError> {
        let like = Tensor::empty([0], (tch::Kind::Float, device));
        // SAFETY: both pointers are live for the call.
        check(unsafe { simclr_module_to(self.module, like.as_ptr()) })
    }

    /// Runs the module in training or inference mode; with `bf16` under libtorch's autocast.
    ///
    /// # Errors
    /// Errors of the module's code, or a result that is not one tensor.
    pub fn forward(&self, images: &Tensor, train: bool, bf16: bool) -> Result<Tensor, ShimError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: pointers are live for the call; `out` is an owned tensor on success, which `from_ptr` takes over.
        unsafe {
            check(simclr_module_forward(
                self.module,
                images.as_ptr(),
                c_int::from(train),
                c_int::from(bf16),
                &mut out,
            ))?;
            Ok(Tensor::from_ptr(out))
        }
    }

    /// Parameters by name, sharing the module's storage.
    ///
    /// # Errors
    /// libtorch errors.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>, ShimError> {
        self.tensors(0)
    }

    /// Buffers (batch-norm running statistics) by name, sharing the module's storage.
    ///
    /// # Errors
    /// libtorch errors.
    pub fn buffers(&self) -> Result<Vec<(String, Tensor)>, ShimError> {
        self.tensors(1)
    }

    fn tensors(&self, buffers: c_int) -> Result<Vec<(String, Tensor)>, ShimError> {
        extern "C" fn push(context: *mut c_void, name: *const c_char, tensor: *mut C_tensor) {
            // SAFETY: `context` is the vector below, alive during the call; the name is NUL-terminated; the tensor is owned.
            unsafe {
                let found = &mut *context.cast::<Vec<(String, Tensor)>>();
                found.push((CStr::from_ptr(name).to_string_lossy().into_owned(), Tensor::from_ptr(tensor)));
            }
        }
        let mut found: Vec<(String, Tensor)> = Vec::new();
        // SAFETY: the visitor and its context fit each other and are used during the call only.
        check(unsafe { simclr_module_tensors(self.module, buffers, (&raw mut found).cast(), push) })?;
        Ok(found)
    }
}

impl Drop for ScriptModule {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `simclr_module_load` and is freed once.
        unsafe { simclr_module_free(self.module) }
    }
}
