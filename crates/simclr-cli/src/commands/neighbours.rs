//! `simclr neighbours`.

use std::process::ExitCode;

use simclr::{
    RunConfig,
    data::dataset::as_one_path,
    explore::{EmbeddedSet, ExploreOptions, Query, neighbours},
    train::RunFolder,
};

use super::pretrain::watch_signals;
use crate::{args::Neighbours, failure::Failure, report::Terminal, terminal};

/// Prints the nearest images of each query.
pub fn run(arguments: &Neighbours) -> Result<ExitCode, Failure> {
    if arguments.k == 0 {
        return Err(Failure::user("--k 0: expected at least one neighbour", None));
    }
    let data = as_one_path(&arguments.set.data)?;
    let folder = RunFolder::open(&arguments.run)?;
    let (config, _) = RunConfig::load_run(&folder.config_file(), &[])?;
    let options = arguments.set.options(&data, &config, 0);
    let (stop, _) = watch_signals()?;
    let mut terminal = Terminal::new();
    let set = EmbeddedSet::open(&folder, &data, &options, &mut terminal, &stop)?;
    drop(terminal);
    let ExploreOptions { batch, threads, .. } = options;
    let found = neighbours(&set, &data, &arguments.query, arguments.k, (batch, threads))?;
    if arguments.json {
        terminal::result(&serde_json::json!(found).to_string());
    } else {
        found.iter().for_each(|query| terminal::result(&text(query)));
    }
    Ok(ExitCode::SUCCESS)
}

/// The query, then a line for each neighbour: cosine, part, name, class.
fn text(query: &Query) -> String {
    let note = query.member.as_ref().map(|name| format!("  (image `{name}` of the set, left out)"));
    let mut text = format!("{}{}", query.query, note.unwrap_or_default());
    for near in &query.neighbours {
        let class = near.class.as_ref().map(|class| format!("  {class}")).unwrap_or_default();
        text.push_str(&format!("\n  {:.4}  {:<10} {}{class}", near.similarity, near.part, near.name));
    }
    text
}
