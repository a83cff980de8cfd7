//! The steps of SimCLR v2 after pretraining (arXiv 2006.10029, section 2): fine-tuning with few labels, distillation of the
//! fine-tuned network with unlabelled images, and all steps in sequence. Every step is a run in a run folder, so it resumes.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use serde::Serialize;
use serde_json::json;
use simclr_data::{Dataset, augment::EvalTransform, dataset::Labels, decode::Decoding};
use tch::{Device, Kind, Tensor};

use super::{
    data::{LabelledSet, name_lines, splits},
    features::{self, ReadOptions, label_tensor},
    finetune::presets::{self, Length},
    options::FinetuneRecipe,
};
use crate::{
    CheckpointError, EvalError, RunConfig, TrainError,
    checkpoint::write_atomically,
    config::Written,
    device::{DeviceChoice, Precision, choose_device},
    dist::ProcessGroup,
    encoder::{EncoderConfig, Mode},
    task::{MethodKind, TaskConfig},
    train::{Observer, Outcome, RunFolder, fit, trained_classifier::TrainedClassifier},
};

/// A labelled set, and which of its labels are used.
#[derive(Debug, Clone)]
pub struct LabelledData<'a> {
    /// Images.
    pub path: &'a Path,
    /// Source of the labels.
    pub labels: Labels,
    /// Share of the labels of the training part, class-balanced; 1: all.
    pub fraction: f64,
    /// Seed of the subset.
    pub seed: u64,
    /// Seed of the hold-out of a set without test part.
    pub hold_out_seed: u64,
}

/// Options of [`Steps::finetune`].
#[derive(Debug, Clone)]
pub struct FinetuneOptions {
    /// Hyper-parameters.
    pub recipe: FinetuneRecipe,
    /// Layers of the projection head that are kept below the classifier; at most all but the last.
    pub head_layers: usize,
    /// Unset: 60 below 5 % of the labels, else 30.
    pub epochs: Option<f64>,
    /// Unset: that of the recipe.
    pub batch: Option<usize>,
    /// Base learning rate. Unset: that of the recipe.
    pub lr: Option<f64>,
    /// Start from fresh weights: the control.
    pub from_scratch: bool,
    /// Device instead of the run's.
    pub device: Option<DeviceChoice>,
    /// Threads of libtorch and of the loader instead of the run's.
    pub threads: Option<usize>,
}

/// Options of [`Steps::distill`].
#[derive(Debug, Clone)]
pub struct DistillOptions {
    /// Student, optimizer, augmentation and length; the objective and `[distill]` are set by [`Steps::distill`].
    pub config: RunConfig,
    /// tau.
    pub temperature: f64,
    /// Weight of the cross entropy with labels.
    pub label_weight: f64,
}

/// A classifier on the test part, or held-out images, of a set.
#[derive(Debug, Clone, Serialize)]
pub struct ClassifierResult {
    /// Run folder of the classifier.
    pub run: PathBuf,
    /// Top-1 accuracy in `[0, 1]`.
    pub accuracy: f64,
    /// Test images.
    pub images: usize,
    /// Labels that the run trained on; for a distilled network, that its own loss used.
    pub labels: usize,
}

/// What the steps of this module share.
pub struct Steps<'a> {
    /// Images and labels.
    pub data: LabelledData<'a>,
    /// Progress.
    pub observer: &'a mut dyn Observer,
    /// Ends the current run after a checkpoint.
    pub stop: &'a AtomicBool,
}

/// File in a run folder with the names of the images that it trains on.
const IMAGES: &str = "images.txt";
/// File in a run folder with the names of the labelled images that it uses.
const LABELLED: &str = "labelled.txt";

