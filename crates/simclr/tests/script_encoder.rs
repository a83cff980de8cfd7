//! TorchScript modules as encoders: files that are refused, each with its path and what is wrong; parameters that the module
//! declares not to be trained; what the module draws.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use simclr::{
    RunConfig,
    checkpoint::Checkpoint,
    device::Precision,
    encoder::{Encoder, EncoderConfig, Mode},
    export::{export_encoder, load_exported},
    model::Model,
    optim::{OptimConfig, OptimKind, groups},
    params::Params,
    train::{Observer, Outcome, RunFolder, StepReport, pretrain},
    weights::Source,
};
use tch::{CModule, Device, Kind, Tensor};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/script.pt")
}

fn load(file: &Path, channels: i64) -> Result<(Encoder, Params), String> {
    let mut params = Params::new(Device::Cpu, 0);
    let config = EncoderConfig { file: Some(file.to_owned()), ..EncoderConfig::default() };
    let encoder = Encoder::new(&config, channels, 16, &mut params).map_err(|error| error.to_string())?;
    Ok((encoder, params))
}

/// A module without parameters that applies `f`, traced on two images.
fn traced(file: &Path, f: impl Fn(&Tensor) -> Tensor) {
    let probe = Tensor::zeros([2, 3, 16, 16], (Kind::Float, Device::Cpu));
    let mut closure = |inputs: &[Tensor]| vec![f(&inputs[0])];
    CModule::create_by_tracing("Traced", "forward", &[probe], &mut closure).unwrap().save(file).unwrap();
}

#[track_caller]
fn refused(file: &Path, channels: i64, words: &[&str]) {
    let message = load(file, channels).expect_err("refused");
    assert!(message.contains(&file.display().to_string()), "{message}");
    assert!(!message.contains('\n'), "one line: {message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
}

#[test]
fn files_that_are_no_modules() {
    let place = tempfile::tempdir().unwrap();
    refused(&place.path().join("absent.pt"), 3, &["no such file"]);
    let text = place.path().join("text.pt");
    fs_err::write(&text, "not a module").unwrap();
    refused(&text, 3, &["not a usable TorchScript module"]);
    let cut = place.path().join("cut.pt");
    let whole = fs_err::read(golden()).unwrap();
    fs_err::write(&cut, &whole[..whole.len() / 2]).unwrap();
    refused(&cut, 3, &["not a usable TorchScript module"]);
}

#[test]
fn modules_that_give_no_features() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("flat.pt");
    traced(&file, |images| images.flatten(2, 3));
    refused(&file, 3, &["[2, 3, 256]", "expected [2, F] or [2, F, h, w]"]);
    traced(&file, |images| images.flatten(1, 3));
    refused(&file, 3, &["no parameters"]);
    refused(&golden(), 5, &["3 channels, but got 5 channels"]);
}

/// A batch that the module's own code cannot take is an error value, in both modes and precisions.
#[test]
fn a_batch_that_does_not_fit_is_an_error() {
    let (encoder, _params) = load(&golden(), 3).unwrap();
    assert_eq!(encoder.feature_dim(), 8);
    let wrong = Tensor::zeros([2, 4, 16, 16], (Kind::Float, Device::Cpu));
    for precision in [Precision::F32, Precision::Bf16] {
        for mode in &[Mode::train(), Mode::Eval] {
            assert!(encoder.forward(&wrong, mode, precision).is_err());
        }
    }
}

/// Autocast ends with the forward pass, also when that fails: a product afterwards is f32 again.
#[test]
fn autocast_does_not_leak() {
    let (encoder, _params) = load(&golden(), 3).unwrap();
    let options = (Kind::Float, Device::Cpu);
    for channels in [3, 4] {
        let h =
            encoder.forward(&Tensor::zeros([2, channels, 16, 16], options), &Mode::train(), Precision::Bf16);
        assert_eq!(h.is_ok(), channels == 3);
        let a = Tensor::ones([2, 2], options);
        assert_eq!(a.matmul(&a).kind(), Kind::Float);
    }
}

