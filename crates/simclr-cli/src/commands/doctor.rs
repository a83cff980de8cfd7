//! `simclr doctor`.

use std::process::ExitCode;

use simclr::{
    RunConfig,
    config::Written,
    data::dataset::as_one_path,
    dist::ProcessGroup,
    train::doctor::{Finding, Verdict, examine},
};

use crate::{args::Doctor, failure::Failure, processes, terminal};

/// Exit code where something is wrong.
const WRONG: u8 = 1;

/// Examines on every process, and lets rank 0 say what was found.
pub fn run(arguments: &Doctor, group: &ProcessGroup) -> Result<ExitCode, Failure> {
    let data = as_one_path(&arguments.data)?;
    let overrides = arguments.config.overrides(&[]);
    let load = || Ok(RunConfig::load_written(arguments.config.config.as_deref(), &overrides)?);
    let (own, told) = processes::broadcast_from_root(group, load, |(config, _)| config.to_toml())?;
    // What is not written is for rank 0 to choose.
    let (config, written) = match own {
        Some(own) => own,
        None => (RunConfig::of_toml(&told)?, Written::EVERYTHING),
    };
    let findings = examine(group, (&config, &written), &data)?;
    let wrong = findings.iter().any(|finding| finding.verdict == Verdict::Wrong);
    if group.is_first() {
        findings.iter().for_each(|finding| terminal::result(&line(finding)));
    }
    // What is wrong on one process is wrong.
    Ok(if group.any(wrong) { ExitCode::from(WRONG) } else { ExitCode::SUCCESS })
}

/// `verdict  name  text`.
fn line(finding: &Finding) -> String {
    let verdict = match finding.verdict {
        Verdict::Fine => "fine",
        Verdict::Note => "-",
        Verdict::Wrong => "WRONG",
    };
    format!("{verdict:<6} {:<14} {}", finding.name, finding.text.replace('\n', "\n                      "))
}
