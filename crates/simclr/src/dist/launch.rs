//! How this process was started, from the environment variables of launchers.

use crate::DistError;

/// The launcher of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launch {
    /// None: one process.
    Alone,
    /// A launcher that connects the processes by MPI.
    Mpi {
        /// Number of processes; 1 if unknown.
        count: usize,
    },
    /// Processes that meet at an address: torchrun, `simclr launch`, `srun` without PMIx, Kubernetes.
    Rendezvous(Rendezvous),
}

/// Rank of this process and the address at which all processes meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// Rank of this process.
    pub rank: usize,
    /// Number of processes.
    pub count: usize,
    /// Host name or address of rank 0's machine.
    pub address: String,
    /// Port of the store.
    pub port: u16,
    /// Whether the launcher hosts the store, as torchrun's agent does; else rank 0 does.
    pub launcher_hosts_store: bool,
    /// Number of restarts by an elastic launcher.
    pub attempt: u64,
}

impl Rendezvous {
    /// Whether this process hosts the store.
    pub fn hosts_store(&self) -> bool {
        self.rank == 0 && !self.launcher_hosts_store
    }
}

/// Set by Open MPI's mpirun, by PMIx (`srun --mpi=pmix`, Open MPI 5), by PMI (MPICH, `srun --mpi=pmi2`).
const CONNECTED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"];
/// Variables that hold the number of processes.
const COUNTS: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", SLURM_COUNT];
/// Tasks of this `srun`; not set in the enclosing batch script.
const SLURM_COUNT: &str = "SLURM_STEP_NUM_TASKS";
/// Port of the store, as in torch.distributed.
pub const DEFAULT_PORT: u16 = 29500;
/// Ports for jobs of Slurm, chosen by job and step: below the usual range of ephemeral ports, which starts at 32768.
const SLURM_PORTS: std::ops::Range<u64> = 20000..32000;

impl Launch {
    /// From the environment of this process.
    ///
    /// # Errors
    /// Variables of several processes that are incomplete or contradict each other.
    pub fn of_environment() -> Result<Self, DistError> {
        Self::of(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()), cfg!(feature = "mpi"))
    }

    /// Number of processes.
    pub fn count(&self) -> usize {
        match self {
            Self::Alone => 1,
            Self::Mpi { count } => *count,
            Self::Rendezvous(place) => place.count,
        }
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>, has_mpi: bool) -> Result<Self, DistError> {
        let environment = Environment(variable);
        // mpirun does not set RANK, so that a user who sets it means it.
        if let Some(place) = environment.torchrun()? {
            return Ok(place);
        }
        let count = COUNTS.iter().find_map(|name| variable(name)?.parse().ok()).unwrap_or(1);
        let by_mpi = CONNECTED.iter().any(|name| variable(name).is_some());
        if by_mpi && has_mpi {
            return Ok(Self::Mpi { count });
        }
        match environment.slurm()? {
            Some(place) => Ok(place),
            None if by_mpi => Ok(Self::Mpi { count }),
            None => Ok(Self::Alone),
        }
    }
}

struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    fn number<N: std::str::FromStr>(&self, name: &'static str) -> Result<Option<N>, DistError> {
        let Some(value) = self.0(name) else { return Ok(None) };
        let number = value.trim().parse().ok();
        number.map(Some).ok_or(DistError::Variable { name, value, expected: "a number".into() })
    }

    fn required<T>(found: Option<T>, name: &'static str, with: &str) -> Result<T, DistError> {
        let expected = format!("a value, since {with} is set");
        found.ok_or(DistError::Variable { name, value: "nothing".into(), expected })
    }

    fn torchrun(&self) -> Result<Option<Launch>, DistError> {
        let Some(count) = self.number("WORLD_SIZE")? else {
            let alone = self.0("RANK").is_none();
            return if alone { Ok(None) } else { Self::required(None, "WORLD_SIZE", "RANK") };
        };
        if count <= 1usize {
            return Ok((self.0("RANK").is_some()).then_some(Launch::Alone));
        }
        let rank = Self::required(self.number("RANK")?, "RANK", "WORLD_SIZE")?;
        let place = Rendezvous {
            rank,
            count,
            address: Self::required(self.0("MASTER_ADDR"), "MASTER_ADDR", "RANK")?,
            port: self.number("MASTER_PORT")?.unwrap_or(DEFAULT_PORT),
            launcher_hosts_store: self.0("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True"),
            attempt: self.number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0),
        };
        Self::checked(place, "RANK").map(Some)
    }

    fn slurm(&self) -> Result<Option<Launch>, DistError> {
        let count = self.number(SLURM_COUNT)?.unwrap_or(1);
        if count <= 1usize {
            return Ok(None);
        }
        let hosts = self.0("SLURM_STEP_NODELIST").and_then(|list| first_host(&list));
        let ids = [self.number("SLURM_JOB_ID")?, self.number("SLURM_STEP_ID")?].map(|id| id.unwrap_or(0u64));
        let ports = SLURM_PORTS.end - SLURM_PORTS.start;
        let port = SLURM_PORTS.start + ids[0].wrapping_mul(31).wrapping_add(ids[1]) % ports;
        let address = self.0("MASTER_ADDR").or(hosts);
        let place = Rendezvous {
            rank: Self::required(self.number("SLURM_PROCID")?, "SLURM_PROCID", SLURM_COUNT)?,
            count,
            address: Self::required(address, "SLURM_STEP_NODELIST", SLURM_COUNT)?,
            port: self.number("MASTER_PORT")?.unwrap_or(port as u16),
            launcher_hosts_store: false,
            attempt: self.number("SLURM_RESTART_COUNT")?.unwrap_or(0),
        };
        Self::checked(place, "SLURM_PROCID").map(Some)
    }

    fn checked(place: Rendezvous, name: &'static str) -> Result<Launch, DistError> {
        if place.rank >= place.count {
            let expected = format!("less than {}, the number of processes", place.count);
            return Err(DistError::Variable { name, value: place.rank.to_string(), expected });
        }
        Ok(Launch::Rendezvous(place))
    }
}