#[allow(dead_code, reason = "only the images are of use here")]
mod fixtures;

/// A run with `script.pt` as its encoder exports its tensors. The file names the module, which loading it does not run.
#[test]
fn an_export_does_not_load_the_module_that_it_names() {
    let temp = tempfile::tempdir().unwrap();
    let run = RunFolder::create(&temp.path().join("run")).unwrap();
    let file = format!("encoder.file={:?}", golden());
    let overrides = [&file[..], "train.image_size=16", "train.device=cpu"].map(str::to_owned);
    let config = RunConfig::load(None, &overrides).unwrap();
    let model = Model::new(&config.encoder, &config.head, (3, 16), 1, Device::Cpu, Precision::F32).unwrap();
    fs_err::write(run.config_file(), config.to_toml()).unwrap();
    fs_err::write(run.plan_file(), r#"{"channels": 3, "total_steps": 9}"#).unwrap();
    let mut checkpoint = Checkpoint::default();
    let named = model.params.named().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    checkpoint.tensors.extend(named);
    checkpoint.sections.insert("state".into(), serde_json::json!({"step": 7}));
    checkpoint.sections.insert("config".into(), serde_json::json!(config));
    checkpoint.save(&run.checkpoint_file(7)).unwrap();
    let out = temp.path().join("encoder.safetensors");
    assert_eq!(export_encoder(&run, &out).unwrap().difference, 0.0);
    let error = load_exported(&out).unwrap_err().to_string();
    assert!(error.contains("script.pt`, which would run code with your rights"), "{error}");
    let other = RunConfig::load(None, &["encoder.name=conv-c3", "train.image_size=16"].map(str::to_owned));
    let other = other.unwrap();
    let other = Model::new(&other.encoder, &other.head, (3, 16), 1, Device::Cpu, Precision::F32).unwrap();
    for file in [out, run.checkpoint_file(7)] {
        let source = Source::open(&file).unwrap();
        assert!(source.keys(3).0.iter().all(|(key, _)| key != "encoder.file"), "{}", file.display());
        let error = source.load_into(&other).unwrap_err().to_string();
        assert!(error.contains("script.pt`, which only encoder.file may choose"), "{error}");
    }
    // A run folder may choose it.
    let source = Source::of_run(&run.checkpoint_file(7), config).unwrap();
    assert!(source.keys(3).0.iter().any(|(key, _)| key == "encoder.file"));
}

/// By `reference/script.py`: `stem` has `requires_grad=False`, and there is dropout behind it.
fn partly_frozen() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/script_frozen.pt")
}

/// A run of 6 steps of the partly frozen module on 32 images.
fn config(optimizer: OptimKind, more: &[&str]) -> RunConfig {
    let file = format!("encoder.file={:?}", partly_frozen());
    let optimizer = format!("optim.kind={}", serde_json::to_string(&optimizer).unwrap());
    let base = [
        &file,
        &optimizer,
        "head.hidden=16",
        "head.out=16",
        "train.image_size=16",
        "train.batch=16",
        "train.epochs=3",
        "train.threads=1",
        "train.precision=f32",
        "train.device=cpu",
        "optim.lr=1e-2",
        "optim.weight_decay=0.1",
        "optim.scaling=none",
        "optim.warmup_epochs=0",
    ];
    let overrides: Vec<_> = base.iter().chain(more).map(|&text| text.to_owned()).collect();
    RunConfig::load(None, &overrides).unwrap()
}

/// Keeps what a run shows, and stops it after a step.
#[derive(Default)]
struct Witness<'a> {
    facts: Vec<(String, String)>,
    losses: Vec<f64>,
    stop: Option<(u64, &'a AtomicBool)>,
}

impl Observer for Witness<'_> {
    fn start(&mut self, facts: &[(String, String)]) {
        self.facts = facts.to_vec();
    }
    fn step(&mut self, report: &StepReport) {
        self.losses.push(report.loss);
        if let Some((_, stop)) = self.stop.filter(|(step, _)| report.step == *step) {
            stop.store(true, Ordering::Relaxed);
        }
    }
}

