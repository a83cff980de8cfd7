//! `simclr evaluate`.

use std::{path::Path, process::ExitCode};

use simclr::{
    RunConfig,
    data::{Dataset, Split, dataset::Channels},
    eval::{
        evaluate::{EvalOptions, evaluate},
        features::import::{IMAGENET_MEAN, IMAGENET_STD, check_imported, import},
        finetune::presets::FinetuneRecipe,
        finetune::protocols::TrainedOptions,
        finetune::transfer::{Search, TransferFinetune},
        probes::transfer::TransferSet,
        report::results::Metric,
    },
    optim::OptimKind,
    train::RunFolder,
};

use super::{data_path, pretrain::watch_signals};
use crate::{
    args::{Evaluate, LinearOptim, Normalize, Protocol, Recipe},
    failure::Failure,
    report::Terminal,
    terminal,
};

/// Evaluates, writes `results.json`, prints the table.
pub fn run(arguments: &Evaluate) -> Result<ExitCode, Failure> {
    let folder = match &arguments.weights {
        Some(weights) => imported(weights, arguments)?,
        None => RunFolder::open(&arguments.run)?,
    };
    let (config, _) = RunConfig::load_run(&folder.config_file(), &[])?;
    let data = data_path(&arguments.data)?.or(config.data.path.clone());
    let data = data.ok_or_else(|| Failure::user("the run names no images", Some("give --data".into())))?;
    let labels = arguments.labels_from.clone().unwrap_or_else(|| config.data.labels_of(&data));
    let options = EvalOptions { labels, ..options(arguments)? };
    let (stop, _) = watch_signals()?;
    let mut terminal = Terminal::new();
    let results = evaluate(&folder, &data, &options, &mut terminal, &stop)?;
    drop(terminal);
    if arguments.json {
        let text = serde_json::to_string(&results).map_err(|error| Failure::user(error.to_string(), None))?;
        terminal::result(&text);
    } else {
        terminal::result(&results.table());
    }
    Ok(ExitCode::SUCCESS)
}

impl From<Recipe> for FinetuneRecipe {
    fn from(recipe: Recipe) -> Self {
        match recipe {
            Recipe::V1 => Self::V1,
            Recipe::V2 => Self::V2,
        }
    }
}

fn options(arguments: &Evaluate) -> Result<EvalOptions, Failure> {
    let default = EvalOptions::default();
    let asked = |protocol| arguments.with.iter().any(|with| [protocol, Protocol::All].contains(with));
    let training = default.trained;
    let keep_head = &arguments.keep_head;
    Ok(EvalOptions {
        knn_k: arguments.k.unwrap_or(default.knn_k),
        knn_temperature: arguments.temperature.or(default.knn_temperature),
        draws: arguments.draws.unwrap_or(default.draws),
        layers: arguments.layer.clone(),
        shares: if arguments.shots.is_empty() { default.shares } else { vec![1.0] },
        shots: arguments.shots.clone(),
        lists: arguments.labels.clone(),
        fresh: arguments.fresh,
        transform: arguments.transform.change(),
        seed: arguments.seed.unwrap_or(default.seed),
        retrieval_k: if asked(Protocol::Retrieval) { arguments.retrieval_k } else { 0 },
        transfer: arguments.transfer.iter().map(|text| transfer_set(text)).collect::<Result<_, _>>()?,
        transfer_finetune: transfer_finetune(arguments, asked(Protocol::TransferFinetune))?,
        trained: TrainedOptions {
            finetune: asked(Protocol::Finetune),
            linear_sgd: asked(Protocol::LinearSgd),
            supervised: asked(Protocol::Supervised),
            keep_head: if keep_head.is_empty() { training.keep_head.clone() } else { keep_head.clone() },
            rates: or(&arguments.finetune_lr, &training.rates),
            linear_rates: or(&arguments.linear_lr, &training.linear_rates),
            linear_decays: or(&arguments.linear_decay, &training.linear_decays),
            linear_optim: match arguments.linear_optim {
                Some(LinearOptim::Lars) => OptimKind::Lars,
                Some(LinearOptim::Sgd) => OptimKind::Sgd,
                None => training.linear_optim,
            },
            seeds: arguments.seeds.unwrap_or(training.seeds),
            batch: arguments.finetune_batch.or(training.batch),
            recipe: arguments.finetune_recipe.map_or(training.recipe, Into::into),
            epochs: arguments.finetune_epochs,
            draws: arguments.finetune_draws.unwrap_or(training.draws),
            ..training
        },
        ..default
    })
}

