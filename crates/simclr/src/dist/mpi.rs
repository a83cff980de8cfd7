//! The processes that MPI connects.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use simclr_shim::mpi::{Channel, Mpi, MpiError};

use super::{
    Communicator, DistConfig, FailureHandler, ProcessFailure, Transport,
    watchdog::{PeerTable, Watchdog},
};
use crate::DistError;

/// Every communicator, and who watches over the others.
#[derive(Debug)]
pub struct MpiTransport {
    step: Channel,
    statistics: Channel,
    gradients: Channel,
    watched: Arc<PeerTable>,
    watch: Mutex<Option<Watchdog>>,
    bell: Arc<FailureReporter>,
}

/// Rings the alarm, once.
struct FailureReporter {
    alarm: FailureHandler,
    rung: OnceLock<()>,
    mpi: Arc<Mpi>,
}

impl std::fmt::Debug for FailureReporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "bell of {:?}, rung: {}", self.mpi, self.rung.get().is_some())
    }
}

impl FailureReporter {
    /// Tells the command line, which ends the process. Only the first caller comes through; all wait for the end.
    fn ring(&self, message: String) -> ! {
        if self.rung.set(()).is_ok() {
            let hint = "the last checkpoint is whole: once the cause is mended, `simclr pretrain --resume --run DIR` \
                        goes on from it, with any number of processes";
            let end = |code| self.mpi.end_all(code);
            (self.alarm)(&ProcessFailure { message, hint: hint.into(), end: &end });
        }
        loop {
            std::thread::park();
        }
    }
}

impl MpiTransport {
    /// Joins; gives (rank, count) too.
    ///
    /// # Errors
    /// What MPI said.
    pub fn start(alarm: FailureHandler) -> Result<(Arc<dyn Transport>, usize, usize), DistError> {
        let said = |error: MpiError| DistError::Mpi { reason: error.to_string() };
        let mpi = Mpi::start().map_err(said)?;
        let (rank, count) = (mpi.rank(), mpi.count());
        let step = mpi.channel().map_err(said)?;
        let hosts = step.gather(Mpi::host().as_bytes()).map_err(said)?;
        let hosts = hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect();
        let watched = Arc::new(PeerTable::new(rank, hosts, &DistConfig::default()));
        let (statistics, gradients) = (mpi.channel().map_err(said)?, mpi.channel().map_err(said)?);
        let beats = mpi.channel().map_err(said)?;
        let bell = Arc::new(FailureReporter { alarm, rung: OnceLock::new(), mpi });
        let watch = if count > 1 {
            let bell = Arc::clone(&bell);
            Some(Watchdog::start(Arc::clone(&watched), beats, move |message| bell.ring(message))?)
        } else {
            None
        };
        let watch = Mutex::new(watch);
        Ok((Arc::new(Self { step, statistics, gradients, watched, watch, bell }), rank, count))
    }

    /// An exchange that the whole step waits for: counted, so that the watch sees who is late.
    fn counted<T>(&self, exchange: impl FnOnce() -> Result<T, MpiError>) -> T {
        self.watched.enter();
        let done = self.checked(exchange);
        self.watched.leave();
        done
    }

    fn checked<T>(&self, exchange: impl FnOnce() -> Result<T, MpiError>) -> T {
        exchange().unwrap_or_else(|error| {
            // The watch names who is lost, if it can; it knows after the longest silence at the latest.
            self.watched.connection_failed(&error.to_string());
            std::thread::sleep(self.watched.longest_silence() * 3 / 2);
            self.bell.ring(format!("an exchange with the other processes failed: {error}"))
        })
    }
}

impl Transport for MpiTransport {
    fn sum(&self, communicator: Communicator, values: &mut [f32]) {
        match communicator {
            Communicator::Step => self.counted(|| self.step.sum(values)),
            Communicator::Statistics => self.counted(|| self.statistics.sum(values)),
            Communicator::Gradients => self.checked(|| self.gradients.sum(values)),
        }
    }

    fn sum_f64(&self, values: &mut [f64]) {
        self.counted(|| self.step.sum_f64(values));
    }

    fn all_gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        self.counted(|| self.step.gather(own))
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        self.counted(|| self.step.broadcast(0, bytes));
    }

    fn set_timeouts(&self, config: &DistConfig) {
        self.watched.set_timeouts(config);
    }

    fn finish(&self) {
        self.counted(|| self.step.barrier());
        // All have come here: nobody is missed when the signs of life end, and none is sent after the second barrier.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.checked(|| self.step.barrier());
    }

    fn abort(&self, message: &str) {
        self.bell.ring(message.to_owned());
    }
}