/// libtorch has one generator for all threads, so modules with dropout are trained one at a time.
static GENERATOR: Mutex<()> = Mutex::new(());

fn trained(config: &RunConfig, data: &Path, run: &RunFolder, last: Option<u64>) -> Witness<'static> {
    let stop = AtomicBool::new(false);
    let mut witness = Witness { stop: last.map(|step| (step, &stop)), ..Witness::default() };
    let outcome = pretrain(config, data, run, &mut witness, &stop).unwrap();
    assert_eq!(outcome, if last.is_some() { Outcome::Stopped } else { Outcome::Finished });
    let Witness { facts, losses, .. } = witness;
    Witness { facts, losses, stop: None }
}

fn newest(run: &RunFolder) -> Checkpoint {
    Checkpoint::load(run.checkpoint_files().unwrap().last().unwrap()).unwrap()
}

/// Parameters with `requires_grad=False` get neither gradient nor decay nor optimizer state, whatever the update rule, and stay
/// in checkpoints; the others are trained. The table at start names them.
#[test]
fn parameters_without_requires_grad_are_not_trained() {
    let _alone = GENERATOR.lock();
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("images");
    fixtures::images(&data, 16);
    let (_, before) = load(&partly_frozen(), 3).unwrap();
    let before: std::collections::BTreeMap<_, _> = before.named().collect();
    for kind in [OptimKind::Lars, OptimKind::Adamw] {
        let run = RunFolder::create(&temp.path().join(format!("{kind:?}"))).unwrap();
        let facts = trained(&config(kind, &[]), &data, &run, None).facts;
        let after = newest(&run).tensors;
        for (name, is_frozen) in [("stem.weight", true), ("stem.bias", true), ("conv.weight", false)] {
            let name = format!("encoder.{name}");
            assert_eq!(after[&name].equal(before[&name[..]]), is_frozen, "{kind:?}: {name}");
            assert_eq!(after.contains_key(&format!("optim.first.{name}")), !is_frozen, "{kind:?}: {name}");
        }
        let (_, table) = facts.iter().find(|(name, _)| name == "groups").unwrap();
        let line = table.lines().find(|line| line.starts_with("frozen")).unwrap();
        // 3 x 4 x 3 x 3 and 4 numbers.
        assert_eq!(line.split_whitespace().rev().nth(2), Some("112"), "{line}");
        assert!(!facts.iter().any(|(_, fact)| fact.contains("only the head")), "{facts:?}");
    }
    let (_, plain) = load(&golden(), 3).unwrap();
    assert!(!groups::table(&OptimConfig::default(), &plain).contains("frozen"));
}

/// Dropout draws from a generator without state in the checkpoint: it is seeded for every step, whole batch or chunks.
#[test]
fn a_module_with_dropout_resumes_bit_for_bit() {
    let _alone = GENERATOR.lock();
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("images");
    fixtures::images(&data, 16);
    for (name, more) in [("whole", &[][..]), ("chunks", &["train.chunk=8", "train.batch_norm=chunk"])] {
        let config = config(OptimKind::Adamw, more);
        let run = |end: &str| RunFolder::create(&temp.path().join(format!("{name}-{end}"))).unwrap();
        let (uninterrupted, stopped) = (run("uninterrupted"), run("stopped"));
        tch::manual_seed(1);
        let losses = trained(&config, &data, &uninterrupted, None).losses;
        tch::manual_seed(2);
        trained(&config, &data, &stopped, Some(2));
        tch::manual_seed(3);
        assert_eq!(trained(&config, &data, &stopped, None).losses, losses[3..], "{name}");
        let (a, b) = (newest(&uninterrupted).tensors, newest(&stopped).tensors);
        assert!(a.iter().all(|(name, tensor)| tensor.equal(&b[name])), "{name}: weights differ");
    }
}
