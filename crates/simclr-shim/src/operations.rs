//! Recording of the ATen operations that a closure calls (C++ side: `operations.cpp`).

use std::ffi::c_char;

use crate::{ShimError, check, take};

unsafe extern "C" {
    fn simclr_operations_begin(handle: *mut u64) -> *mut c_char;
    fn simclr_operations_end(handle: u64) -> *mut c_char;
}

/// The result of `work`, and the names of the ATen operations that it called on this thread, such as `aten::item`, in order. For
/// tests: a captured step must not synchronise with the host.
///
/// # Errors
/// libtorch errors.
pub fn operations<T>(work: impl FnOnce() -> T) -> Result<(T, Vec<String>), ShimError> {
    let mut handle = 0;
    // SAFETY: `handle` is written on success.
    check(unsafe { simclr_operations_begin(&mut handle) })?;
    let made = work();
    // SAFETY: `handle` was written above and is used once.
    let names = take(unsafe { simclr_operations_end(handle) }).unwrap_or_default();
    Ok((made, names.lines().map(str::to_owned).collect()))
}
