//! Processes connected by MPI.

use std::sync::Arc;

use simclr_shim::{
    Channel, ShimError,
    mpi::{Mpi, MpiChannel, Sending},
};

use super::{
    watchdog::{Heartbeat, Heartbeats},
    watched::Connected,
};
use crate::DistError;

/// Maximum number of heartbeats in flight to one rank.
const MAX_IN_FLIGHT: usize = 8;

/// Initialises MPI.
///
/// # Errors
/// MPI errors.
pub fn connect() -> Result<Connected<MpiChannel>, DistError> {
    let failed = |error: ShimError| DistError::Mpi { reason: error.to_string() };
    let mpi = Mpi::start().map_err(failed)?;
    let step = mpi.channel().map_err(failed)?;
    let hosts = step.all_gather(Mpi::host().as_bytes()).map_err(failed)?;
    let channel = || mpi.channel().map_err(failed);
    Ok(Connected {
        rank: mpi.rank(),
        hosts: hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect(),
        step,
        statistics: channel()?,
        gradients: channel()?,
        heartbeats: Box::new(MpiHeartbeats { channel: channel()?, in_flight: Vec::new() }),
        abort_all: Box::new({
            let mpi = Arc::clone(&mpi);
            move |code| mpi.abort_all(code)
        }),
    })
}

/// Heartbeats as messages of a communicator.
struct MpiHeartbeats {
    channel: MpiChannel,
    in_flight: Vec<(usize, Sending)>,
}

impl Heartbeats for MpiHeartbeats {
    fn send(&mut self, to: usize, progress: [u64; 2]) {
        self.in_flight.retain_mut(|(_, sending)| !sending.is_done());
        if self.in_flight.iter().filter(|(rank, _)| *rank == to).count() < MAX_IN_FLIGHT {
            self.in_flight.extend(self.channel.send(to, progress).map(|sending| (to, sending)));
        }
    }

    fn receive(&mut self) -> Option<Heartbeat> {
        self.channel.receive().map(|(rank, progress)| Heartbeat::Alive { rank, progress })
    }
}
