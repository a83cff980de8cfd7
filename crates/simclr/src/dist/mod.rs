//! The processes of one run: who this is, what they exchange, and how they end together.
//!
//! MPI starts and connects them (feature `mpi`); one process alone needs none, and every exchange is then nothing. An
//! exchange has no error: where one fails, a process is lost and the run is over, which is said and done through the
//! [`FailureHandler`] that the command line gave.

mod buckets;
mod collective_result;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod nccl;
mod shards;
#[cfg(feature = "mpi")]
mod watchdog;

use std::{
    fmt::{Debug, Display},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use simclr_shim::nccl::Nccl;
use tch::{Device, Kind, Tensor};

use crate::{DistError, encoder::AllReduce};

pub use buckets::GradientBuckets;
pub use collective_result::{abort_group_on_error, all_ok, all_ok_with};
pub use launch::Launch;
pub use shards::BatchShards;

/// `[ranks]`: when a process counts as lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistConfig {
    /// Seconds without a sign of life after which a process counts as dead or cut off.
    pub silence_seconds: f64,
    /// Minutes that a living process may keep the others waiting (rank 0 evaluates and writes checkpoints meanwhile).
    pub stall_minutes: f64,
}

impl Default for DistConfig {
    fn default() -> Self {
        Self { silence_seconds: 18.0, stall_minutes: 30.0 }
    }
}

/// What is called, on any thread, when another process is lost. It says so and calls [`ProcessFailure::abort_all`].
pub type FailureHandler = Box<dyn Fn(&ProcessFailure<'_>) + Send + Sync>;

/// The end of a run for the loss of a process.
pub struct ProcessFailure<'a> {
    /// Who, and how it was seen.
    pub message: String,
    /// The way out.
    pub hint: String,
    end: &'a dyn Fn(i32),
}

impl ProcessFailure<'_> {
    /// Ends all processes, this one for certain.
    pub fn abort_all(&self, code: i32) {
        (self.end)(code);
    }
}

/// Which exchange an operation belongs to. Each communicator has an order of its own, so that they may run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Communicator {
    /// The thread of the run.
    Step,
    /// Batch norm, from whichever thread its pass runs on.
    Statistics,
    /// Gradients, while the backward pass goes on.
    Gradients,
}

/// What carries the exchanges.
trait Transport: Debug + Send + Sync {
    fn sum(&self, communicator: Communicator, values: &mut [f32]);
    fn sum_f64(&self, values: &mut [f64]);
    fn all_gather(&self, own: &[u8]) -> Vec<Vec<u8>>;
    fn broadcast(&self, bytes: &mut [u8]);
    fn set_timeouts(&self, config: &DistConfig);
    /// All are done: nobody is watched any more.
    fn finish(&self);
    /// Says that this process cannot go on while the others wait for it. Does not come back.
    fn abort(&self, message: &str);
}

/// The processes of a run, seen from one of them.
#[derive(Debug, Clone)]
pub struct ProcessGroup {
    rank: usize,
    count: usize,
    /// This process among those of its machine, and how many of them share its processors.
    local: Local,
    transport: Option<Arc<dyn Transport>>,
    /// See [`ProcessGroup::connect_gpus`].
    gpus: Arc<OnceLock<Mutex<Nccl>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Local {
    rank: usize,
    sharing: usize,
    here: usize,
}

/// Begins what a rank says that failed; nothing that is told begins so.
const FAILED: char = '\0';

/// Why an outcome that all agreed on is no success.
#[derive(Debug)]
pub enum RankError<E> {
    /// It failed here, on the lowest rank of those where it did: this process says so.
    Local(E),
    /// It failed there, and that rank says so.
    Remote {
        /// The lowest rank that failed.
        rank: usize,
        /// What it says.
        message: String,
    },
}

impl ProcessGroup {
    /// One process.
    pub fn alone() -> Self {
        let local = Local { rank: 0, sharing: 1, here: 1 };
        Self { rank: 0, count: 1, local, transport: None, gpus: Arc::default() }
    }

