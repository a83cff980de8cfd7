//! Hyper-parameters of the protocols that train, as a configuration derived from the run's: the paper's appendices B.3, B.5,
//! B.6 and B.8.2.

use std::path::PathBuf;

use simclr_data::{AugmentConfig, augment::Policy};

use crate::{
    RunConfig,
    config::StepCount,
    encoder::{BatchNormScope, MOMENTUM},
    eval::options::FinetuneRecipe,
    optim::{OptimConfig, OptimKind, Scaling, ScheduleKind},
    task::{MethodKind, TaskConfig},
};

/// Paper B.5: 0.05 * B / 256.
const FINETUNE_RATE: f64 = 0.05;
/// SimCLR v2: 0.005 * sqrt(B), B = 1024 (google-research/simclr README, fine-tuning with 1 % of the labels).
const FINETUNE_RATE_V2: f64 = 0.005;
const FINETUNE_BATCH_V2: usize = 1024;
/// Paper B.6: 0.1 * B / 256, 90 epochs.
const LINEAR_RATE: f64 = 0.1;
const LINEAR_EPOCHS: f64 = 90.0;
/// Paper B.5: 60 epochs with 1 % of the labels, 30 with 10 %.
const FEW_LABELS: f64 = 0.05;
const FEW_EPOCHS: f64 = 60.0;
const MORE_EPOCHS: f64 = 30.0;

impl FinetuneRecipe {
    /// Base learning rates by default. With few labels v1 needs a larger one than the paper's, as small batches mean few
    /// steps.
    pub(crate) fn rates(self) -> Vec<f64> {
        match self {
            Self::V1 => vec![FINETUNE_RATE, 10.0 * FINETUNE_RATE],
            Self::V2 => vec![FINETUNE_RATE_V2],
        }
    }

    /// Images per step by default, at most.
    pub(crate) fn batch(self) -> usize {
        match self {
            Self::V1 => BATCH,
            Self::V2 => FINETUNE_BATCH_V2,
        }
    }
}

/// Images per step by default, at most.
pub(crate) const BATCH: usize = 256;

/// Epochs, if not the paper's, and images per step, at most.
#[derive(Clone, Copy)]
pub(crate) struct Length {
    pub(crate) epochs: Option<f64>,
    pub(crate) batch: usize,
}

/// Fine-tuning with `labels` labels, a `fraction` of all: no warm-up, no regularisation, crop and flip only, 60 epochs below
/// 5 % of the labels and 30 from there on.
pub(crate) fn finetune(
    run: &RunConfig,
    start: Option<PathBuf>,
    (recipe, head_layers): (FinetuneRecipe, usize),
    (fraction, labels): (f64, usize),
    length: Length,
) -> RunConfig {
    let paper = if fraction < FEW_LABELS { FEW_EPOCHS } else { MORE_EPOCHS };
    let mut config = few_epochs(run, FINETUNE_RATE, paper, labels, length);
    config.task.init_from = start;
    config.task.head_layers = head_layers;
    if recipe == FinetuneRecipe::V2 {
        let optim = &mut config.optim;
        (optim.kind, optim.nesterov, optim.lr_in_momentum) = (OptimKind::Lars, false, true);
        (optim.lr, optim.scaling) = (FINETUNE_RATE_V2, Scaling::Sqrt);
    }
    config
}

/// Paper B.6: Nesterov momentum, no warm-up, no weight decay, crop and flip only, encoder frozen.
pub(crate) fn linear(
    run: &RunConfig,
    start: Option<PathBuf>,
    kind: OptimKind,
    labels: usize,
    length: Length,
) -> RunConfig {
    let mut config = few_epochs(run, LINEAR_RATE, LINEAR_EPOCHS, labels, length);
    config.optim.kind = kind;
    config.task.init_from = start;
    config.task.frozen = true;
    // A frozen encoder stores no activations.
    config.train.chunk = 0;
    config
}

/// Paper B.3: the run's own hyper-parameters with cross entropy on labels.
pub(crate) fn supervised(run: &RunConfig, images: usize) -> RunConfig {
    let mut config = with_labels(run);
    config.train.batch = config.train.batch.min(images);
    config
}

/// Paper B.8.2: `steps` steps at an unscaled rate, with a batch-norm momentum that depends on the steps per epoch. The paper
/// names no schedule; half a cosine, as in its other experiments.
pub(crate) fn transfer(
    run: &RunConfig,
    start: Option<PathBuf>,
    (steps, batch): (u64, usize),
    images: usize,
) -> RunConfig {
    let mut config = crops_and_flips(run);
    config.task.init_from = start;
    config.optim.scaling = Scaling::None;
    let batch = batch.min(images).max(2);
    let per_epoch = (images / batch).max(1) as f64;
    config.train.batch = batch;
    config.train.epochs = steps as f64 / per_epoch;
    config.train.batch_norm_momentum = norm_momentum(per_epoch);
    config
}

