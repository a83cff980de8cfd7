//! Streams of a GPU, and steps recorded as CUDA graphs (C++ side: `stream.cpp`). On the CPU, which does one thing after the other,
//! streams are nothing.

use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check};

#[repr(C)]
struct CMark {
    _opaque: [u8; 0],
}

#[repr(C)]
struct CRecording {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn simclr_stream_own(like: *const C_tensor, before: *mut i64) -> *mut c_char;
    fn simclr_stream_back(before: *const i64) -> *mut c_char;
    fn simclr_mark(like: *const C_tensor, out: *mut *mut CMark) -> *mut c_char;
    fn simclr_mark_wait(mark: *const CMark, tensor: *const C_tensor) -> *mut c_char;
    fn simclr_mark_free(mark: *mut CMark);
    fn simclr_graph_begin(out: *mut *mut CRecording) -> *mut c_char;
    fn simclr_graph_end(recording: *mut CRecording) -> *mut c_char;
    fn simclr_graph_replay(recording: *mut CRecording) -> *mut c_char;
    fn simclr_graph_free(recording: *mut CRecording);
    fn simclr_cudnn(deterministic: c_int);
}

/// While it lives, this thread works on a stream of its own, behind what it asked of the device before. A recorded step needs
/// one, and copies on one go on beside another's work. Not to be sent to another thread.
#[derive(Debug)]
pub struct StreamGuard {
    before: [i64; 3],
    _of_this_thread: std::marker::PhantomData<*const ()>,
}

impl StreamGuard {
    /// For the device of `like`.
    ///
    /// # Errors
    /// What CUDA said.
    pub fn new(like: &Tensor) -> Result<Self, ShimError> {
        let mut before = [0; 3];
        // SAFETY: the tensor is borrowed for the call; `before` has room for three numbers.
        check(unsafe { simclr_stream_own(like.as_ptr(), before.as_mut_ptr()) })?;
        Ok(Self { before, _of_this_thread: std::marker::PhantomData })
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        // SAFETY: written by `simclr_stream_own`. What CUDA says here it says again to whoever uses it next.
        let _ = check(unsafe { simclr_stream_back(self.before.as_ptr()) });
    }
}

/// A point in a stream that another one can wait for.
#[derive(Debug)]
pub struct CudaEvent(*mut CMark);

// SAFETY: an event may be waited for on any thread.
unsafe impl Send for CudaEvent {}

impl CudaEvent {
    /// Where this thread's stream has come to on the device of `like`.
    ///
    /// # Errors
    /// What CUDA said.
    pub fn new(like: &Tensor) -> Result<Self, ShimError> {
        let mut mark = std::ptr::null_mut();
        // SAFETY: the tensor is borrowed for the call; `mark` is written on success.
        check(unsafe { simclr_mark(like.as_ptr(), &mut mark) })?;
        Ok(Self(mark))
    }

    /// This thread's stream goes on once the mark is reached. `made` is what the other stream made before it: its memory is
    /// kept until this stream, too, is done with it.
    ///
    /// # Errors
    /// What CUDA said.
    pub fn wait(&self, made: &Tensor) -> Result<(), ShimError> {
        // SAFETY: both live for the call.
        check(unsafe { simclr_mark_wait(self.0, made.as_ptr()) })
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        // SAFETY: made by `simclr_mark`, freed once.
        unsafe { simclr_mark_free(self.0) }
    }
}

/// What a device was asked to do, to be asked again at once.
#[derive(Debug)]
pub struct CudaGraph(*mut CRecording);

// SAFETY: a graph may be replayed from any thread, one at a time.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Records what `work` asks of the GPU, on this thread's [`StreamGuard`]; nothing is done meanwhile. Tensors that `work` takes in
    /// or gives out keep their places in memory: a replay reads and writes those same ones.
    ///
    /// # Errors
    /// `work` waits for the GPU, or does what cannot be recorded: its error, or CUDA's.
    pub fn capture<T, E: From<ShimError>>(work: impl FnOnce() -> Result<T, E>) -> Result<(Self, T), E> {
        let mut recording = std::ptr::null_mut();
        // SAFETY: `recording` is written on success.
        check(unsafe { simclr_graph_begin(&mut recording) })?;
        let recording = Self(recording);
        let made = work();
        // SAFETY: begun above; ended whatever became of `work`, as the stream takes no other work before.
        let ended = check(unsafe { simclr_graph_end(recording.0) });
        let made = made?;
        ended?;
        Ok((recording, made))
    }

    /// Asks the GPU again.
    ///
    /// # Errors
    /// What CUDA said.
    pub fn replay(&self) -> Result<(), ShimError> {
        // SAFETY: whole, as `of` returned it.
        check(unsafe { simclr_graph_replay(self.0) })
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: made by `simclr_graph_begin`, freed once.
        unsafe { simclr_graph_free(self.0) }
    }
}

/// How cuDNN convolves: `deterministic`, with the same bits in every run, or by whatever it finds to be the fastest.
pub fn set_deterministic(deterministic: bool) {
    // SAFETY: sets two flags.
    unsafe { simclr_cudnn(c_int::from(deterministic)) }
}
