//! Facts of the run and of the set.

use serde_json::Value;

use super::Analysis;
use crate::{
    EvalError,
    html::{escaped, table},
};

/// `plan.json` and `environment.json`; null for a file that is missing or damaged.
pub(super) fn recorded(analysis: &Analysis<'_>) -> [Value; 2] {
    let run = analysis.run;
    [run.plan_file(), run.environment_file()].map(|file| {
        let text = fs_err::read(file).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    })
}

pub(super) fn section(
    analysis: &Analysis<'_>,
    plan: &Value,
    environment: &Value,
) -> Result<String, EvalError> {
    let mut rows = vec![vec!["fact".to_owned(), "value".to_owned()]];
    let facts =
        of_run(analysis, plan).into_iter().chain(of_machine(environment)).chain(of_set(analysis, plan));
    rows.extend(facts.map(|(name, value)| vec![name.to_owned(), value]));
    let config = fs_err::read_to_string(analysis.run.config_file())?;
    Ok(format!(
        "<div class=\"facts\">{}</div><details><summary>configuration</summary><pre>{}</pre></details>\n",
        table(&rows),
        escaped(&config)
    ))
}

type Facts = Vec<(&'static str, String)>;

fn of_run(analysis: &Analysis<'_>, plan: &Value) -> Facts {
    let encoder = &analysis.set.encoder;
    let (config, origin) = (encoder.config(), encoder.origin());
    let steps = origin.total_steps.map_or(String::new(), |total| format!(" of {total}"));
    let file = origin.checkpoint.as_deref().and_then(|file| file.file_name());
    let file = file.map_or(String::new(), |name| format!(", {}", name.to_string_lossy()));
    let mut facts = vec![
        ("run", analysis.run.path().display().to_string()),
        ("encoder", encoder.model().encoder.describe()),
        ("checkpoint", format!("step {}{steps}{file}", origin.step)),
        (
            "epochs, batch",
            format!("{} epochs of {} images per step", config.train.epochs, config.train.batch),
        ),
        ("input", encoder.transform().to_string()),
    ];
    if let (Some(images), Some(fingerprint)) = (plan["images"].as_u64(), plan["data_fingerprint"].as_str()) {
        let path = config.data.path.as_ref().map_or(String::new(), |path| format!("{}, ", path.display()));
        facts.push(("trained on", format!("{path}{images} images, fingerprint {fingerprint}")));
    }
    facts.extend(config.differs_from_official().map(|text| ("recipe", text)));
    facts.extend(origin.passed_over.iter().chain(&origin.assumed).map(|note| ("note", note.clone())));
    facts
}

fn of_machine(environment: &Value) -> Facts {
    let text = |name: &str| environment[name].as_str().map(str::to_owned);
    let mut facts = Vec::new();
    facts.extend(text("device").map(|device| ("device", device)));
    facts.extend(text("precision").map(|precision| ("precision", precision)));
    facts.extend(text("simclr").map(|version| ("trained by", format!("simclr {version}"))));
    facts.push(("page by", format!("simclr {}", env!("CARGO_PKG_VERSION"))));
    facts
}

fn of_set(analysis: &Analysis<'_>, plan: &Value) -> Facts {
    let set = &analysis.set;
    let mut facts = vec![("set", analysis.data.display().to_string())];
    for (split, images) in &set.parts {
        let fingerprint = images.fingerprint();
        let own = if plan["data_fingerprint"] == fingerprint { ", that the run was trained on" } else { "" };
        facts.push((split.name(), format!("{} images, fingerprint {fingerprint}{own}", images.len())));
        facts.extend(images.notes().iter().map(|note| ("note", note.clone())));
    }
    facts.push(("analysed", format!("{} of {} images", set.members.len(), set.total)));
    if let Some(first) = set.bad.first() {
        facts.push(("not decoded", format!("{} images; the first: {}", set.bad.len(), first.reason)));
    }
    facts
}