/// Paper B.8.2: decay max(1 - 10 / s, 0.9) with s steps per epoch; returns the weight of the new statistics.
fn norm_momentum(steps_per_epoch: f64) -> f64 {
    (10.0 / steps_per_epoch).min(MOMENTUM)
}

fn few_epochs(run: &RunConfig, rate: f64, paper: f64, labels: usize, length: Length) -> RunConfig {
    let mut config = crops_and_flips(run);
    (config.optim.lr, config.optim.scaling) = (rate, Scaling::Linear);
    config.train.epochs = length.epochs.unwrap_or(paper);
    config.train.batch = length.batch.min(labels / 4).max(2);
    config
}

/// Random crops and flips as in `augment`, and nothing else.
fn geometric(augment: AugmentConfig) -> AugmentConfig {
    AugmentConfig {
        policy: Policy::None,
        color: 0.0,
        gray: 0.0,
        blur: 0.0,
        motion_blur: 0.0,
        equalize: 0.0,
        solarize: 0.0,
        rotate: 0.0,
        cutout: 0.0,
        noise: 0.0,
        sobel: 0.0,
        second_view: None,
        ..augment
    }
}

/// SimCLR v2's distillation: optimizer, schedule and batch as in pretraining, random crops and flips only. `task.init_from` is kept.
pub(crate) fn distilled(run: &RunConfig) -> RunConfig {
    let mut config = with_labels(run);
    config.task.objective = MethodKind::Distillation;
    config.task.init_from.clone_from(&run.task.init_from);
    config.augment = geometric(config.augment);
    (config.train.knn_every, config.train.keep_checkpoints) = (0.0, 1);
    config
}

/// [`distilled`] without a teacher: cross entropy on `labels` of `images` images, for as many steps.
pub(crate) fn on_labels_alone(run: &RunConfig, images: usize, labels: usize) -> RunConfig {
    let mut config = distilled(run);
    config.task = TaskConfig { objective: MethodKind::Supervised, ..TaskConfig::default() };
    let steps = config.train.epochs * (images / config.train.batch).max(1) as f64;
    config.train.batch = config.train.batch.min(labels / 4).max(2);
    let epochs = steps / (labels / config.train.batch).max(1) as f64;
    config.optim.warmup_epochs *= epochs / config.train.epochs;
    config.train.epochs = epochs;
    config
}

/// SGD with Nesterov momentum 0.9, no warm-up, no decay, random crops and flips only.
fn crops_and_flips(run: &RunConfig) -> RunConfig {
    let mut config = with_labels(run);
    config.augment = geometric(config.augment);
    config.optim = OptimConfig {
        kind: OptimKind::Sgd,
        weight_decay: 0.0,
        momentum: 0.9,
        nesterov: true,
        warmup_epochs: 0.0,
        schedule: ScheduleKind::Cosine,
        ..OptimConfig::default()
    };
    config.train.step_count = StepCount::FullBatches;
    config.train.knn_every = 0.0;
    config.train.keep_checkpoints = 1;
    config
}

fn with_labels(run: &RunConfig) -> RunConfig {
    let mut config = run.clone();
    config.task = TaskConfig { objective: MethodKind::Supervised, ..TaskConfig::default() };
    config.augment.second_view = None;
    // Shuffling separates two views of an image; here is only one.
    if config.train.batch_norm == BatchNormScope::ChunkShuffled {
        config.train.batch_norm = BatchNormScope::Chunk;
    }
    // Batches may be smaller than pretraining's groups, and crops have `train.image_size` as stated.
    (config.train.batch_norm_groups, config.train.view_sizes) = (1, Vec::new());
    config
}

/// Human-readable hyper-parameters.
pub(crate) fn describe(config: &RunConfig) -> String {
    let (optim, train) = (&config.optim, &config.train);
    format!(
        "{:?}, base rate {}, weight decay {}, {} epochs of batches up to {}, crops of {} px",
        optim.kind, optim.lr, optim.weight_decay, train.epochs, train.batch, train.image_size
    )
    .to_lowercase()
}

#[cfg(test)]
mod tests {
    use simclr_data::augment::SecondView;

    use super::*;

