//! The MPI transport.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use simclr_shim::mpi::{Channel, Mpi, MpiError};

use super::{
    Communicator, DistConfig, FailureHandler, ProcessFailure, Transport,
    watchdog::{PeerTable, Watchdog},
};
use crate::DistError;

/// MPI communicators with a watchdog over the other ranks.
#[derive(Debug)]
pub struct MpiTransport {
    step: Channel,
    statistics: Channel,
    gradients: Channel,
    peers: Arc<PeerTable>,
    watchdog: Mutex<Option<Watchdog>>,
    reporter: Arc<FailureReporter>,
}

/// Calls the failure handler once.
struct FailureReporter {
    on_failure: FailureHandler,
    reported: OnceLock<()>,
    mpi: Arc<Mpi>,
}

impl std::fmt::Debug for FailureReporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "failure reporter of {:?}, reported: {}", self.mpi, self.reported.get().is_some())
    }
}

impl FailureReporter {
    /// Calls the failure handler, which exits the process. Later callers block until then.
    fn report(&self, message: String) -> ! {
        if self.reported.set(()).is_ok() {
            let hint = "the last checkpoint is intact: after fixing the cause, resume from it with `simclr pretrain --resume \
                        --run DIR`, with any number of processes";
            let abort = |code| self.mpi.abort_all(code);
            (self.on_failure)(&ProcessFailure { message, hint: hint.into(), abort: &abort });
        }
        loop {
            std::thread::park();
        }
    }
}

impl MpiTransport {
    /// Initialises MPI; returns rank and number of ranks too.
    ///
    /// # Errors
    /// MPI errors.
    pub fn start(on_failure: FailureHandler) -> Result<(Arc<dyn Transport>, usize, usize), DistError> {
        let failed = |error: MpiError| DistError::Mpi { reason: error.to_string() };
        let mpi = Mpi::start().map_err(failed)?;
        let (rank, count) = (mpi.rank(), mpi.count());
        let step = mpi.channel().map_err(failed)?;
        let hosts = step.all_gather(Mpi::host().as_bytes()).map_err(failed)?;
        let hosts = hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect();
        let peers = Arc::new(PeerTable::new(rank, hosts, &DistConfig::default()));
        let (statistics, gradients) = (mpi.channel().map_err(failed)?, mpi.channel().map_err(failed)?);
        let heartbeats = mpi.channel().map_err(failed)?;
        let reporter = Arc::new(FailureReporter { on_failure, reported: OnceLock::new(), mpi });
        let watchdog = if count > 1 {
            let reporter = Arc::clone(&reporter);
            let report = move |message| reporter.report(message);
            Some(Watchdog::start(Arc::clone(&peers), heartbeats, report)?)
        } else {
            None
        };
        let watchdog = Mutex::new(watchdog);
        Ok((Arc::new(Self { step, statistics, gradients, peers, watchdog, reporter }), rank, count))
    }

    /// A collective of the training thread, counted so that the watchdog can detect stragglers.
    fn counted<T>(&self, collective: impl FnOnce() -> Result<T, MpiError>) -> T {
        self.peers.enter();
        let done = self.checked(collective);
        self.peers.leave();
        done
    }

    fn checked<T>(&self, collective: impl FnOnce() -> Result<T, MpiError>) -> T {
        collective().unwrap_or_else(|error| {
            // The watchdog identifies the lost rank within the heartbeat timeout, if it can.
            self.peers.connection_failed(&error.to_string());
            std::thread::sleep(self.peers.heartbeat_timeout() * 3 / 2);
            self.reporter.report(format!("a collective operation failed: {error}"))
        })
    }
}

impl Transport for MpiTransport {
    fn all_reduce(&self, communicator: Communicator, values: &mut [f32]) {
        match communicator {
            Communicator::Step => self.counted(|| self.step.all_reduce(values)),
            Communicator::Statistics => self.counted(|| self.statistics.all_reduce(values)),
            Communicator::Gradients => self.checked(|| self.gradients.all_reduce(values)),
        }
    }

    fn all_reduce_f64(&self, values: &mut [f64]) {
        self.counted(|| self.step.all_reduce_f64(values));
    }

    fn all_gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        self.counted(|| self.step.all_gather(own))
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        self.counted(|| self.step.broadcast(0, bytes));
    }

    fn set_timeouts(&self, config: &DistConfig) {
        self.peers.set_timeouts(config);
    }

    fn finish(&self) {
        self.counted(|| self.step.barrier());
        // After the first barrier no rank needs heartbeats any more; after the second none are sent.
        self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.checked(|| self.step.barrier());
    }

    fn abort(&self, message: &str) {
        self.reporter.report(message.to_owned());
    }
}