impl Steps<'_> {
    /// Fine-tunes the network of the newest checkpoint of `run` on the labelled images, in the run folder `out`.
    ///
    /// # Errors
    /// See [`EvalError`]: no checkpoint, no labels, a training that fails or is stopped.
    pub fn finetune(
        &mut self,
        run: &RunFolder,
        options: &FinetuneOptions,
        out: &Path,
    ) -> Result<ClassifierResult, EvalError> {
        let (source, _) = RunConfig::load_run(&run.config_file(), &[])?;
        let set = self.open(&source)?;
        let labelled = self.labelled(&set);
        self.finetune_on((run, &set), options, &labelled, out)?;
        self.accuracy(&set, out, labelled.len())
    }

    /// [`Steps::finetune`] on the images `labelled` of `set`, without a test.
    pub(crate) fn finetune_on(
        &mut self,
        (run, set): (&RunFolder, &LabelledSet),
        options: &FinetuneOptions,
        labelled: &[usize],
        out: &Path,
    ) -> Result<RunFolder, EvalError> {
        let (source, _) = RunConfig::load_run(&run.config_file(), &[])?;
        let missing = || CheckpointError::Missing { folder: run.path().to_owned() };
        let newest = run.newest_checkpoint()?.0.ok_or_else(missing)?.path;
        let length =
            Length { epochs: options.epochs, batch: options.batch.unwrap_or(options.recipe.batch()) };
        let start = (!options.from_scratch).then_some(newest);
        let recipe = (options.recipe, options.head_layers);
        let labels = (self.data.fraction, labelled.len());
        let mut config = presets::finetune(&source, start, recipe, labels, length);
        config.optim.lr = options.lr.unwrap_or(config.optim.lr);
        config.train.device = options.device.unwrap_or(config.train.device);
        config.train.threads = options.threads.unwrap_or(config.train.threads);
        config.data.threads = options.threads.unwrap_or(config.data.threads);
        self.train((&config, &Written::EVERYTHING), set, labelled, out)?;
        Ok(RunFolder::open(out).map_err(Box::new)?)
    }

    /// Distils the classifier of the newest checkpoint of `teacher` into a student, with all training images, in the run folder
    /// `out`.
    ///
    /// # Errors
    /// As [`Steps::finetune`].
    pub fn distill(
        &mut self,
        teacher: &RunFolder,
        options: &DistillOptions,
        out: &Path,
    ) -> Result<ClassifierResult, EvalError> {
        let mut config = presets::distilled(&options.config);
        let set = self.open(&config)?;
        config.distill.teacher = Some(teacher.path().to_owned());
        config.distill.temperature = options.temperature;
        config.distill.label_weight = options.label_weight;
        let labelled = if options.label_weight > 0.0 { self.labelled(&set) } else { Vec::new() };
        config.distill.labelled = (options.label_weight > 0.0).then(|| out.join(LABELLED));
        fs_err::create_dir_all(out)?;
        write_atomically(&out.join(LABELLED), name_lines(&set.train, &labelled).as_bytes())?;
        self.train((&config, &Written::EVERYTHING), &set, &set.train_indices, out)?;
        self.accuracy(&set, out, labelled.len())
    }

    /// The set with the input of `config`.
    fn open(&self, config: &RunConfig) -> Result<LabelledSet, EvalError> {
        let (jpeg, range) = (config.transform.jpeg, config.data.value_range());
        let channels =
            Dataset::open(self.data.path, simclr_data::Split::Train, config.data.open_options())?.channels();
        let decoding = Decoding { channels, jpeg, range, pages: config.data.pages };
        LabelledSet::open(self.data.path, &self.data.labels, &decoding, self.data.hold_out_seed)
    }

    /// Training images with a label that is used, ascending.
    fn labelled(&self, set: &LabelledSet) -> Vec<usize> {
        let (fraction, seed) = (self.data.fraction, self.data.seed);
        if fraction >= 1.0 {
            return set.train_indices.clone();
        }
        let labels: Vec<i64> = set.train_indices.iter().map(|&index| set.train_labels[index]).collect();
        let drawn = splits::balanced_subset(&labels, set.train.classes().len(), fraction, seed, 0);
        drawn.into_iter().map(|position| set.train_indices[position]).collect()
    }

    /// Pretrains on all training images, without their labels, or resumes with the configuration in `out`.
    fn pretrain(
        &mut self,
        (config, written): &(RunConfig, Written),
        out: &Path,
    ) -> Result<(RunFolder, LabelledSet), EvalError> {
        let set = self.open(config)?;
        if RunFolder::is_run(out) {
            let folder = RunFolder::open(out).map_err(Box::new)?;
            let (config, _) = RunConfig::load_run(&folder.config_file(), &[])?;
            self.train((&config, &Written::EVERYTHING), &set, &set.train_indices, out)?;
            return Ok((folder, set));
        }
        self.train((config, written), &set, &set.train_indices, out)?;
        Ok((RunFolder::open(out).map_err(Box::new)?, set))
    }

    /// Starts or resumes the run of `config` on `images` in `out`.
    fn train(
        &mut self,
        (config, written): (&RunConfig, &Written),
        set: &LabelledSet,
        images: &[usize],
        out: &Path,
    ) -> Result<(), EvalError> {
        let folder = if RunFolder::is_run(out) { RunFolder::open(out) } else { RunFolder::create(out) };
        let folder = folder.map_err(Box::new)?;
        let mut config = config.clone();
        write_atomically(&out.join(IMAGES), name_lines(&set.train, images).as_bytes())?;
        config.task.subset = Some(out.join(IMAGES));
        config.data.labels = self.data.labels.clone();
        config.data.channels = set.train.channels();
        let group = ProcessGroup::alone();
        let outcome = fit(&group, (&config, written), self.data.path, &folder, self.observer, self.stop);
        match outcome.map_err(Box::<TrainError>::from)? {
            Outcome::Finished => Ok(()),
            Outcome::Stopped => Err(EvalError::Stopped),
        }
    }

    fn accuracy(&self, set: &LabelledSet, run: &Path, labels: usize) -> Result<ClassifierResult, EvalError> {
        let folder = RunFolder::open(run).map_err(Box::new)?;
        // Another process of a study that resumes this finished run would remove the temporary file of the result.
        folder.hold().map_err(Box::new)?;
        let (accuracy, images) = accuracy(&folder, set)?;
        let result = ClassifierResult { run: run.to_owned(), accuracy, images, labels };
        write_atomically(&folder.classifier_file(), format!("{:#}\n", json!(result)).as_bytes())?;
        Ok(result)
    }
}

