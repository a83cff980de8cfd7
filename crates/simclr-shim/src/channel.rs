//! The collectives that MPI and Gloo provide alike.

use std::{ffi::c_int, fmt::Debug};

use crate::ShimError;

/// A communicator over all ranks. All methods are collective: every rank calls them in the same order. They fail if a peer is lost.
pub trait Channel: Debug + Send + Sync {
    /// Sum over all ranks, in place; bit-identical on all ranks.
    fn all_reduce(&self, values: &mut [f32]) -> Result<(), ShimError>;
    /// [`Channel::all_reduce`] of f64.
    fn all_reduce_f64(&self, values: &mut [f64]) -> Result<(), ShimError>;
    /// The bytes of every rank; lengths may differ.
    fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, ShimError>;
    /// Copies the bytes of rank `from` to all ranks; lengths must be equal.
    fn broadcast(&self, from: usize, bytes: &mut [u8]) -> Result<(), ShimError>;
    /// Waits until all ranks have called it.
    fn barrier(&self) -> Result<(), ShimError>;
}

/// Ends the process at once: no destructor and no exit handler runs, which could wait for a thread in a collective.
pub fn exit_now(code: i32) -> ! {
    unsafe extern "C" {
        fn _exit(code: c_int) -> !;
    }
    // SAFETY: may be called on any thread.
    unsafe { _exit(code) }
}
