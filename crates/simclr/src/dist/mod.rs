//! The process group of a run: rank, collectives, and the common end.
//!
//! Processes meet at an address that their launcher gives them and are connected by Gloo, or they are connected by MPI (feature
//! `mpi`); in a single process every collective is a no-op. Collectives are infallible to callers: on failure the [`FailureHandler`] reports the lost rank and aborts the job.

mod buckets;
mod collective_result;
mod gloo;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod nccl;
pub mod scaling;
mod shards;
#[cfg(test)]
pub(crate) mod threads;
mod watchdog;
mod watched;

use std::{
    fmt::{Debug, Display},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use simclr_shim::{Channel, stream::CudaEvent};
use tch::{Device, Kind, Tensor};

use self::{
    nccl::GpuCommunicators,
    scaling::Traffic,
    watched::{Connected, WatchedTransport},
};
use crate::{DistError, encoder::AllReduce};

pub use buckets::GradientBuckets;
pub use collective_result::{abort_group_on_error, all_ok, all_ok_with};
pub use launch::{DEFAULT_PORT, Launch, Rendezvous, host};
pub use shards::BatchShards;

/// `[dist]`: timeouts of the watchdog, and the all-reduce of the gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistConfig {
    /// Seconds without a heartbeat after which a rank counts as dead or disconnected.
    #[serde(alias = "silence_seconds")]
    pub heartbeat_timeout_s: f64,
    /// Minutes that a live rank may keep the others waiting (rank 0 evaluates and writes checkpoints meanwhile).
    #[serde(alias = "stall_minutes")]
    pub straggler_timeout_min: f64,
    /// Whether gradients are all-reduced in buckets (4 MiB, on GPUs 25) while the backward pass computes the next, as by
    /// DistributedDataParallel, or after it. The sums are the same, to the bit.
    pub overlap: bool,
}

impl Default for DistConfig {
    fn default() -> Self {
        Self { heartbeat_timeout_s: 18.0, straggler_timeout_min: 30.0, overlap: true }
    }
}

/// Called on any thread when a rank is lost; reports the failure and calls [`ProcessFailure::abort_all`].
pub type FailureHandler = Box<dyn Fn(&ProcessFailure<'_>) + Send + Sync>;

/// The loss of a rank.
pub struct ProcessFailure<'a> {
    /// The lost rank and the symptom.
    pub message: String,
    /// What the user can do.
    pub hint: String,
    abort: &'a dyn Fn(i32),
}

impl ProcessFailure<'_> {
    /// Aborts all processes; this one exits in any case.
    pub fn abort_all(&self, code: i32) {
        (self.abort)(code);
    }
}

/// Communicators, each with collectives in an order of its own, so that they may run concurrently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Communicator {
    /// Collectives of the training thread.
    Step,
    /// Batch-norm statistics, on the thread of the pass.
    Statistics,
    /// Gradients, concurrent with the backward pass.
    Gradients,
}

/// The collectives that a process group is built on. They abort the job on failure.
trait Transport: Debug + Send + Sync {
    fn all_reduce(&self, communicator: Communicator, values: &mut [f32]);
    fn all_reduce_f64(&self, values: &mut [f64]);
    fn all_gather(&self, own: &[u8]) -> Vec<Vec<u8>>;
    fn broadcast(&self, bytes: &mut [u8]);
    fn set_timeouts(&self, config: &DistConfig);
    /// Collective end of the run: stops the watchdog.
    fn finish(&self);
    /// Reports a failure of this rank and aborts the job. Does not return.
    fn abort(&self, message: &str);
}

/// The process group of a run.
#[derive(Debug, Clone)]
pub struct ProcessGroup {
    rank: usize,
    count: usize,
    local: Local,
    transport: Option<Arc<dyn Transport>>,
    /// See [`ProcessGroup::connect_gpus`].
    gpus: Arc<OnceLock<GpuCommunicators>>,
    /// Since the last [`ProcessGroup::take_traffic`].
    traffic: Arc<Mutex<Traffic>>,
}

/// The processes of this rank's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Local {
    rank: usize,
    count: usize,
    /// Processes that may run on the same processors.
    sharing: usize,
}

/// First character of an error message in [`ProcessGroup::all_ok`]; messages of successful ranks do not start with it.
const FAILED: char = '\0';

