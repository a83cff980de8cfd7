//! A transport with a watchdog over the other ranks, over MPI or Gloo.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use simclr_shim::{Channel, ShimError};

use super::{
    Communicator, DistConfig, FailureHandler, ProcessFailure, Transport,
    watchdog::{Heartbeats, PeerTable, Watchdog},
};
use crate::DistError;

/// The processes of a run, as a library of collectives has connected them.
pub struct Connected<C> {
    pub rank: usize,
    /// Host names by rank.
    pub hosts: Vec<String>,
    /// One for each [`Communicator`].
    pub step: C,
    pub statistics: C,
    pub gradients: C,
    pub heartbeats: Box<dyn Heartbeats>,
    /// Ends all processes with an exit code; does not return.
    pub abort_all: Box<dyn Fn(i32) + Send + Sync>,
}

/// Channels with a watchdog.
#[derive(Debug)]
pub struct WatchedTransport<C> {
    step: C,
    statistics: C,
    gradients: C,
    peers: Arc<PeerTable>,
    watchdog: Mutex<Option<Watchdog>>,
    reporter: Arc<FailureReporter>,
}

/// Calls the failure handler once.
struct FailureReporter {
    on_failure: FailureHandler,
    reported: OnceLock<()>,
    abort_all: Box<dyn Fn(i32) + Send + Sync>,
}

impl std::fmt::Debug for FailureReporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "failure reporter, reported: {}", self.reported.get().is_some())
    }
}

impl FailureReporter {
    /// Calls the failure handler, which exits the process. Later callers block until then.
    fn report(&self, message: String) -> ! {
        if self.reported.set(()).is_ok() {
            let hint = "the last checkpoint is intact: after fixing the cause, resume from it with `simclr pretrain --resume \
                        --run DIR`, with any number of processes";
            let failure = ProcessFailure { message, hint: hint.into(), abort: &*self.abort_all };
            (self.on_failure)(&failure);
        }
        loop {
            std::thread::park();
        }
    }
}

impl<C: Channel + 'static> WatchedTransport<C> {
    /// Starts the watchdog.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        connected: Connected<C>,
        on_failure: FailureHandler,
    ) -> Result<Arc<dyn Transport>, DistError> {
        let Connected { rank, hosts, step, statistics, gradients, heartbeats, abort_all } = connected;
        let count = hosts.len();
        let peers = Arc::new(PeerTable::new(rank, hosts, &DistConfig::default()));
        let reporter = Arc::new(FailureReporter { on_failure, reported: OnceLock::new(), abort_all });
        let watchdog = if count > 1 {
            let reporter = Arc::clone(&reporter);
            let report = move |message| reporter.report(message);
            Some(Watchdog::start(Arc::clone(&peers), heartbeats, report)?)
        } else {
            None
        };
        let watchdog = Mutex::new(watchdog);
        Ok(Arc::new(Self { step, statistics, gradients, peers, watchdog, reporter }))
    }

    /// A collective of the training thread, counted so that the watchdog can detect stragglers.
    fn counted<T>(&self, collective: impl FnOnce() -> Result<T, ShimError>) -> T {
        self.peers.enter();
        let done = self.checked(collective);
        self.peers.leave();
        done
    }

    fn checked<T>(&self, collective: impl FnOnce() -> Result<T, ShimError>) -> T {
        collective().unwrap_or_else(|error| {
            // The watchdog identifies the lost rank within the heartbeat timeout, if it can.
            self.peers.connection_failed(&error.to_string());
            std::thread::sleep(self.peers.heartbeat_timeout() * 3 / 2);
            self.reporter.report(format!("a collective operation failed: {error}"))
        })
    }
}

impl<C: Channel + 'static> Transport for WatchedTransport<C> {
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