    /// The processes that the launcher started (`mpirun`, `srun --mpi=pmix`), or this one alone.
    ///
    /// # Errors
    /// Several processes that cannot find each other: a build without MPI, or a launcher that does not connect them.
    pub fn join(alarm: FailureHandler) -> Result<Self, DistError> {
        match Launch::of_environment() {
            Launch::Alone => Ok(Self::alone()),
            Launch::Unconnected { count } => Err(DistError::Unconnected { count }),
            Launch::Mpi { count } => Self::joined(count, alarm),
        }
    }

    #[cfg(feature = "mpi")]
    fn joined(_: usize, alarm: FailureHandler) -> Result<Self, DistError> {
        let (transport, rank, count) = mpi::MpiTransport::start(alarm)?;
        let mut group = Self { transport: Some(transport), rank, count, ..Self::alone() };
        let places = group.all_gather_bytes(launch::place(&simclr_shim::mpi::Mpi::host()).as_bytes());
        group.local = local(&places, group.rank);
        Ok(group)
    }

    #[cfg(not(feature = "mpi"))]
    fn joined(count: usize, _: FailureHandler) -> Result<Self, DistError> {
        if count > 1 { Err(DistError::NotBuilt { count }) } else { Ok(Self::alone()) }
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether this is the one that speaks and writes: rank 0.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// This process among those of its machine: which GPU is its own.
    pub fn local_rank(&self) -> usize {
        self.local.rank
    }

    /// How many processes run on this machine.
    pub fn on_this_machine(&self) -> usize {
        self.local.here
    }

    /// How many processes share the processors that this one may use.
    pub fn sharing(&self) -> usize {
        self.local.sharing
    }

    /// How long to wait before a process counts as lost.
    pub fn set_timeouts(&self, config: &DistConfig) {
        if let Some(transport) = &self.transport {
            transport.set_timeouts(config);
        }
    }

    /// Adds up over all ranks, in place.
    pub fn all_reduce_f64(&self, values: &mut [f64]) {
        if let Some(transport) = &self.transport {
            transport.sum_f64(values);
        }
    }

    /// Adds `values` (f32) up over all ranks; the same bits for all.
    pub fn all_reduce(&self, values: &Tensor) -> Tensor {
        let sum = values.detach().copy();
        self.all_reduce_in_place(Communicator::Step, &sum);
        sum
    }

    fn all_reduce_in_place(&self, communicator: Communicator, values: &Tensor) {
        let Some(transport) = &self.transport else { return };
        if self.nccl_all_reduce(values) {
            return;
        }
        let mut own = values.shallow_clone();
        if simclr_shim::hooks::with_floats(&mut own, |values| transport.sum(communicator, values)).is_none() {
            // Another device or layout: through the host.
            let mut host = own.to_device(Device::Cpu).contiguous();
            let summed =
                simclr_shim::hooks::with_floats(&mut host, |values| transport.sum(communicator, values));
            summed.expect("a contiguous f32 tensor of the CPU");
            tch::no_grad(|| own.copy_(&host));
        }
    }

    /// What every rank gives, by rank.
    pub fn all_gather_bytes(&self, own: &[u8]) -> Vec<Vec<u8>> {
        self.transport.as_ref().map_or_else(|| vec![own.to_vec()], |transport| transport.all_gather(own))
    }

    /// Rows of every rank, one below the other: `own` is `[rows, D]`, f32; the number of rows may differ.
    pub fn all_gather_rows(&self, own: &Tensor) -> Tensor {
        if self.transport.is_none() {
            return own.detach();
        }
        if let Some(rows) = self.nccl_all_gather_rows(own) {
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

    /// Numbers of every rank, by rank.
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

    /// Gives every rank the numbers of rank 0's tensor.
    pub fn broadcast(&self, tensor: &Tensor) {
        let Some(transport) = &self.transport else { return };
        let mut host = tensor.detach().to_device(Device::Cpu).contiguous();
        let done = simclr_shim::hooks::with_bytes(&mut host, |bytes| transport.broadcast(bytes));
        done.expect("a contiguous tensor of the CPU");
        tch::no_grad(|| tensor.shallow_clone().detach().copy_(&host));
    }

    /// Gives every rank the text of rank 0.
    pub fn broadcast_text(&self, text: &str) -> String {
        let own = if self.is_first() { text } else { "" };
        let mut all = self.all_gather_bytes(own.as_bytes());
        String::from_utf8_lossy(&all.swap_remove(0)).into_owned()
    }

    /// Whether it is so on any rank.
    pub fn any(&self, here: bool) -> bool {
        let mut count = [f64::from(u8::from(here))];
        self.all_reduce_f64(&mut count);
        count[0] > 0.0
    }

    /// One outcome for all: success where all have it, with what each tells the others, by rank; else the failure of the
    /// lowest rank that has one.
    ///
    /// # Errors
    /// [`RankError`].
    pub fn all_ok<T, E: Display>(
        &self,
        own: Result<T, E>,
        tell: impl FnOnce(&T) -> String,
    ) -> Result<(T, Vec<String>), RankError<E>> {
        let said = own.as_ref().map_or_else(|error| format!("{FAILED}{error}"), tell);
        let all = self.all_gather_bytes(said.as_bytes());
        let all: Vec<String> = all.iter().map(|said| String::from_utf8_lossy(said).into_owned()).collect();
        let failed = all.iter().enumerate().find_map(|(rank, said)| Some((rank, said.strip_prefix(FAILED)?)));
        match (failed, own) {
            (None, Ok(value)) => Ok((value, all)),
            (Some((rank, message)), own) => Err(match own {
                Err(error) if rank == self.rank => RankError::Local(error),
                _ => RankError::Remote { rank, message: message.to_owned() },
            }),
            (None, Err(error)) => Err(RankError::Local(error)),
        }
    }

    /// Ends the run for a failure in the middle of a step, where the others wait and cannot be asked: the alarm says so, and
    /// ends all.
    pub fn abort(&self, message: &str) {
        if let Some(transport) = &self.transport {
            transport.abort(&format!("rank {}: {message}", self.rank));
        }
    }

    /// All are done. Call on every rank, at the end.
    pub fn finish(&self) {
        if let Some(transport) = &self.transport {
            transport.finish();
        }
    }

    /// Batch-norm statistics over all ranks; `None` for one alone.
    pub fn norm_all_reduce(&self) -> Option<Arc<dyn AllReduce>> {
        (self.count > 1).then(|| Arc::new(OverRanks(self.clone())) as Arc<dyn AllReduce>)
    }
}

/// See [`ProcessGroup::exchange`].
#[derive(Debug)]
struct OverRanks(ProcessGroup);

impl AllReduce for OverRanks {
    fn all_reduce_sum(&self, values: &Tensor) {
        self.0.all_reduce_in_place(Communicator::Statistics, values);
    }
}

/// Place of rank `own` among those on its machine, how many there are, and how many may use the same processors, from
/// `host \t processors` of every rank.
#[cfg_attr(not(feature = "mpi"), allow(dead_code, reason = "one process has no places to compare"))]
fn local(places: &[Vec<u8>], own: usize) -> Local {
    let host = |rank: usize| places[rank].split(|&byte| byte == b'\t').next();
    let rank = (0..own).filter(|&rank| host(rank) == host(own)).count();
    let here = (0..places.len()).filter(|&rank| host(rank) == host(own)).count();
    Local { rank, sharing: places.iter().filter(|place| **place == places[own]).count(), here }
}

/// How long a process may be silent when no configuration is known yet.
#[cfg_attr(not(feature = "mpi"), allow(dead_code, reason = "one process waits for none"))]
fn timeouts(config: &DistConfig) -> (Duration, Duration) {
    let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX);
    (seconds(config.silence_seconds), seconds(60.0 * config.stall_minutes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_machine() {
        let places: Vec<Vec<u8>> =
            ["a\t0-3", "b\t0-1", "a\t0-3", "b\t2-3"].iter().map(|place| place.as_bytes().to_vec()).collect();
        let found: Vec<Local> = (0..4).map(|rank| local(&places, rank)).collect();
        let expected =
            [(0, 2), (0, 1), (1, 2), (1, 1)].map(|(rank, sharing)| Local { rank, sharing, here: 2 });
        assert_eq!(found, expected);
    }

    #[test]
    fn one_alone_exchanges_nothing() {
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