/// The failure of a collective result, see [`ProcessGroup::all_ok`].
#[derive(Debug)]
pub enum RankError<E> {
    /// This rank is the lowest one that failed; it reports the error.
    Local(E),
    /// Another rank failed and reports the error.
    Remote {
        /// The lowest failing rank.
        rank: usize,
        /// Its error message.
        message: String,
    },
}

impl ProcessGroup {
    /// A group of one process.
    pub fn alone() -> Self {
        let local = Local { rank: 0, count: 1, sharing: 1 };
        Self { rank: 0, count: 1, local, transport: None, gpus: Arc::default(), traffic: Arc::default() }
    }

    /// Joins the processes that the launcher started; a group of one without a launcher.
    ///
    /// # Errors
    /// A launcher of MPI without MPI in this build, or processes that do not find each other.
    pub fn join(on_failure: FailureHandler) -> Result<Self, DistError> {
        match Launch::of_environment()? {
            Launch::Alone => Ok(Self::alone()),
            Launch::Rendezvous(place) => Self::connected(gloo::connect(&place)?, on_failure),
            Launch::Mpi { count } => Self::join_mpi(count, on_failure),
        }
    }

    fn connected<C: Channel + 'static>(
        connected: Connected<C>,
        on_failure: FailureHandler,
    ) -> Result<Self, DistError> {
        let (rank, count) = (connected.rank, connected.hosts.len());
        let host = connected.hosts[rank].clone();
        let transport = Some(WatchedTransport::start(connected, on_failure)?);
        let mut group = Self { transport, rank, count, ..Self::alone() };
        let placements = group.all_gather_bytes(launch::placement(&host).as_bytes());
        group.local = local(&placements, group.rank);
        Ok(group)
    }

    #[cfg(feature = "mpi")]
    fn join_mpi(_: usize, on_failure: FailureHandler) -> Result<Self, DistError> {
        Self::connected(mpi::connect()?, on_failure)
    }

    #[cfg(not(feature = "mpi"))]
    fn join_mpi(count: usize, _: FailureHandler) -> Result<Self, DistError> {
        if count > 1 { Err(DistError::NotBuilt { count }) } else { Ok(Self::alone()) }
    }

    /// Rank of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether this is rank 0, which reports progress and writes files.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Rank among the processes of this machine, and index of the GPU.
    pub fn local_rank(&self) -> usize {
        self.local.rank
    }

    /// Number of processes on this machine.
    pub fn on_this_machine(&self) -> usize {
        self.local.count
    }

    /// Number of processes that share the processors of this one.
    pub fn sharing(&self) -> usize {
        self.local.sharing
    }

    /// Sets the watchdog's timeouts.
    pub fn set_timeouts(&self, config: &DistConfig) {
        if let Some(transport) = &self.transport {
            transport.set_timeouts(config);
        }
    }

    /// Collectives since the last call.
    pub fn take_traffic(&self) -> Traffic {
        std::mem::take(&mut *self.traffic())
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sum over all ranks, in place.
    pub fn all_reduce_f64(&self, values: &mut [f64]) {
        if let Some(transport) = &self.transport {
            self.traffic().count_sum(Communicator::Step, size_of_val(values));
            transport.all_reduce_f64(values);
        }
    }

    /// Sum of `values` (f32) over all ranks; bit-identical on all ranks.
    pub fn all_reduce(&self, values: &Tensor) -> Tensor {
        let sum = values.detach().copy();
        self.all_reduce_in_place(Communicator::Step, &sum);
        sum
    }

    /// Starts the sum of a bucket of gradients over all ranks, in place, and returns the event that its readers on the current stream
    /// wait for; `None` on the CPU, where a thread has to call [`ProcessGroup::all_reduce_in_place`].
    fn start_all_reduce(&self, bucket: &Tensor) -> Option<CudaEvent> {
        if let Some(reduced) = self.nccl_start_all_reduce(bucket) {
            self.count_all_reduce(Communicator::Gradients, bucket);
            return Some(reduced);
        }
        if bucket.device() == Device::Cpu {
            return None;
        }
        // Not on a thread: its stream would not be ordered after the backward pass.
        self.all_reduce_in_place(Communicator::Gradients, bucket);
        CudaEvent::new(bucket).map_err(|error| self.abort(&error.to_string())).ok()
    }

    fn count_all_reduce(&self, communicator: Communicator, values: &Tensor) {
        self.traffic().count_sum(communicator, values.numel() * values.kind().elt_size_in_bytes());
    }

    fn all_reduce_in_place(&self, communicator: Communicator, values: &Tensor) {
        let Some(transport) = &self.transport else { return };
        self.count_all_reduce(communicator, values);
        if self.nccl_all_reduce(values) {
            return;
        }
        let reduce = |values: &mut [f32]| transport.all_reduce(communicator, values);
        let mut own = values.shallow_clone();
        if simclr_shim::hooks::with_floats(&mut own, reduce).is_none() {
            // Another device or layout: through the host.
            let mut host = own.to_device(Device::Cpu).contiguous();
            simclr_shim::hooks::with_floats(&mut host, reduce).expect("a contiguous f32 tensor on the CPU");
            tch::no_grad(|| own.copy_(&host));
        }
    }

    /// The bytes of every rank, by rank; lengths may differ.
    pub fn all_gather_bytes(&self, own: &[u8]) -> Vec<Vec<u8>> {
        let Some(transport) = &self.transport else { return vec![own.to_vec()] };
        self.traffic().count_gathered(own.len());
        transport.all_gather(own)
    }

    /// Concatenates the rows of all ranks: `own` is `[rows, D]`, f32; the number of rows may differ.
    pub fn all_gather_rows(&self, own: &Tensor) -> Tensor {
        // Only NCCL needs them.
        let counts = self.has_nccl().then(|| self.all_gather_usize(&[own.size()[0] as usize]).concat());
        self.all_gather_counted_rows(own, &counts.unwrap_or_default())
    }

    /// [`ProcessGroup::all_gather_rows`] where the numbers of rows by rank are known, so that NCCL needs nothing of the host.
    pub fn all_gather_counted_rows(&self, own: &Tensor, counts: &[usize]) -> Tensor {
        if self.transport.is_none() {
            return own.detach();
        }
        if let Some(rows) = self.nccl_all_gather_rows(own, counts) {
            return rows;
        }
        let (width, device) = (own.size()[1], own.device());
        let mut host = own.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let bytes = simclr_shim::hooks::with_bytes(&mut host, |bytes| bytes.to_vec()).unwrap_or_default();
        let rows = self.all_gather_bytes(&bytes).into_iter().map(|bytes| {
            Tensor::from_data_size(&bytes, &[bytes.len() as i64 / (4 * width), width], Kind::Float)
        });
        Tensor::cat(&rows.collect::<Vec<_>>(), 0).to_device(device)
    }

    /// The integers of every rank, by rank; lengths may differ.
    pub fn all_gather_usize(&self, own: &[usize]) -> Vec<Vec<usize>> {
        let bytes: Vec<u8> = own.iter().flat_map(|&number| (number as u64).to_le_bytes()).collect();
        let numbers = |bytes: Vec<u8>| {
            let (words, _) = bytes.as_chunks();
            words.iter().map(|&word| u64::from_le_bytes(word) as usize).collect()
        };
        self.all_gather_bytes(&bytes).into_iter().map(numbers).collect()
    }

    /// Replaces `tensor` (f32) by its mean over all ranks.
    pub fn average(&self, tensor: &Tensor) {
        let mean = self.all_reduce(tensor) / self.count as f64;
        tch::no_grad(|| tensor.shallow_clone().copy_(&mean));
    }

    /// Copies rank 0's tensor to all ranks.
    pub fn broadcast(&self, tensor: &Tensor) {
        let Some(transport) = &self.transport else { return };
        let mut host = tensor.detach().to_device(Device::Cpu).contiguous();
        let done = simclr_shim::hooks::with_bytes(&mut host, |bytes| transport.broadcast(bytes));
        done.expect("a contiguous tensor on the CPU");
        tch::no_grad(|| tensor.shallow_clone().detach().copy_(&host));
    }

    /// Returns rank 0's text on all ranks.
    pub fn broadcast_text(&self, text: &str) -> String {
        let own = if self.is_first() { text } else { "" };
        let mut all = self.all_gather_bytes(own.as_bytes());
        String::from_utf8_lossy(&all.swap_remove(0)).into_owned()
    }

    /// Logical or over all ranks.
    pub fn any(&self, here: bool) -> bool {
        let mut count = [f64::from(u8::from(here))];
        self.all_reduce_f64(&mut count);
        count[0] > 0.0
    }

    /// Collective result: `Ok` if every rank is `Ok`, with the message of each rank, by rank; otherwise the error of the lowest
    /// failing rank.
    ///
    /// # Errors
    /// [`RankError`].
    pub fn all_ok<T, E: Display>(
        &self,
        own: Result<T, E>,
        message: impl FnOnce(&T) -> String,
    ) -> Result<(T, Vec<String>), RankError<E>> {
        let text = own.as_ref().map_or_else(|error| format!("{FAILED}{error}"), message);
        let all = self.all_gather_bytes(text.as_bytes());
        let all: Vec<String> = all.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
        let failed = all.iter().enumerate().find_map(|(rank, text)| Some((rank, text.strip_prefix(FAILED)?)));
        match (failed, own) {
            (None, Ok(value)) => Ok((value, all)),
            (Some((rank, message)), own) => Err(match own {
                Err(error) if rank == self.rank => RankError::Local(error),
                _ => RankError::Remote { rank, message: message.to_owned() },
            }),
            (None, Err(error)) => Err(RankError::Local(error)),
        }
    }

    /// Reports a failure of this rank in the middle of a step, where other ranks wait in a collective, and aborts the job.
    pub fn abort(&self, message: &str) {
        if let Some(transport) = &self.transport {
            transport.abort(&format!("rank {}: {message}", self.rank));
        }
    }

    /// Collective end of the run.
    pub fn finish(&self) {
        if let Some(transport) = &self.transport {
            transport.finish();
        }
    }

    /// The all-reduce of batch-norm statistics over all ranks; `None` in a group of one.
    pub fn norm_all_reduce(&self) -> Option<Arc<dyn AllReduce>> {
        (self.count > 1).then(|| Arc::new(NormAllReduce(self.clone())) as Arc<dyn AllReduce>)
    }
}