/// The first host of Slurm's compressed list: `gpu-01` of `gpu-[01-04,07],login`.
fn first_host(list: &str) -> Option<String> {
    let end = |text: &str, stops: &[char]| text.find(stops).unwrap_or(text.len());
    let name = &list[..end(list, &['[', ','])];
    let rest = list[name.len()..].strip_prefix('[').unwrap_or_default();
    let number = &rest[..end(rest, &['-', ',', ']'])];
    // A suffix may follow the bracket.
    let suffix = rest.split_once(']').map_or("", |(_, after)| &after[..end(after, &[',', '['])]);
    let host = format!("{name}{number}{suffix}");
    (!host.is_empty()).then_some(host)
}

/// Host name of this machine.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// `host \t processors` of this process; equal for processes that share their processors.
pub fn placement(host: &str) -> String {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    format!("{host}\t{}", allowed.unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(has_mpi: bool, set: &[(&str, &str)]) -> Result<Launch, DistError> {
        let find = |name: &str| set.iter().find(|(found, _)| *found == name).map(|(_, v)| (*v).to_owned());
        Launch::of(&find, has_mpi)
    }

    fn place(rank: usize, count: usize, address: &str, port: u16) -> Rendezvous {
        Rendezvous { rank, count, address: address.into(), port, launcher_hosts_store: false, attempt: 0 }
    }

    const SLURM: [(&str, &str); 5] = [
        ("SLURM_STEP_NUM_TASKS", "8"),
        ("SLURM_PROCID", "5"),
        ("SLURM_STEP_NODELIST", "gpu[07-08]"),
        ("SLURM_JOB_ID", "4000"),
        ("SLURM_STEP_ID", "2"),
    ];

    #[test]
    fn mpi_launchers_are_recognised_by_their_variables() {
        let found = |set: &[(&str, &str)]| of(true, set).unwrap();
        assert_eq!(found(&[]), Launch::Alone);
        assert_eq!(found(&[("OMPI_COMM_WORLD_SIZE", "4"), ("PMIX_RANK", "1")]), Launch::Mpi { count: 4 });
        let pmix = [&SLURM[..], &[("PMIX_RANK", "0")]].concat();
        assert_eq!(found(&pmix), Launch::Mpi { count: 8 });
        assert!(matches!(of(false, &pmix), Ok(Launch::Rendezvous(_))), "without MPI, by Slurm's variables");
        assert_eq!(of(false, &[("OMPI_COMM_WORLD_SIZE", "4")]).unwrap(), Launch::Mpi { count: 4 });
    }

    #[test]
    fn torchruns_variables() {
        let set = [("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", "1234")];
        let found = |more: &[(&str, &str)]| of(true, &[&set[..], more].concat());
        assert_eq!(found(&[]).unwrap(), Launch::Rendezvous(place(1, 4, "node0", 1234)));
        let agent = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "2")];
        let elastic = Rendezvous { launcher_hosts_store: true, attempt: 2, ..place(1, 4, "node0", 1234) };
        assert_eq!(found(&agent).unwrap(), Launch::Rendezvous(elastic));
        assert_eq!(of(true, &set[..3]).unwrap(), Launch::Rendezvous(place(1, 4, "node0", DEFAULT_PORT)));
        assert_eq!(of(true, &[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), Launch::Alone);
    }

    #[test]
    fn incomplete_variables_are_errors() {
        let message = |set: &[(&str, &str)]| of(true, set).unwrap_err().to_string();
        assert!(message(&[("WORLD_SIZE", "2")]).starts_with("RANK is nothing, expected a value"));
        assert!(message(&[("RANK", "0")]).starts_with("WORLD_SIZE is nothing"));
        assert!(message(&[("RANK", "0"), ("WORLD_SIZE", "2")]).starts_with("MASTER_ADDR is nothing"));
        assert!(message(&[("RANK", "x"), ("WORLD_SIZE", "2")]).starts_with("RANK is x, expected a number"));
        let beyond = [("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")];
        assert_eq!(message(&beyond), "RANK is 2, expected less than 2, the number of processes");
    }

    #[test]
    fn slurms_variables() {
        let port = (20000 + (4000 * 31 + 2) % 12000) as u16;
        assert_eq!(of(true, &SLURM).unwrap(), Launch::Rendezvous(place(5, 8, "gpu07", port)));
        let chosen = [&SLURM[..], &[("MASTER_ADDR", "ib-gpu07"), ("MASTER_PORT", "5000")]].concat();
        assert_eq!(of(true, &chosen).unwrap(), Launch::Rendezvous(place(5, 8, "ib-gpu07", 5000)));
        assert_eq!(of(true, &[("SLURM_STEP_NUM_TASKS", "1")]).unwrap(), Launch::Alone);
    }

    #[test]
    fn first_hosts_of_slurms_lists() {
        for (list, first) in [
            ("node", "node"),
            ("a,b", "a"),
            ("gpu[01-04,07]", "gpu01"),
            ("gpu[3,5]-ib,x", "gpu3-ib"),
            ("r[1-2]", "r1"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        assert_eq!(first_host(""), None);
    }
}
