//! NVIDIA's collectives (NCCL) on f32 tensors of a GPU. The library, a dependency of `libtorch_cuda.so`, is loaded at run time,
//! so that one binary runs with and without it.
//!
//! Constants are those of `nccl.h`, stable across NCCL 2.x.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    path::Path,
};

use libloading::os::unix::{Library, RTLD_NOW};
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::{ShimError, check};

/// Name for the dynamic loader.
pub const LIBRARY: &str = "libnccl.so.2";

const FLOAT32: c_int = 7; // ncclFloat32
const SUM: c_int = 0; // ncclSum

/// Created on rank 0; identifies the communicator.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniqueId([u8; 128]);

impl UniqueId {
    /// The bytes to broadcast to the other ranks.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// From the bytes of rank 0; `None` unless there are 128.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

type Comm = *mut c_void;
type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> c_int;
type CommInitRank = unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int;
type AllReduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> c_int;
type AllGather = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, *mut c_void) -> c_int;
type CommDestroy = unsafe extern "C" fn(Comm) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;

unsafe extern "C" {
    fn simclr_use_device_of(like: *const C_tensor, stream: *mut *mut c_void) -> *mut c_char;
}

/// The loaded functions of NCCL, which is never unloaded.
#[derive(Debug, Clone, Copy)]
pub struct Functions {
    get_unique_id: GetUniqueId,
    comm_init_rank: CommInitRank,
    all_reduce: AllReduce,
    all_gather: AllGather,
    comm_destroy: CommDestroy,
    error_string: ErrorString,
}

impl Functions {
    /// Loads `file`; a bare name is searched by the dynamic loader.
    ///
    /// # Errors
    /// No such library, or one without these functions.
    pub fn load(file: &Path) -> Result<Self, ShimError> {
        let failed = |error: libloading::Error| ShimError(format!("{}: {error}", file.display()));
        // SAFETY: NCCL's initialisers do nothing but prepare NCCL; it is never unloaded. The types of the functions are those
        // of `nccl.h`.
        unsafe {
            let library = Library::open(Some(file), RTLD_NOW).map_err(failed)?;
            let loaded = Self {
                get_unique_id: *library.get(b"ncclGetUniqueId").map_err(failed)?,
                comm_init_rank: *library.get(b"ncclCommInitRank").map_err(failed)?,
                all_reduce: *library.get(b"ncclAllReduce").map_err(failed)?,
                all_gather: *library.get(b"ncclAllGather").map_err(failed)?,
                comm_destroy: *library.get(b"ncclCommDestroy").map_err(failed)?,
                error_string: *library.get(b"ncclGetErrorString").map_err(failed)?,
            };
            std::mem::forget(library);
            Ok(loaded)
        }
    }

    fn check(&self, result: c_int) -> Result<(), ShimError> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: NCCL returns a static text for every number.
        let text = unsafe { (self.error_string)(result) };
        // SAFETY: as above; NUL-terminated where it is not null.
        let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy());
        Err(ShimError(format!("NCCL: {} ({result})", text.unwrap_or_default())))
    }

    /// A new id; call on rank 0 only.
    ///
    /// # Errors
    /// NCCL errors.
    pub fn unique_id(&self) -> Result<UniqueId, ShimError> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: `id` has the size and layout of `ncclUniqueId`.
        self.check(unsafe { (self.get_unique_id)(&raw mut id) })?;
        Ok(id)
    }

    /// Joins the communicator `id` with the GPU of `like`; blocks until all `count` ranks have joined.
    ///
    /// # Errors
    /// NCCL errors: two ranks on one GPU, no connection between GPUs.
    pub fn join(
        &self,
        id: UniqueId,
        (rank, count): (usize, usize),
        like: &Tensor,
    ) -> Result<Nccl, ShimError> {
        let mut comm = std::ptr::null_mut();
        let number = |value: usize| c_int::try_from(value).map_err(|error| ShimError(error.to_string()));
        let (rank, count) = (number(rank)?, number(count)?);
        stream(like)?;
        // SAFETY: `comm` is written on success only, checked; the id is passed as C passes it.
        self.check(unsafe { (self.comm_init_rank)(&raw mut comm, count, id, rank) })?;
        Ok(Nccl { library: *self, comm })
    }
}

/// Makes the device of `like` current on this thread, as NCCL requires, and returns libtorch's stream on it.
fn stream(like: &Tensor) -> Result<*mut c_void, ShimError> {
    let mut stream = std::ptr::null_mut();
    // SAFETY: both pointers are live for the call.
    check(unsafe { simclr_use_device_of(like.as_ptr(), &raw mut stream) })?;
    Ok(stream)
}

/// An NCCL communicator.
///
/// Collectives are enqueued on libtorch's current stream; every rank must issue those of one communicator in the same order.
#[derive(Debug)]
pub struct Nccl {
    library: Functions,
    comm: Comm,
}

// SAFETY: a communicator may be used from any thread, one at a time; a thread that enqueues holds its GPU first (`stream`).
unsafe impl Send for Nccl {}

impl Nccl {
    /// Sums `values` (contiguous, f32) over all ranks, in place. Asynchronous.
    ///
    /// # Errors
    /// A tensor of another dtype or layout; NCCL errors.
    pub fn all_reduce(&mut self, values: &Tensor) -> Result<(), ShimError> {
        contiguous_f32(values)?;
        let stream = stream(values)?;
        let (start, count) = (values.data_ptr(), values.numel());
        // SAFETY: `start` is the first of `count` f32 values, which stay allocated until the stream has passed this point:
        // libtorch frees memory in stream order.
        let done = unsafe { (self.library.all_reduce)(start, start, count, FLOAT32, SUM, self.comm, stream) };
        self.library.check(done)
    }

    /// The values of all `ranks` ranks, by rank: `[ranks * rows, ..]` of `own` `[rows, ..]` (contiguous, f32, the same shape on every
    /// rank). Asynchronous.
    ///
    /// # Errors
    /// See [`Nccl::all_reduce`].
    pub fn all_gather(&mut self, own: &Tensor, ranks: usize) -> Result<Tensor, ShimError> {
        contiguous_f32(own)?;
        let mut shape = own.size();
        let rows = shape.first_mut().ok_or_else(|| ShimError("expected rows, got a scalar".into()))?;
        *rows *= ranks as i64;
        let all = Tensor::f_empty(&shape, (Kind::Float, own.device()))?;
        let stream = stream(own)?;
        let (from, count) = (own.data_ptr(), own.numel());
        // SAFETY: `all` has room for `count` f32 values of every rank; see `all_reduce`.
        let done =
            unsafe { (self.library.all_gather)(from, all.data_ptr(), count, FLOAT32, self.comm, stream) };
        self.library.check(done)?;
        Ok(all)
    }
}

fn contiguous_f32(values: &Tensor) -> Result<(), ShimError> {
    if values.kind() == Kind::Float && values.is_contiguous() {
        return Ok(());
    }
    let (kind, shape) = (values.kind(), values.size());
    Err(ShimError(format!("expected a contiguous f32 tensor, got {kind:?} {shape:?}")))
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // SAFETY: made by `join`, destroyed once; errors at shutdown are irrelevant.
        let _ = unsafe { (self.library.comm_destroy)(self.comm) };
    }
}
