//! All-reduce of gradients, overlapped with the backward pass.
//!
//! Gradients become ready from the last layer to the first. They are grouped into buckets, and a full bucket is reduced while the
//! backward pass fills the next, as in PyTorch's DistributedDataParallel (Li et al. 2020, arXiv 2006.15704): by NCCL on a stream of its
//! own, or by a thread.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Instant,
};

use simclr_shim::{hooks::GradientHook, stream::CudaEvent};
use tch::Tensor;

use super::{Communicator, DistConfig, ProcessGroup, scaling::Bucket};
use crate::params::Params;

/// Elements of a bucket on GPUs: 25 MiB, the default of DistributedDataParallel.
const GPU_BUCKET: usize = 25 * 1024 * 1024 / 4;
/// On CPUs: 4 MiB, because nothing overlaps with the last bucket, and networks are slower (bench/results/processes.txt).
const CPU_BUCKET: usize = 1024 * 1024;

/// All-reduces the gradients of a model; no-op in a group of one.
#[derive(Debug)]
pub struct GradientBuckets {
    state: Option<Arc<State>>,
    sums: Option<Receiver<SentBucket>>,
    thread: Option<JoinHandle<()>>,
    hooks: Vec<GradientHook>,
}

#[derive(Debug)]
struct State {
    /// The current backward pass is the last of the step: full buckets are sent.
    armed: AtomicBool,
    filling: Mutex<Filling>,
}

#[derive(Debug)]
struct Filling {
    /// Parameters by bucket.
    buckets: Vec<Vec<Tensor>>,
    /// Number of the backward pass, counted by [`GradientBuckets::arm`].
    pass: u64,
    /// Missing gradients by bucket.
    missing: Vec<usize>,
    /// When each bucket of this step was sent, and its bytes; buckets are sent in order, the same on every rank.
    sent: Vec<(Instant, usize)>,
    /// End of the last backward pass.
    end: Instant,
    group: ProcessGroup,
    out: Sender<SentBucket>,
}

/// A full bucket, flat.
#[derive(Debug)]
struct SentBucket {
    /// See [`Filling`].
    pass: u64,
    gradients: Tensor,
    /// Recorded behind the reduction on a GPU; `None` if the thread reduces.
    reduced: Option<CudaEvent>,
}

impl GradientBuckets {
    /// [`GradientBuckets::configured`] by the default, overlapped with the backward pass.
    pub fn new(params: &Params, group: &ProcessGroup) -> Self {
        Self::configured(&DistConfig::default(), params, group)
    }

    /// Starts the reducing thread, and with `dist.overlap` sets a hook on every parameter; without, all buckets are reduced in
    /// [`GradientBuckets::finish`].
    ///
    /// # Panics
    /// If no thread can be started, or libtorch rejects a hook on a leaf.
    pub fn configured(config: &DistConfig, params: &Params, group: &ProcessGroup) -> Self {
        if group.count() == 1 {
            return Self { state: None, sums: None, thread: None, hooks: Vec::new() };
        }
        let sizes: Vec<usize> = params.params().iter().map(|param| param.tensor.numel()).collect();
        let places = in_buckets(&sizes, if params.device().is_cuda() { GPU_BUCKET } else { CPU_BUCKET });
        let tensor = |&index: &usize| params.params()[index].tensor.shallow_clone();
        let buckets: Vec<Vec<Tensor>> =
            places.iter().map(|bucket| bucket.iter().map(tensor).collect()).collect();
        let (out, full) = channel();
        let filling = Mutex::new(Filling {
            buckets,
            pass: 0,
            missing: Vec::new(),
            sent: Vec::new(),
            end: Instant::now(),
            group: group.clone(),
            out,
        });
        let state = Arc::new(State { armed: AtomicBool::new(false), filling });
        let mut hooks = Vec::new();
        let hooked = if config.overlap { &places[..] } else { &[] };
        for (bucket, index) in hooked.iter().enumerate().flat_map(|(at, b)| b.iter().map(move |i| (at, i))) {
            let state = Arc::downgrade(&state);
            let call = move || state.upgrade().into_iter().for_each(|state| state.ready(bucket));
            let leaf = &params.params()[*index].tensor;
            hooks.push(GradientHook::new(leaf, call).expect("libtorch accepts a hook on a leaf"));
        }
        let (sums, thread) = start_reducer(group.clone(), full);
        Self { state: Some(state), sums: Some(sums), thread: Some(thread), hooks }
    }

