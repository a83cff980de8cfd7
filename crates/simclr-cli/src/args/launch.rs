//! Arguments of `launch`.

use clap::Args;

/// `simclr launch`.
#[derive(Debug, Args)]
pub struct Launch {
    /// Processes on this machine [default: the number of its GPUs]
    #[arg(long, short = 'n', value_name = "N", env = "PET_NPROC_PER_NODE", hide_env_values = true)]
    pub processes: Option<usize>,
    /// Machines; each runs this command with a number of its own
    #[arg(long, value_name = "N", default_value_t = 1, env = "PET_NNODES", hide_env_values = true)]
    pub nodes: usize,
    /// Number of this machine, from 0
    #[arg(long, value_name = "K", default_value_t = 0, env = "PET_NODE_RANK", hide_env_values = true)]
    pub node_rank: usize,
    /// Name or address of machine 0 [default: this machine, if it is the only one]
    #[arg(long, value_name = "HOST", env = "PET_MASTER_ADDR", hide_env_values = true)]
    pub master: Option<String>,
    /// Port on machine 0 [default: 29500; a free one on a single machine]
    #[arg(long, value_name = "PORT", env = "PET_MASTER_PORT", hide_env_values = true)]
    pub port: Option<u16>,
    /// The command, such as pretrain with its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}
