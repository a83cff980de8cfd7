//! Arguments of `study`.

use std::path::PathBuf;

use clap::Args;
use simclr::study::Budget;

/// `simclr study`.
#[derive(Debug, Args)]
pub struct Study {
    /// Names of studies, or all
    #[arg(required = true, num_args = 1.., value_name = "NAME")]
    pub names: Vec<String>,
    /// Labelled images; may be given several times
    #[arg(long, value_name = "PATH", required_unless_present = "quick", conflicts_with = "quick")]
    pub data: Vec<PathBuf>,
    /// Folder of runs, figures and pages; finished work in it is not repeated
    #[arg(long, value_name = "DIR", default_value = "studies")]
    pub out: PathBuf,
    /// Size of the runs: cpu (all studies in at most 6 hours on two cores) or gpu
    #[arg(long, default_value = "cpu")]
    pub budget: Budget,
    /// Seeds of every arm [default: 3; with --quick 1]
    #[arg(long, value_name = "N")]
    pub seeds: Option<u64>,
    /// Processes that run jobs at the same time and share the processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub jobs: usize,
    /// Print the jobs with their cost and do nothing
    #[arg(long)]
    pub plan: bool,
    /// A smoke run of a few minutes on synthetic images
    #[arg(long)]
    pub quick: bool,
    /// Override any key of the configuration of every run; may be given many times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Run jobs for the process that reports
    #[arg(long, hide = true)]
    pub worker: bool,
}

impl Study {
    /// Recipe of the runs.
    pub fn budget(&self) -> Budget {
        if self.quick { Budget::Quick } else { self.budget }
    }

    /// Seeds of every arm.
    pub fn seeds(&self) -> u64 {
        self.seeds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// The shell command of one study, without what has no effect on its figures.
    pub fn command(&self, name: &str) -> String {
        let mut words = vec!["simclr study".to_owned(), name.to_owned()];
        if self.quick {
            words.push("--quick".to_owned());
        } else {
            words.push("--data DIR".to_owned());
            words.push(format!("--budget {}", if self.budget == Budget::Gpu { "gpu" } else { "cpu" }));
        }
        words.push(format!("--seeds {}", self.seeds()));
        words.extend(self.set.iter().map(|text| format!("--set '{text}'")));
        words.join(" ")
    }
}
