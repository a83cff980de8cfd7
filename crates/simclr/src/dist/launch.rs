//! How this process was started, from what launchers leave in the environment.

/// What the environment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launch {
    /// By hand: one process.
    Alone,
    /// By a launcher that connects the processes.
    Mpi {
        /// How many, where it says so, else 1.
        count: usize,
    },
    /// By `srun` without PMIx: several processes that do not know each other.
    Unconnected {
        /// How many.
        count: usize,
    },
}

/// Set by Open MPI's mpirun, by PMIx (`srun --mpi=pmix`, Open MPI 5), by PMI (MPICH, `srun --mpi=pmi2`).
const CONNECTED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"];
/// Where the number of processes stands.
const COUNTS: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", SLURM_COUNT];
/// Tasks of this `srun`; not set in the batch script around it.
const SLURM_COUNT: &str = "SLURM_STEP_NUM_TASKS";

impl Launch {
    /// Of this process.
    pub fn of_environment() -> Self {
        Self::of(&|name| std::env::var(name).ok())
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let number = |name: &&str| variable(name).and_then(|text| text.parse().ok());
        let count = COUNTS.iter().find_map(number).unwrap_or(1);
        if CONNECTED.iter().any(|name| variable(name).is_some()) {
            return Self::Mpi { count };
        }
        match number(&SLURM_COUNT) {
            Some(count) if count > 1 => Self::Unconnected { count },
            _ => Self::Alone,
        }
    }
}

/// `host \t processors`: ranks that say the same share the same processors.
#[cfg(feature = "mpi")]
pub fn place(host: &str) -> String {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    format!("{host}\t{}", allowed.unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known_by_their_variables() {
        let of = |set: &[(&str, &str)]| {
            let find =
                |name: &str| set.iter().find(|(found, _)| *found == name).map(|(_, v)| (*v).to_owned());
            Launch::of(&find)
        };
        assert_eq!(of(&[]), Launch::Alone);
        assert_eq!(of(&[("OMPI_COMM_WORLD_SIZE", "4"), ("PMIX_RANK", "1")]), Launch::Mpi { count: 4 });
        assert_eq!(of(&[("PMIX_RANK", "0"), ("SLURM_STEP_NUM_TASKS", "8")]), Launch::Mpi { count: 8 });
        assert_eq!(of(&[("SLURM_STEP_NUM_TASKS", "8")]), Launch::Unconnected { count: 8 });
        assert_eq!(of(&[("SLURM_STEP_NUM_TASKS", "1")]), Launch::Alone);
    }
}