fn or(given: &[f64], default: &[f64]) -> Vec<f64> {
    if given.is_empty() { default.to_vec() } else { given.to_vec() }
}

/// How the sets of `--transfer` are fine-tuned on, where that is `asked` for.
fn transfer_finetune(arguments: &Evaluate, asked: bool) -> Result<Option<TransferFinetune>, Failure> {
    if arguments.with.contains(&Protocol::TransferFinetune) && arguments.transfer.is_empty() {
        let hint = Some("name the sets: --transfer PATH[:METRIC]".into());
        return Err(Failure::user("--with transfer-finetune: no set to fine-tune on", hint));
    }
    let TransferFinetune { batch, tuned, fresh } = TransferFinetune::default();
    let steps = arguments.transfer_steps;
    let twice = steps.map_or(fresh.steps, |steps| 2 * steps);
    Ok(asked.then(|| TransferFinetune {
        batch: arguments.transfer_batch.unwrap_or(batch),
        tuned: Search {
            steps: steps.unwrap_or(tuned.steps),
            rates: or(&arguments.transfer_lr, &tuned.rates),
            decays: or(&arguments.transfer_decay, &tuned.decays),
        },
        fresh: Search {
            steps: arguments.transfer_fresh_steps.unwrap_or(twice),
            rates: or(&arguments.transfer_fresh_lr, &or(&arguments.transfer_lr, &fresh.rates)),
            decays: or(&arguments.transfer_fresh_decay, &or(&arguments.transfer_decay, &fresh.decays)),
        },
    }))
}

/// `PATH` or `PATH:METRIC`.
fn transfer_set(text: &str) -> Result<TransferSet, Failure> {
    let (path, metric) = match text.rsplit_once(':') {
        Some((path, name)) if !Path::new(text).exists() => match Metric::named(name) {
            Some(metric) => (path, metric),
            None => {
                let hint = Some("top-1, mean-per-class and map-11 are known".into());
                return Err(Failure::user(format!("--transfer {text}: unknown metric `{name}`"), hint));
            }
        },
        _ => (text, Metric::default()),
    };
    Ok(TransferSet { path: path.into(), metric })
}

/// A run folder with foreign weights. One that holds these very weights, with the same options, goes on.
fn imported(weights: &Path, arguments: &Evaluate) -> Result<RunFolder, Failure> {
    let path = &arguments.run;
    let mut config = RunConfig::load(None, &arguments.config.overrides())?;
    if arguments.normalize == Normalize::Imagenet && config.encoder.input_mean.is_empty() {
        config.encoder.input_mean = IMAGENET_MEAN.to_vec();
        config.encoder.input_std = IMAGENET_STD.to_vec();
    }
    if path.join("config.toml").exists() {
        let folder = RunFolder::open(path)?;
        check_imported(weights, &config, &folder)?;
        return Ok(folder);
    }
    let data = data_path(&arguments.data)?;
    let data = data.ok_or_else(|| Failure::user("no images are named", Some("give --data".into())))?;
    let channels = Dataset::open(&data, Split::Train, Channels::Auto)?.channels();
    config.data.path = Some(data);
    let folder = RunFolder::create(path)?;
    let outcome = import(weights, &config, channels as i64, &folder);
    if outcome.is_err() {
        folder.remove_if_unused();
    }
    outcome?;
    Ok(folder)
}
