//! Small tensor operations at the same time, each on one thread (C++ side: `parallel.cpp`).

use std::{
    any::Any,
    ffi::{c_char, c_void},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, PoisonError},
};

use crate::{ShimError, check};

type Panic = Box<dyn Any + Send>;
type Task<'a> = dyn Fn(usize) -> Result<(), Panic> + Sync + 'a;

unsafe extern "C" {
    fn simclr_in_parallel(
        tasks: i64,
        task: extern "C" fn(*mut c_void, i64),
        context: *mut c_void,
    ) -> *mut c_char;
}

struct Context<'a> {
    task: &'a Task<'a>,
    panic: Mutex<Option<Panic>>,
}

/// Calls `work` with each of `items`, in their order, on libtorch's threads, without gradients. A thread that is free takes the next one,
/// and operations on CPU tensors within `work` run on that thread alone: two threads gain little on a product of matrices of some hundred
/// rows, and lose on smaller ones.
///
/// # Errors
/// libtorch errors.
///
/// # Panics
/// As `work` does, when the other items are done.
pub fn in_parallel<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) -> Result<(), ShimError> {
    let slots: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let task = |index: usize| {
        let item = slots[index].lock().unwrap_or_else(PoisonError::into_inner).take();
        catch_unwind(AssertUnwindSafe(|| tch::no_grad(|| item.map_or((), &work))))
    };
    let context = Context { task: &task, panic: Mutex::new(None) };
    let address: *const Context<'_> = &raw const context;
    // SAFETY: `context` outlives the call, which returns when all tasks have ended, and may be shared: `Task` is `Sync`.
    unsafe { check(simclr_in_parallel(slots.len() as i64, call, address.cast_mut().cast()))? };
    match context.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(panic) => resume_unwind(panic),
        None => Ok(()),
    }
}

/// Panics must not unwind through C++ frames.
extern "C" fn call(context: *mut c_void, index: i64) {
    // SAFETY: the context of `in_parallel`, which waits for this call.
    let context = unsafe { &*context.cast::<Context<'_>>() };
    if let Err(panic) = (context.task)(index as usize) {
        context.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tch::{Device, Kind, Tensor};

    use super::*;

    /// Each item once, by several threads, without a graph; tensors of one task are computed by its thread.
    #[test]
    fn every_item_is_processed_once() {
        let options = (Kind::Float, Device::Cpu);
        let leaf = || Tensor::ones([64, 64], options).set_requires_grad(true);
        let items: Vec<_> = (0..37).map(|index| (index, leaf())).collect();
        let results = Mutex::new(vec![None; items.len()]);
        in_parallel(items, |(index, leaf)| {
            let product = leaf.matmul(&(&leaf * index as f64));
            let found = (product.double_value(&[5, 7]), product.requires_grad());
            assert_eq!(results.lock().unwrap()[index].replace(found), None);
        })
        .unwrap();
        let expected: Vec<_> = (0..37).map(|index| Some((64.0 * f64::from(index), false))).collect();
        assert_eq!(results.into_inner().unwrap(), expected);
        in_parallel(Vec::<usize>::new(), |_| unreachable!()).unwrap();
    }

    #[test]
    fn a_panic_is_resumed_after_the_other_items() {
        let done = AtomicUsize::new(0);
        let work = |index: usize| {
            assert_ne!(index, 3, "item three");
            done.fetch_add(1, Ordering::Relaxed);
        };
        let panic = catch_unwind(AssertUnwindSafe(|| in_parallel((0..9).collect(), work))).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("item three"));
        assert_eq!(done.into_inner(), 8);
    }
}