/// Top-1 accuracy of the classifier of `run` on the test images of `set`, and their number.
pub(crate) fn accuracy(run: &RunFolder, set: &LabelledSet) -> Result<(f64, usize), EvalError> {
    let (config, _) = RunConfig::load_run(&run.config_file(), &[])?;
    let device = choose_device(config.train.device, 0)?;
    let classifier = TrainedClassifier::load(run, device, Precision::F32).map_err(Box::new)?;
    let outputs = Tensor::from_slice(&classifier.outputs_of(&set.train).map_err(Box::new)?);
    let logits = |pixels: &Tensor| {
        let (_, logits) = tch::no_grad(|| classifier.model.forward(pixels, &Mode::Eval))?;
        Ok(logits.to_device(Device::Cpu))
    };
    let options = read_options(&config, classifier.channels, device);
    let read = features::extract(set.test_set(), &set.test_indices, &options, &[&logits], &mut |_, _| {})?;
    let truth = outputs.take(&label_tensor(&set.test_labels, &read.indices));
    let right = read.features[0].argmax(1, false).eq_tensor(&truth);
    Ok((right.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]), read.indices.len()))
}

fn read_options(config: &RunConfig, channels: usize, device: Device) -> ReadOptions {
    let transform: EvalTransform = config.transform.to(config.train.image_size, channels);
    ReadOptions {
        transform: transform.of_range(config.data.value_range()),
        batch: 256,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        max_bad_share: config.data.max_bad_share,
        device,
    }
}

/// Options of [`self_train`].
#[derive(Debug)]
pub struct SelfTraining {
    /// Pretraining; keys that are not written are chosen for the machine.
    pub pretraining: (RunConfig, Written),
    /// Fine-tuning of the teacher.
    pub finetuning: FinetuneOptions,
    /// The student's network. Unset: the teacher's.
    pub student: Option<EncoderConfig>,
    /// Epochs of the distillation. Unset: those of the pretraining.
    pub epochs: Option<f64>,
    /// tau.
    pub temperature: f64,
    /// Weight of the cross entropy with labels in the distillation.
    pub label_weight: f64,
}

/// Accuracies of [`self_train`].
#[derive(Debug, Clone, Serialize)]
pub struct SelfTrained {
    /// The fine-tuned teacher.
    pub teacher: ClassifierResult,
    /// The student.
    pub student: ClassifierResult,
    /// The network of the student, trained from scratch on the labels alone for as many steps.
    pub supervised: ClassifierResult,
}

/// All steps in subfolders of `out`: pretraining on all training images, fine-tuning, distillation, and a control. Finished steps are
/// not repeated.
///
/// # Errors
/// As [`Steps::finetune`].
pub fn self_train(
    steps: &mut Steps<'_>,
    options: &SelfTraining,
    out: &Path,
) -> Result<SelfTrained, EvalError> {
    steps.observer.message("step 1 of 3: pretraining");
    let (pretrained, set) = steps.pretrain(&options.pretraining, &out.join("1-pretrained"))?;
    steps.observer.message("step 2 of 3: fine-tuning");
    let teacher = steps.finetune(&pretrained, &options.finetuning, &out.join("2-fine-tuned"))?;
    steps.observer.message("step 3 of 3: distillation");
    let teacher_run = RunFolder::open(&teacher.run).map_err(Box::new)?;
    let (recipe, _) = RunConfig::load_run(&pretrained.config_file(), &[])?;
    let mut distillation = DistillOptions::of(&recipe, &recipe);
    let config = &mut distillation.config;
    config.encoder = options.student.clone().unwrap_or(recipe.encoder);
    config.train.epochs = options.epochs.unwrap_or(recipe.train.epochs);
    (distillation.temperature, distillation.label_weight) = (options.temperature, options.label_weight);
    let student = steps.distill(&teacher_run, &distillation, &out.join("3-distilled"))?;
    steps.observer.message("control: the network of the student on the labels alone");
    let labelled = steps.labelled(&set);
    let config = presets::on_labels_alone(&distillation.config, set.train_indices.len(), labelled.len());
    let control = out.join("control-supervised");
    steps.train((&config, &Written::EVERYTHING), &set, &labelled, &control)?;
    let supervised = steps.accuracy(&set, &control, labelled.len())?;
    Ok(SelfTrained { teacher, student, supervised })
}

impl DistillOptions {
    /// A student of the network of the run `teacher`, with the optimizer, batch and epochs of `recipe`.
    pub fn of(teacher: &RunConfig, recipe: &RunConfig) -> Self {
        let mut config = recipe.clone();
        config.encoder.clone_from(&teacher.encoder);
        config.train.image_size = teacher.train.image_size;
        config.transform = teacher.transform;
        config.data.range.clone_from(&teacher.data.range);
        config.data.pages = teacher.data.pages;
        let init_from = recipe.task.init_from.clone();
        config.task = TaskConfig { objective: MethodKind::Distillation, init_from, ..TaskConfig::default() };
        Self { config, temperature: 1.0, label_weight: 0.0 }
    }
}
