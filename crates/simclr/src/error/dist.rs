//! Errors of the process group.

fn list(ranks: &[usize]) -> String {
    ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The process group cannot be formed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistError {
    /// A launcher of MPI started several processes, but this build lacks MPI.
    #[error("{count} processes were started by an MPI launcher, but this simclr was built without MPI")]
    NotBuilt {
        /// How many.
        count: usize,
    },
    /// An environment variable of a launcher.
    #[error("{name} is {value}, expected {expected}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// Its value, or `nothing`.
        value: String,
        /// What a value must be.
        expected: String,
    },
    /// The store, or a process that was found there, cannot be reached.
    #[error("processes cannot meet at {address}: {reason}")]
    Rendezvous {
        /// `host:port`.
        address: String,
        /// Message of c10d or Gloo.
        reason: String,
    },
    /// Two processes with the same rank.
    #[error("another process has rank {rank} already")]
    DuplicateRank {
        /// The rank.
        rank: usize,
    },
    /// Processes that were not started in time.
    #[error("{} of {count} processes did not start within {seconds} s: rank {}", missing.len(), list(missing))]
    Missing {
        /// Their ranks.
        missing: Vec<usize>,
        /// Number of processes.
        count: usize,
        /// The time limit.
        seconds: u64,
    },
    /// MPI initialisation failed.
    #[error("{reason}")]
    Mpi {
        /// Message of MPI.
        reason: String,
    },
    /// Ranks with different images, versions, precisions or augmentation devices.
    #[error("{what} differ: {here} here, {first} on rank 0")]
    Differ {
        /// Property that differs, in the plural.
        what: &'static str,
        /// Value on this rank.
        here: String,
        /// Value on rank 0.
        first: String,
    },
    /// Operating system error.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
