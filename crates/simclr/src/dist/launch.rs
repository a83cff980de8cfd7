//! How this process was started, from the environment variables of launchers.

/// The launcher of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launch {
    /// None: one process.
    Alone,
    /// A launcher that connects the processes by MPI.
    Mpi {
        /// Number of processes; 1 if unknown.
        count: usize,
    },
    /// `srun` without PMIx: several unconnected processes.
    Unconnected {
        /// Number of processes.
        count: usize,
    },
}

/// Set by Open MPI's mpirun, by PMIx (`srun --mpi=pmix`, Open MPI 5), by PMI (MPICH, `srun --mpi=pmi2`).
const CONNECTED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"];
/// Variables that hold the number of processes.
const COUNTS: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", SLURM_COUNT];
/// Tasks of this `srun`; not set in the enclosing batch script.
const SLURM_COUNT: &str = "SLURM_STEP_NUM_TASKS";

impl Launch {
    /// From the environment of this process.
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

/// `host \t processors` of this process; equal for processes that share their processors.
#[cfg(feature = "mpi")]
pub fn placement(host: &str) -> String {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    format!("{host}\t{}", allowed.unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_recognised_by_their_variables() {
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
