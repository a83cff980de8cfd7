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
    fn simclr_stream_of_pool(like: *const C_tensor, stream: *mut i64) -> *mut c_char;
    fn simclr_stream_switch(stream: *const i64, ordered: c_int, previous: *mut i64) -> *mut c_char;
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

/// A stream of libtorch's pool, as packed by `stream.cpp`; none on the CPU.
#[derive(Debug, Clone, Copy)]
struct Stream([i64; 3]);

impl Stream {
    fn of_pool(like: &Tensor) -> Result<Self, ShimError> {
        let mut packed = [0; 3];
        // SAFETY: the tensor is borrowed for the call; `packed` has three elements.
        check(unsafe { simclr_stream_of_pool(like.as_ptr(), packed.as_mut_ptr()) })?;
        Ok(Self(packed))
    }

    /// Makes this stream the current one of this thread, if `ordered` after the work of the previous one, which is returned.
    fn enter(self, ordered: bool) -> Result<Self, ShimError> {
        let mut previous = [0; 3];
        // SAFETY: both have three elements; the first were written by `stream.cpp`.
        check(unsafe { simclr_stream_switch(self.0.as_ptr(), c_int::from(ordered), previous.as_mut_ptr()) })?;
        Ok(Self(previous))
    }
}

/// Makes a stream from libtorch's pool current on this thread until it is dropped; the streams are ordered one after the other.
/// Graph capture needs a non-default stream, and copies on a stream of their own overlap with computation. Not `Send`.
#[derive(Debug)]
pub struct StreamGuard {
    previous: Stream,
    _not_send: std::marker::PhantomData<*const ()>,
}

impl StreamGuard {
    /// A stream of the device of `like`.
    ///
    /// # Errors
    /// CUDA errors.
    pub fn new(like: &Tensor) -> Result<Self, ShimError> {
        let previous = Stream::of_pool(like)?.enter(true)?;
        Ok(Self { previous, _not_send: std::marker::PhantomData })
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        // CUDA errors are sticky: the next call reports them.
        let _ = self.previous.enter(true);
    }
}

/// A stream for work that runs concurrently with later work of the current stream.
#[derive(Debug)]
pub struct SideStream(Stream);

impl SideStream {
    /// On the device of `like`.
    ///
    /// # Errors
    /// CUDA errors.
    pub fn new(like: &Tensor) -> Result<Self, ShimError> {
        Stream::of_pool(like).map(Self)
    }

    /// Launches `work` on this stream, after what the current stream of the device of `like` has been given so far. A reader of
    /// its results on another stream waits for the event.
    ///
    /// # Errors
    /// The error of `work`; CUDA errors.
    pub fn launch(
        &self,
        like: &Tensor,
        work: impl FnOnce() -> Result<(), ShimError>,
    ) -> Result<CudaEvent, ShimError> {
        let previous = self.0.enter(true)?;
        let launched = work().and_then(|()| CudaEvent::new(like));
        previous.enter(false)?;
        launched
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