/// See [`ProcessGroup::norm_all_reduce`].
#[derive(Debug)]
struct NormAllReduce(ProcessGroup);

impl AllReduce for NormAllReduce {
    fn all_reduce_sum(&self, values: &Tensor) {
        self.0.all_reduce_in_place(Communicator::Statistics, values);
    }
}

/// The local ranks of rank `own`, from the [`launch::placement`] of every rank.
fn local(placements: &[Vec<u8>], own: usize) -> Local {
    let host = |rank: &usize| placements[*rank].split(|&byte| byte == b'\t').next();
    let local = |rank: &usize| host(rank) == host(&own);
    Local {
        rank: (0..own).filter(local).count(),
        count: (0..placements.len()).filter(local).count(),
        sharing: placements.iter().filter(|placement| **placement == placements[own]).count(),
    }
}

/// Heartbeat and straggler timeout.
fn timeouts(config: &DistConfig) -> (Duration, Duration) {
    let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX);
    (seconds(config.heartbeat_timeout_s), seconds(60.0 * config.straggler_timeout_min))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ranks_are_counted_by_machine() {
        let placements: Vec<Vec<u8>> =
            ["a\t0-3", "b\t0-1", "a\t0-3", "b\t2-3"].iter().map(|place| place.as_bytes().to_vec()).collect();
        let found: Vec<Local> = (0..4).map(|rank| local(&placements, rank)).collect();
        let expected =
            [(0, 2), (0, 1), (1, 2), (1, 1)].map(|(rank, sharing)| Local { rank, count: 2, sharing });
        assert_eq!(found, expected);
    }

    #[test]
    fn collectives_of_one_process_are_the_identity() {
        let group = ProcessGroup::alone();
        let rows = Tensor::from_slice(&[1.0f32, 2.0]).view([2, 1]);
        assert_eq!(group.all_gather_rows(&rows), rows);
        assert_eq!(group.all_reduce(&rows), rows);
        assert_eq!(group.all_gather_usize(&[7, 300]), [[7, 300]]);
        assert_eq!(group.broadcast_text("x"), "x");
        assert!(group.any(true) && !group.any(false) && group.norm_all_reduce().is_none());
        assert!(matches!(group.all_ok(Err::<(), _>("no"), |()| String::new()), Err(RankError::Local("no"))));
        assert_eq!(group.all_ok(Ok::<_, String>(5), |v| v.to_string()).unwrap(), (5, vec!["5".to_owned()]));
    }
}
