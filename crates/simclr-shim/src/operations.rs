//! Which of libtorch's operations something asks for (C++ side: `operations.cpp`).

use std::ffi::c_char;

use crate::{ShimError, check, take};

unsafe extern "C" {
    fn simclr_operations_begin(handle: *mut u64) -> *mut c_char;
    fn simclr_operations_end(handle: u64) -> *mut c_char;
}

/// What `work` gives, and the names of the operations that it asked libtorch for on this thread, such as `aten::item`, in
/// their order. For tests: a step that shall be recorded must not have the host wait for a number.
///
/// # Errors
/// What libtorch said.
pub fn operations<T>(work: impl FnOnce() -> T) -> Result<(T, Vec<String>), ShimError> {
    let mut handle = 0;
    // SAFETY: `handle` is written on success.
    check(unsafe { simclr_operations_begin(&mut handle) })?;
    let made = work();
    // SAFETY: begun above, ended once.
    let names = take(unsafe { simclr_operations_end(handle) }).unwrap_or_default();
    Ok((made, names.lines().map(str::to_owned).collect()))
}
