//! `simclr doctor`.

use std::process::ExitCode;

use serde_json::{Value, json};
use simclr::{
    RunConfig,
    config::Written,
    data::dataset::as_one_path,
    dist::ProcessGroup,
    train::doctor::{Finding, Verdict, examine},
};

use crate::{args::Doctor, failure::Failure, processes, terminal};

/// Exit code after a failed check.
const WRONG: u8 = 1;

/// Runs all checks on every process; rank 0 prints the findings.
pub fn run(arguments: &Doctor, group: &ProcessGroup) -> Result<ExitCode, Failure> {
    let data = as_one_path(&arguments.data)?;
    let load = || arguments.config.load();
    let (own, broadcast) = processes::broadcast_from_root(group, load, |(config, _)| config.to_toml())?;
    // Rank 0 chooses the keys that are not written.
    let (config, written) = match own {
        Some(own) => own,
        None => (RunConfig::of_toml(&broadcast)?, Written::EVERYTHING),
    };
    let findings = examine(group, (&config, &written), &data)?;
    let wrong = findings.iter().any(|finding| finding.verdict == Verdict::Wrong);
    if group.is_first() && arguments.json {
        let all: Vec<Value> = findings.iter().map(object).collect();
        terminal::result(&json!(all).to_string());
    } else if group.is_first() {
        findings.iter().for_each(|finding| terminal::result(&line(finding)));
    }
    // A check fails if it fails on any process.
    Ok(if group.any(wrong) { ExitCode::from(WRONG) } else { ExitCode::SUCCESS })
}

fn object(finding: &Finding) -> Value {
    let verdict = match finding.verdict {
        Verdict::Fine => "fine",
        Verdict::Note => "note",
        Verdict::Wrong => "wrong",
    };
    json!({"name": finding.name, "verdict": verdict, "text": finding.text})
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
