//! Streams and events of a GPU, and CUDA graphs (C++ side: `stream.cpp`). Streams and events are no-ops on the CPU.

use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check};

#[repr(C)]
struct CEvent {
    _opaque: [u8; 0],
}

#[repr(C)]
struct CGraph {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn simclr_stream_enter(like: *const C_tensor, previous: *mut i64) -> *mut c_char;
    fn simclr_stream_leave(previous: *const i64) -> *mut c_char;
    fn simclr_event_record(like: *const C_tensor, out: *mut *mut CEvent) -> *mut c_char;
    fn simclr_event_wait(event: *const CEvent, tensor: *const C_tensor) -> *mut c_char;
    fn simclr_event_synchronize(event: *const CEvent) -> *mut c_char;
    fn simclr_event_free(event: *mut CEvent);
    fn simclr_graph_begin(out: *mut *mut CGraph) -> *mut c_char;
    fn simclr_graph_end(graph: *mut CGraph) -> *mut c_char;
    fn simclr_graph_replay(graph: *mut CGraph) -> *mut c_char;
    fn simclr_graph_free(graph: *mut CGraph);
    fn simclr_cudnn(deterministic: c_int);
}

/// Makes a stream from libtorch's pool current on this thread until it is dropped; the streams are ordered one after the other.
/// Graph capture needs a non-default stream, and copies on a stream of their own overlap with computation. Not `Send`.
#[derive(Debug)]
pub struct StreamGuard {
    previous: [i64; 3],
    _not_send: std::marker::PhantomData<*const ()>,
}

impl StreamGuard {
    /// A stream of the device of `like`.
    ///
    /// # Errors
    /// CUDA errors.
    pub fn new(like: &Tensor) -> Result<Self, ShimError> {
        let mut previous = [0; 3];
        // SAFETY: the tensor is borrowed for the call; `previous` has three elements.
        check(unsafe { simclr_stream_enter(like.as_ptr(), previous.as_mut_ptr()) })?;
        Ok(Self { previous, _not_send: std::marker::PhantomData })
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        // SAFETY: written by `simclr_stream_enter`. CUDA errors are sticky: the next call reports them.
        let _ = check(unsafe { simclr_stream_leave(self.previous.as_ptr()) });
    }
}

/// A point in a stream that another stream can wait for.
#[derive(Debug)]
pub struct CudaEvent(*mut CEvent);

// SAFETY: an event may be waited for on any thread.
unsafe impl Send for CudaEvent {}

impl CudaEvent {
    /// Records an event on this thread's current stream of the device of `like`.
    ///
    /// # Errors
    /// CUDA errors.
    pub fn new(like: &Tensor) -> Result<Self, ShimError> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the tensor is borrowed for the call; `event` is written on success.
        check(unsafe { simclr_event_record(like.as_ptr(), &mut event) })?;
        Ok(Self(event))
    }

    /// Makes this thread's current stream wait for the event. The memory of `tensor`, allocated on the other stream, is not
    /// reused before this stream has passed this point.
    ///
    /// # Errors
    /// CUDA errors.
    pub fn wait(&self, tensor: &Tensor) -> Result<(), ShimError> {
        // SAFETY: both live for the call.
        check(unsafe { simclr_event_wait(self.0, tensor.as_ptr()) })
    }

    /// Makes the host wait for the event.
    ///
    /// # Errors
    /// CUDA errors, also those of earlier work on the stream.
    pub fn synchronize(&self) -> Result<(), ShimError> {
        // SAFETY: lives for the call.
        check(unsafe { simclr_event_synchronize(self.0) })
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        // SAFETY: made by `simclr_event_record`, freed once.
        unsafe { simclr_event_free(self.0) }
    }
}

/// A captured, replayable CUDA graph.
#[derive(Debug)]
pub struct CudaGraph(*mut CGraph);

// SAFETY: a graph may be replayed from any thread, one at a time.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Captures the GPU work that `work` launches on this thread's [`StreamGuard`], without executing it. A replay reads and
    /// writes the same memory, so input and output tensors of `work` must be kept.
    ///
    /// # Errors
    /// The error of `work`, or CUDA's if `work` synchronises or does what cannot be captured.
    pub fn capture<T, E: From<ShimError>>(work: impl FnOnce() -> Result<T, E>) -> Result<(Self, T), E> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: `graph` is written on success.
        check(unsafe { simclr_graph_begin(&mut graph) })?;
        let graph = Self(graph);
        let output = work();
        // SAFETY: begun above; ended even if `work` failed, as the stream accepts no other work before.
        let ended = check(unsafe { simclr_graph_end(graph.0) });
        let output = output?;
        ended?;
        Ok((graph, output))
    }

    /// Launches the captured work.
    ///
    /// # Errors
    /// CUDA errors.
    pub fn replay(&self) -> Result<(), ShimError> {
        // SAFETY: complete, as `capture` returned it.
        check(unsafe { simclr_graph_replay(self.0) })
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: made by `simclr_graph_begin`, freed once.
        unsafe { simclr_graph_free(self.0) }
    }
}

/// Restricts cuDNN to `deterministic` algorithms, or lets it benchmark all and take the fastest.
pub fn set_deterministic(deterministic: bool) {
    // SAFETY: sets two flags.
    unsafe { simclr_cudnn(c_int::from(deterministic)) }
}
