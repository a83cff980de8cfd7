//! Gradients added up over all ranks while the backward pass still goes on.
//!
//! Gradients become ready from the last layer to the first. They are put together in buckets, so that few large messages
//! go out in place of many small ones, and a thread adds up a full bucket while the backward pass fills the next (as
//! PyTorch's DistributedDataParallel does, Li et al. 2020, arXiv 2006.15704).

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use simclr_shim::hooks::GradientHook;
use tch::{Device, Tensor};

use super::{Communicator, ProcessGroup};
use crate::params::Params;

/// Numbers in a bucket: 25 MB, as DistributedDataParallel's.
const BUCKET: usize = 25 * 1024 * 1024 / 4;

/// Adds up the gradients of a model. For one process alone it does nothing.
#[derive(Debug)]
pub struct GradientBuckets {
    state: Option<Arc<State>>,
    sums: Option<Receiver<Tensor>>,
    thread: Option<JoinHandle<()>>,
    hooks: Vec<GradientHook>,
}

#[derive(Debug)]
struct State {
    /// Gradients of this pass are the last ones of the step: what is ready may go.
    armed: AtomicBool,
    filling: Mutex<Filling>,
}

#[derive(Debug)]
struct Filling {
    /// The parameters of each.
    buckets: Vec<Vec<Tensor>>,
    /// Gradients that each bucket waits for.
    missing: Vec<usize>,
    /// GradientBuckets that have gone; they go in order, on every rank alike.
    gone: usize,
    group: ProcessGroup,
    out: Sender<Tensor>,
}

impl GradientBuckets {
    /// Hooks for every parameter, and the thread that adds up.
    ///
    /// # Panics
    /// If the system gives no thread, or libtorch refuses a hook on a leaf: there is no run without them.
    pub fn new(params: &Params, group: &ProcessGroup) -> Self {
        if group.count() == 1 {
            return Self { state: None, sums: None, thread: None, hooks: Vec::new() };
        }
        let places =
            in_buckets(&params.params().iter().map(|param| param.tensor.numel()).collect::<Vec<_>>());
        let tensor = |&index: &usize| params.params()[index].tensor.shallow_clone();
        let buckets: Vec<Vec<Tensor>> =
            places.iter().map(|bucket| bucket.iter().map(tensor).collect()).collect();
        let (out, full) = channel();
        let filling =
            Mutex::new(Filling { buckets, missing: Vec::new(), gone: 0, group: group.clone(), out });
        let state = Arc::new(State { armed: AtomicBool::new(false), filling });
        let mut hooks = Vec::new();
        for (bucket, index) in places.iter().enumerate().flat_map(|(at, b)| b.iter().map(move |i| (at, i))) {
            let state = Arc::downgrade(&state);
            let call = move || state.upgrade().into_iter().for_each(|state| state.ready(bucket));
            let leaf = &params.params()[*index].tensor;
            hooks.push(GradientHook::new(leaf, call).expect("libtorch takes a hook on a leaf"));
        }
        let (sums, thread) = add_up(group.clone(), full);
        Self { state: Some(state), sums: Some(sums), thread: Some(thread), hooks }
    }

    /// The next backward pass is the last one of the step (the only one, unless the batch goes through in chunks).
    pub fn arm(&self) {
        let Some(state) = &self.state else { return };
        let mut filling = state.filling();
        filling.missing = filling.buckets.iter().map(Vec::len).collect();
        filling.gone = 0;
        state.armed.store(true, Ordering::Relaxed);
    }

    /// After that pass: waits until every gradient is the sum over all ranks.
    ///
    /// # Panics
    /// If it was not armed, or the thread that adds up is gone.
    pub fn finish(&self) {
        let (Some(state), Some(sums)) = (&self.state, &self.sums) else { return };
        assert!(state.armed.swap(false, Ordering::Relaxed), "armed before the backward pass");
        let mut filling = state.filling();
        while filling.gone < filling.buckets.len() {
            filling.send();
        }
        for bucket in &filling.buckets {
            let sum = sums.recv().expect("the thread that adds up lives as long as this");
            let mut at = 0;
            for leaf in bucket {
                let (numbers, mut gradient) = (leaf.numel() as i64, leaf.grad());
                // A leaf that no rank has a gradient of (a frozen encoder's) keeps none.
                if gradient.defined() {
                    tch::no_grad(|| gradient.copy_(&sum.narrow(0, at, numbers).view_as(&gradient)));
                }
                at += numbers;
            }
        }
    }
}

impl Drop for GradientBuckets {
    fn drop(&mut self) {
        // The thread ends when nobody can send to it any more; it must not outlive the run's hold on MPI.
        self.hooks.clear();
        self.state = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl State {
    fn filling(&self) -> MutexGuard<'_, Filling> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by the hook of a parameter of this bucket.
    fn ready(&self, bucket: usize) {
        if !self.armed.load(Ordering::Relaxed) {
            return;
        }
        let mut filling = self.filling();
        filling.missing[bucket] = filling.missing[bucket].saturating_sub(1);
        while filling.missing.get(filling.gone) == Some(&0) {
            filling.send();
        }
    }
}

impl Filling {
    /// Sends the next bucket.
    fn send(&mut self) {
        let flat = |leaf: &Tensor| {
            let gradient = leaf.grad();
            if gradient.defined() { gradient.reshape([-1]) } else { leaf.zeros_like().detach().reshape([-1]) }
        };
        let bucket = &self.buckets[self.gone];
        let full = tch::no_grad(|| Tensor::cat(&bucket.iter().map(flat).collect::<Vec<_>>(), 0));
        if full.device() != Device::Cpu {
            // Put on the GPU's stream at once, in the order of the pass, which is the same on every rank; it does not wait.
            self.group.all_reduce_in_place(Communicator::Gradients, &full);
        }
        self.gone += 1;
        // The other end goes when this is dropped, not before.
        let _ = self.out.send(full);
    }
}

/// Indices of the parameters in each bucket, in the order in which gradients become ready: from the last to the first.
fn in_buckets(numbers: &[usize]) -> Vec<Vec<usize>> {
    let mut buckets: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for index in (0..numbers.len()).rev() {
        if numbers[index] > room {
            buckets.push(Vec::new());
            room = BUCKET;
        }
        room = room.saturating_sub(numbers[index]);
        buckets.last_mut().into_iter().for_each(|bucket| bucket.push(index));
    }
    buckets
}

/// The thread: full buckets in, sums out, in the same order. It ends with the sender.
fn add_up(group: ProcessGroup, full: Receiver<Tensor>) -> (Receiver<Tensor>, JoinHandle<()>) {
    let (out, sums) = channel();
    let work = move || {
        for bucket in full {
            if bucket.device() == Device::Cpu {
                group.all_reduce_in_place(Communicator::Gradients, &bucket);
            }
            if out.send(bucket).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("gradients".into()).spawn(work);
    (sums, thread.expect("the system gives a thread"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_every_parameter_once_from_the_last() {
        let sizes = [10, BUCKET, 3, BUCKET - 2, 4];
        assert_eq!(in_buckets(&sizes), [vec![4], vec![3], vec![2], vec![1], vec![0]]);
        assert_eq!(in_buckets(&[10, 20, 30]), [vec![2, 1, 0]]);
        assert_eq!(in_buckets(&[BUCKET + 5, 1]), [vec![1], vec![0]]);
        assert!(in_buckets(&[]).is_empty());
    }
}
