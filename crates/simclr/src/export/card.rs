//! The model card of an exported encoder (`README.md` of the Hugging Face hub), made from the run.

use std::{fmt::Write, path::Path};

use serde_json::Value;

use crate::{
    EvalError,
    eval::{features::FrozenEncoder, report::results::Results},
    train::RunFolder,
};

/// Field of the front matter by which a card of this program is recognised.
const TAG: &str = "- simclr";

pub(super) fn is_card(path: &Path) -> bool {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    text.starts_with("---\n") && text.lines().any(|line| line == TAG)
}

/// Front matter, architecture, input, data, recipe, results and use.
pub(super) fn text(
    run: &RunFolder,
    frozen: &FrozenEncoder,
    license: Option<&str>,
) -> Result<String, EvalError> {
    let config = frozen.config();
    let plan = fs_err::read_to_string(run.plan_file())?;
    let plan: Value = serde_json::from_str(&plan).unwrap_or_default();
    let name = config.encoder.name.as_str();
    let mut card = String::from("---\nlibrary_name: timm\ntags:\n- image-feature-extraction\n- timm\n");
    let _ = write!(card, "{TAG}\nlicense: {}\n---\n\n", license.unwrap_or("unknown"));
    let objective = serde_json::json!(config.task.objective);
    let steps = frozen.origin().step;
    let fact = |key: &str| plan[key].as_u64().map_or("not recorded".to_owned(), |number| number.to_string());
    let fingerprint = plan["data_fingerprint"].as_str().unwrap_or("not recorded");
    let _ = write!(
        card,
        "# {name}, pretrained with simclr\n\n\
         An encoder without classifier, trained without labels ({}).\n\n\
         | | |\n| --- | --- |\n\
         | encoder | {} |\n| input | {} channels, values in [0, 1]; {} |\n\
         | images | {}, fingerprint {fingerprint} |\n\
         | training | {steps} steps of {} images, {} epochs, optimizer {}, seed {} |\n\n",
        objective.as_str().unwrap_or_default(),
        frozen.model().encoder.describe(),
        frozen.channels(),
        frozen.transform(),
        fact("images"),
        config.train.batch,
        config.train.epochs,
        serde_json::json!(config.optim.kind).as_str().unwrap_or_default(),
        config.train.seed,
    );
    card += "```python\nimport timm\nmodel = timm.create_model(\"local-dir:.\", pretrained=True).eval()\n\
             transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n```\n";
    if let Some(results) = results(run) {
        let _ = write!(card, "\n## Results\n\n```text\n{}\n```\n", results.table().trim_end());
    }
    let _ = write!(card, "\n## Configuration\n\n```toml\n{}```\n", config.to_toml());
    Ok(card)
}

/// Of the newest evaluation.
fn results(run: &RunFolder) -> Option<Results> {
    serde_json::from_str(&fs_err::read_to_string(run.results_file()).ok()?).ok()
}