    /// Declares the next backward pass the last one of the step (the only one unless the batch is split into chunks).
    pub fn arm(&self) {
        let Some(state) = &self.state else { return };
        let mut filling = state.filling();
        filling.pass += 1;
        filling.missing = filling.buckets.iter().map(Vec::len).collect();
        filling.sent.clear();
        state.armed.store(true, Ordering::Relaxed);
    }

    /// After that pass: waits until every gradient is the sum over all ranks.
    ///
    /// # Panics
    /// Without [`GradientBuckets::arm`], or if the reducing thread has panicked.
    pub fn finish(&self) {
        let (Some(state), Some(sums)) = (&self.state, &self.sums) else { return };
        assert!(state.armed.swap(false, Ordering::Relaxed), "arm() comes before the backward pass");
        let mut filling = state.filling();
        filling.end = Instant::now();
        while filling.sent.len() < filling.buckets.len() {
            filling.send();
        }
        for bucket in &filling.buckets {
            // A pass that failed, such as in a capture, leaves buckets that were never received.
            let of_this_pass = sums.iter().find(|sent| sent.pass == filling.pass);
            let SentBucket { gradients: sum, reduced, .. } =
                of_this_pass.expect("the reducing thread ends when this is dropped");
            if let Err(error) = reduced.map_or(Ok(()), |reduced| reduced.wait(&sum)) {
                filling.group.abort(&error.to_string());
            }
            let mut at = 0;
            for leaf in bucket {
                let (count, mut gradient) = (leaf.numel() as i64, leaf.grad());
                // Leaves without a gradient on any rank (of a frozen encoder) keep none.
                if gradient.defined() {
                    tch::no_grad(|| gradient.copy_(&sum.narrow(0, at, count).view_as(&gradient)));
                }
                at += count;
            }
        }
    }

    /// Those of the last step, as the host sent them; none in a group of one.
    pub fn last_step(&self) -> Vec<Bucket> {
        let Some(state) = &self.state else { return Vec::new() };
        let filling = state.filling();
        let bucket = |&(sent, bytes): &(Instant, usize)| Bucket {
            bytes,
            ready_before_end: filling.end.saturating_duration_since(sent).as_secs_f64(),
        };
        filling.sent.iter().map(bucket).collect()
    }
}

impl Drop for GradientBuckets {
    fn drop(&mut self) {
        // The thread ends when all senders are dropped; it must end before MPI is finalised.
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
        while filling.missing.get(filling.sent.len()) == Some(&0) {
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
        let bucket = &self.buckets[self.sent.len()];
        let full = tch::no_grad(|| Tensor::cat(&bucket.iter().map(flat).collect::<Vec<_>>(), 0));
        let reduced = self.group.start_all_reduce(&full);
        self.sent.push((Instant::now(), 4 * full.numel()));
        // The receiver is dropped after this sender.
        let _ = self.out.send(SentBucket { pass: self.pass, gradients: full, reduced });
    }
}

/// Parameter indices by bucket, in the order in which gradients become ready: from the last to the first.
fn in_buckets(sizes: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut buckets: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for index in (0..sizes.len()).rev() {
        if sizes[index] > room {
            buckets.push(Vec::new());
            room = most;
        }
        room = room.saturating_sub(sizes[index]);
        buckets.last_mut().into_iter().for_each(|bucket| bucket.push(index));
    }
    buckets
}

/// The reducing thread: full buckets in, sums out, in the same order. It ends when the sender is dropped.
fn start_reducer(group: ProcessGroup, full: Receiver<SentBucket>) -> (Receiver<SentBucket>, JoinHandle<()>) {
    let (out, sums) = channel();
    let work = move || {
        for bucket in full {
            if bucket.reduced.is_none() {
                group.all_reduce_in_place(Communicator::Gradients, &bucket.gradients);
            }
            if out.send(bucket).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("gradients".into()).spawn(work);
    (sums, thread.expect("a thread can be started"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_partition_parameters_from_the_last() {
        let buckets = |sizes: &[usize]| in_buckets(sizes, 100);
        assert_eq!(buckets(&[10, 100, 3, 98, 4]), [vec![4], vec![3], vec![2], vec![1], vec![0]]);
        assert_eq!(buckets(&[10, 20, 30]), [vec![2, 1, 0]]);
        assert_eq!(buckets(&[105, 1]), [vec![1], vec![0]]);
        assert!(buckets(&[]).is_empty());
    }
}