    /// The paper's rule: decay max(1 - 10 / s, 0.9).
    #[test]
    fn batch_norm_momentum_follows_the_steps_per_epoch() {
        for (steps, decay) in [(1.0, 0.9), (99.0, 0.9), (100.0, 0.9), (200.0, 0.95), (1000.0, 0.99)] {
            let momentum = norm_momentum(steps);
            assert!((1.0 - momentum - decay).abs() < 1e-12, "{steps} steps: {momentum}");
            assert!((1.0 - momentum - f64::max(1.0 - 10.0 / steps, 0.9)).abs() < 1e-12);
        }
        // DTD's 1,880 training images make 7 steps of 256; CIFAR-10's 50,000 make 195.
        let momentum =
            |images| transfer(&RunConfig::default(), None, (1, 256), images).train.batch_norm_momentum;
        assert_eq!(momentum(1880), MOMENTUM);
        assert!((momentum(50_000) - 10.0 / 195.0).abs() < 1e-12);
    }

    #[test]
    fn groups_and_view_sizes_of_pretraining_are_not_inherited() {
        let mut run = RunConfig::default();
        (run.train.batch_norm_groups, run.train.view_sizes) = (16, vec![(0.0, 24), (0.5, 32)]);
        let length = Length { epochs: None, batch: BATCH };
        let labelled = [
            finetune(&run, None, (FinetuneRecipe::V1, 0), (0.01, 40), length),
            linear(&run, None, OptimKind::Sgd, 40, length),
            transfer(&run, None, (100, 256), 20),
            supervised(&run, 20),
        ];
        for config in labelled {
            config.validate().unwrap();
            assert_eq!((config.train.batch_norm_groups, &config.train.view_sizes[..]), (1, &[][..]));
        }
    }

    /// README of google-research/simclr: --optimizer=lars --learning_rate=0.005 --learning_rate_scaling=sqrt --weight_decay=0
    /// --train_epochs=60 --train_batch_size=1024 --warmup_epochs=0.
    #[test]
    fn v2_fine_tuning_matches_the_official_readme() {
        let recipe = FinetuneRecipe::V2;
        let length = Length { epochs: None, batch: recipe.batch() };
        let config = finetune(&RunConfig::default(), None, (recipe, 1), (0.01, 12_811), length);
        let (optim, train) = (&config.optim, &config.train);
        assert_eq!((optim.kind, optim.nesterov, optim.lr_in_momentum), (OptimKind::Lars, false, true));
        assert_eq!((optim.weight_decay, optim.warmup_epochs, train.epochs), (0.0, 0.0, 60.0));
        assert_eq!((train.batch, config.task.head_layers, recipe.rates()), (1024, 1, vec![0.005]));
        assert!((optim.scaling.apply(optim.lr, train.batch) - 0.16).abs() < 1e-12);
        let v1 = finetune(&RunConfig::default(), None, (FinetuneRecipe::V1, 0), (0.1, 128_116), length);
        assert_eq!((v1.optim.kind, v1.optim.nesterov, v1.train.epochs), (OptimKind::Sgd, true, 30.0));
        assert!((v1.optim.scaling.apply(v1.optim.lr, 256) - 0.05).abs() < 1e-12);
    }

    #[test]
    fn transfer_matches_appendix_b_8_2() {
        let mut run = RunConfig::default();
        (run.train.chunk, run.train.batch_norm) = (64, BatchNormScope::ChunkShuffled);
        run.train.step_count = StepCount::Official;
        (run.augment.motion_blur, run.augment.equalize, run.augment.sobel) = (0.1, 0.1, 0.1);
        (run.augment.policy, run.augment.vertical_flip) = (Policy::AutoaugmentImagenet, 0.5);
        run.augment.second_view = Some(SecondView { solarize: Some(0.2), ..SecondView::default() });
        let config = transfer(&run, None, (20_000, 256), 50_000);
        config.validate().unwrap();
        let plain = AugmentConfig { color: 0.0, gray: 0.0, blur: 0.0, ..AugmentConfig::default() };
        assert_eq!(config.augment, AugmentConfig { vertical_flip: 0.5, ..plain }, "crops and flips only");
        let (optim, augment) = (&config.optim, &config.augment);
        assert_eq!((optim.kind, optim.momentum, optim.nesterov), (OptimKind::Sgd, 0.9, true));
        assert_eq!((optim.scaling, optim.warmup_epochs), (Scaling::None, 0.0));
        assert_eq!([augment.color, augment.gray, augment.blur], [0.0; 3]);
        assert_eq!((augment.crop_scale, augment.flip), (run.augment.crop_scale, run.augment.flip));
        assert_eq!(
            config.train.step_count,
            StepCount::FullBatches,
            "epochs are converted to steps of whole batches"
        );
        assert_eq!((config.train.epochs * 195.0).round(), 20_000.0);
        // Fewer images than a batch: one step per epoch.
        let small = transfer(&run, None, (7, 256), 100);
        assert_eq!((small.train.batch, small.train.epochs), (100, 7.0));
    }
}
