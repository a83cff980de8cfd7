//! `simclr doctor`: checks on a small batch of the user's images that multi-process and chunked training match single-process
//! gradients on this machine, and measures memory. Takes about a minute.

use std::{path::Path, sync::Arc};

use simclr_data::{Batch, Chunking, Dataset, Loader};
use tch::{Kind, Tensor};

use super::{
    auto_config::{AutoConfigured, auto_configure, measure},
    communication, machine,
    setup::{OpenedData, Prepared, loader_config, open, prepare, step_context},
    start,
};
use crate::{
    Plan, RunConfig, TrainError,
    config::Written,
    device::PrecisionChoice,
    dist::{GradientBuckets, ProcessGroup, all_ok},
    encoder::BatchNormScope,
    exec::{DeviceBatch, DeviceBatches, StepOutput, executor},
    methods::Method,
    params::{Params, Role},
    views::AugmentDeviceChoice,
};

/// One line of the report.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Subject, such as "memory".
    pub name: String,
    /// Human-readable result.
    pub text: String,
    /// Passed, failed, or not a check.
    pub verdict: Verdict,
}

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Checked and correct.
    Fine,
    /// Information, not checked.
    Note,
    /// Checked and wrong.
    Wrong,
}

/// Relative tolerance of loss and gradients: f32 has 6e-8, which dozens of layers of batch norm over few images amplify.
const ROUNDING: f64 = 1e-4;
/// Rounding can flip the sign of a pre-activation near 0 and change a gradient discontinuously. That noise is estimated by
/// permuting the batch; gradients may differ by this multiple of it.
const PERMUTATION_FACTOR: f64 = 4.0;
const PERMUTATIONS: usize = 3;
/// Upper bound on the tolerated distance: a missing summand or a wrong mask changes gradients by tenths and more.
const MAX_DISTANCE: f64 = 0.1;
/// A tensor's norm counts as at least this share of the norm of the whole gradient.
const MIN_NORM_SHARE: f64 = 1e-6;
/// Minimum batch of the equality check; every process has at least four images.
const MIN_IMAGES: usize = 8;
/// Share of the free memory that a batch may take.
const FREE_MEMORY_SHARE: f64 = 0.9;
const MIB: f64 = 1024.0 * 1024.0;

/// Checks `config` with the images of `data`. A collective operation. Keys that are not written are chosen as by `pretrain`.
///
/// # Errors
/// Configuration, images, encoder or memory that prevent a run from starting; see [`TrainError`].
pub fn examine(
    group: &ProcessGroup,
    (config, written): (&RunConfig, &Written),
    data: &Path,
) -> Result<Vec<Finding>, TrainError> {
    let opened = all_ok(group, open(group, config, data))?;
    let AutoConfigured { config, facts: chosen } = auto_configure(group, &opened, written)?;
    let mut own = all_ok(group, prepare(group, &opened, &config))?;
    let transport = group.connect_gpus(own.method.params().device());
    let facts =
        start::facts(&own.plan, &own.dataset, &*own.method, &own.optimizer, own.method.params().device());
    let mut findings: Vec<Finding> = facts
        .into_iter()
        .chain(chosen)
        .map(|(name, text)| Finding { name, text, verdict: Verdict::Note })
        .collect();
    let transport = transport.map(|text| Finding { name: "exchange".into(), text, verdict: Verdict::Note });
    findings.extend(transport);
    findings.push(parameter_groups(&own));
    let memory = all_ok(group, memory(group, &mut own));
    let communication = communication::measure(group, &mut own)?;
    drop(own);
    findings.extend(equality(group, &opened, &config)?);
    findings.push(memory?);
    let note = |found: communication::Communication| Finding {
        name: "communication".into(),
        text: found.to_string(),
        verdict: Verdict::Note,
    };
    findings.extend(communication.map(note));
    Ok(findings)
}

/// Checks that weight decay applies to the right parameters and that at least one weight is trained.
fn parameter_groups(own: &Prepared) -> Finding {
    let params = own.method.params().params();
    let optim = &own.plan.config.optim;
    let is_weight = |role| matches!(role, Role::Weight | Role::Classifier);
    let weights = params.iter().filter(|param| is_weight(param.role)).count();
    // Weights have two dimensions or more, all other parameters one. In a TorchScript module roles are inferred from names.
    let mismatch = params.iter().find(|param| is_weight(param.role) != (param.tensor.dim() >= 2));
    let (text, verdict) = match mismatch {
        _ if weights == 0 => ("no weight to train".to_owned(), Verdict::Wrong),
        Some(param) => (format!("`{}` has the wrong group", param.name), Verdict::Wrong),
        None => {
            let others = params.iter().filter(|param| !is_weight(param.role));
            let (decayed, exempt): (Vec<_>, Vec<_>) = others.partition(|param| optim.decays(param.role));
            let more = if decayed.is_empty() { "" } else { " and the parameters that optim.decay adds" };
            let exempt = exempt.len();
            (
                format!("{weights} weights{more} decay, {exempt} biases, scales and shifts do not"),
                Verdict::Fine,
            )
        }
    };
    Finding { name: "weight decay".into(), text, verdict }
}

struct StepGradients {
    loss: f64,
    gradients: Vec<Tensor>,
}

impl StepGradients {
    /// Copies the gradients of `params` and zeroes them.
    fn take(output: &StepOutput, params: &Params) -> Self {
        let take = |leaf: &Tensor| {
            let mut gradient = leaf.grad();
            let copy = if gradient.defined() { gradient.copy() } else { leaf.zeros_like() };
            if gradient.defined() {
                let _ = tch::no_grad(|| gradient.zero_());
            }
            copy.detach()
        };
        Self {
            loss: output.loss,
            gradients: params.params().iter().map(|param| take(&param.tensor)).collect(),
        }
    }

    /// Largest relative L2 distance of a gradient from that of `reference`; infinite if one is NaN.
    fn distance(&self, reference: &Self) -> f64 {
        let norm = |tensor: &Tensor| tensor.norm().to_kind(Kind::Double).double_value(&[]);
        let all = reference.gradients.iter().map(|gradient| norm(gradient).powi(2)).sum::<f64>().sqrt();
        let distances = self.gradients.iter().zip(&reference.gradients).map(|(own, reference)| {
            norm(&(own - reference)) / norm(reference).max(MIN_NORM_SHARE * all).max(f64::MIN_POSITIVE)
        });
        // Because `max` drops NaN.
        distances.fold(0.0, |max: f64, next| if next.is_nan() { f64::INFINITY } else { max.max(next) })
    }

    /// `noise`: distance of gradients under permutations of the batch.
    fn finding(&self, plain: &Self, noise: f64, name: &str, what: &str) -> Finding {
        let loss = (self.loss / plain.loss - 1.0).abs();
        let distance = self.distance(plain);
        let fine =
            loss <= ROUNDING && distance <= ROUNDING.max((PERMUTATION_FACTOR * noise).min(MAX_DISTANCE));
        let text = format!(
            "{what}: loss {:.6} (one process in one pass {:.6}), gradients differ by at most {distance:.1e} (one process with permuted \
             images: {noise:.1e})",
            self.loss, plain.loss
        );
        Finding { name: name.into(), text, verdict: if fine { Verdict::Fine } else { Verdict::Wrong } }
    }
}

/// Compares gradients of several processes and of chunks with those of one process in one pass.
fn equality(
    group: &ProcessGroup,
    opened: &OpenedData,
    config: &RunConfig,
) -> Result<Vec<Finding>, TrainError> {
    if config.encoder.file.is_some() {
        let text = "not checked: the batch norm of a TorchScript module covers only its own part of a batch";
        return Ok(vec![Finding { name: "equality".into(), text: text.into(), verdict: Verdict::Note }]);
    }
    let mut small = config.clone();
    small.train.batch = MIN_IMAGES.max(4 * group.count());
    small.train.chunk = 0;
    small.train.batch_norm = BatchNormScope::Global;
    small.train.batch_norm_groups = 1;
    small.train.precision = PrecisionChoice::F32;
    // Permuting a batch needs its pixels.
    small.data.augment_on = AugmentDeviceChoice::Cpu;
    let probe = all_ok(group, EqualityProbe::new(group, opened, &small))?;
    let alone = ProcessGroup::alone();
    let batch = all_ok(group, probe.part(&alone))?;
    let plain = all_ok(group, probe.pass(&alone, &batch))?;
    let noise = all_ok(group, probe.permutation_noise(&batch, &plain))?;
    let mut findings = Vec::new();
    if group.count() > 1 {
        let what = format!("{} processes", group.count());
        findings.push(all_ok(group, probe.whole(group))?.finding(&plain, noise, "processes", &what));
    } else {
        let text = "one; `simclr launch -n N doctor ...` checks N processes".to_owned();
        findings.push(Finding { name: "processes".into(), text, verdict: Verdict::Note });
    }
    if !config.task.frozen {
        let chunk = (small.train.batch / group.count() / 2).max(1);
        let what = format!("chunks of {chunk} images with global batch norm");
        findings.push(all_ok(group, probe.chunked(group, chunk))?.finding(&plain, noise, "chunks", &what));
    }
    Ok(findings)
}

/// Gradients of a small batch, without updates.
struct EqualityProbe {
    dataset: Arc<Dataset>,
    plan: Plan,
    method: Box<dyn Method>,
}

impl EqualityProbe {
    fn new(group: &ProcessGroup, opened: &OpenedData, config: &RunConfig) -> Result<Self, TrainError> {
        let Prepared { dataset, plan, method, .. } = prepare(group, opened, config)?;
        Ok(Self { dataset, plan, method })
    }

    fn loader(&self) -> Result<Loader, TrainError> {
        let augment = self.plan.config.augment.clone();
        Ok(Loader::new(Arc::clone(&self.dataset), augment, loader_config(&self.plan))?)
    }

    /// One pass per rank, each over its part of the batch.
    fn whole(&self, group: &ProcessGroup) -> Result<StepGradients, TrainError> {
        self.pass(group, &self.part(group)?)
    }

    fn part(&self, group: &ProcessGroup) -> Result<Batch, TrainError> {
        let loader = self.loader()?.part(group.rank(), group.count());
        let batch = loader.batches(0, 1)?.next();
        Ok(batch.unwrap_or(Err(simclr_data::DataError::WorkerLost { step: 0 }))?)
    }

    /// Largest distance of the gradients from `plain` under permutations of the batch.
    fn permutation_noise(&self, batch: &Batch, plain: &StepGradients) -> Result<f64, TrainError> {
        (1..=PERMUTATIONS).try_fold(0.0, |largest: f64, index| {
            let rotated = rotated(batch, index * batch.ids.len() / (PERMUTATIONS + 1));
            Ok(largest.max(self.pass(&ProcessGroup::alone(), &rotated)?.distance(plain)))
        })
    }

    fn pass(&self, group: &ProcessGroup, batch: &Batch) -> Result<StepGradients, TrainError> {
        self.gradients(group, None, &mut std::iter::once(Ok(self.on_device(batch.clone()))))
    }

    fn chunked(&self, group: &ProcessGroup, images: usize) -> Result<StepGradients, TrainError> {
        let chunking = Chunking { images, shuffle_views: false, passes: 1 };
        let loader = self.loader()?.chunked(chunking).part(group.rank(), group.count());
        let batches = loader.batches(0, 1)?;
        self.gradients(group, Some(1), &mut batches.map(|batch| Ok(self.on_device(batch?))))
    }

    fn on_device(&self, batch: Batch) -> DeviceBatch {
        DeviceBatch::on_host(batch, self.plan.channels, self.method.params().device())
    }

    fn gradients(
        &self,
        group: &ProcessGroup,
        chunk_passes: Option<usize>,
        batches: &mut DeviceBatches<'_>,
    ) -> Result<StepGradients, TrainError> {
        let params = self.method.params();
        let buckets = GradientBuckets::configured(&self.plan.config.dist, params, group);
        let context = step_context(&self.plan, group, &*self.method, &buckets);
        let output = executor(&context, chunk_passes, false).gradients(&context, 0, batches)?;
        Ok(StepGradients::take(&output, params))
    }
}

/// The batch rotated left by `by` images.
fn rotated(batch: &Batch, by: usize) -> Batch {
    let mut ids = batch.ids.clone();
    let mut second = batch.second_view_ids.clone();
    ids.rotate_left(by);
    if !second.is_empty() {
        second.rotate_left(by);
    }
    let image = batch.pixels().len() / (ids.len() + second.len());
    let mut pixels = batch.pixels().to_vec();
    pixels.chunks_exact_mut(ids.len() * image).for_each(|views| views.rotate_left(by * image));
    Batch {
        step: batch.step,
        epoch: batch.epoch,
        chunk: batch.chunk,
        ids,
        second_view_ids: second,
        views: pixels.into(),
        failed: batch.failed.clone(),
    }
}

/// Memory of two small steps, extrapolated linearly to the configured batch, and the largest batch that fits.
fn memory(group: &ProcessGroup, own: &mut Prepared) -> Result<Finding, TrainError> {
    let note = |text: &str| Finding { name: "memory".into(), text: text.into(), verdict: Verdict::Note };
    let device = own.method.params().device();
    let processes = if device.is_cuda() { 1 } else { group.on_this_machine() } as f64;
    let resident = if device.is_cuda() { 0.0 } else { machine::resident().unwrap_or_default() };
    let free = machine::free_on(device)
        .map_or(f64::INFINITY, |bytes| FREE_MEMORY_SHARE * (bytes / processes + resident));
    let steps = measure::steps(own, 1, free)?;
    let Some(model) = steps.memory else {
        return Ok(note("not measured: this system does not report the peak memory of a process"));
    };
    let need = model.bytes(own.plan.chunk());
    let verdict = if need <= free { Verdict::Fine } else { Verdict::Wrong };
    if model.per_image <= 0.0 {
        let text =
            format!("{:.0} MiB per process; images of this size add too little to measure", need / MIB);
        return Ok(Finding { name: "memory".into(), text, verdict });
    }
    let max_batch = ((free - model.fixed) / model.per_image).max(0.0) as usize * group.count();
    let kept = if own.plan.is_chunked() && own.plan.config.train.batch_norm == BatchNormScope::Global {
        "; global batch norm over chunks additionally keeps the inputs of the encoder's stages"
    } else {
        ""
    };
    let text = format!(
        "{:.0} MiB per process for {} images at a time ({:.1} MiB each, measured at {} and {}){kept}; the largest \
         batch that fits without chunks is {max_batch}",
        need / MIB,
        own.plan.chunk(),
        model.per_image / MIB,
        steps.images[0],
        steps.images[1],
    );
    Ok(Finding { name: "memory".into(), text, verdict })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equality_tolerates_rounding_only() {
        let taken =
            |loss: f64, numbers: &[f32]| StepGradients { loss, gradients: vec![Tensor::from_slice(numbers)] };
        let plain = taken(2.0, &[3.0, 4.0]);
        let verdict = |loss, numbers: &[f32]| taken(loss, numbers).finding(&plain, 0.0, "x", "y").verdict;
        assert_eq!(verdict(2.0, &[3.0, 4.000_01]), Verdict::Fine);
        assert_eq!(verdict(2.0, &[3.0, 4.01]), Verdict::Wrong);
        assert_eq!(verdict(2.01, &[3.0, 4.0]), Verdict::Wrong);
        assert_eq!(verdict(2.0, &[3.0, f32::NAN]), Verdict::Wrong);
    }

    #[test]
    fn equality_tolerates_reordering_noise_only() {
        let taken =
            |numbers: &[f32]| StepGradients { loss: 2.0, gradients: vec![Tensor::from_slice(numbers)] };
        let plain = taken(&[3.0, 4.0]);
        let verdict = |numbers: &[f32], noise| taken(numbers).finding(&plain, noise, "x", "y").verdict;
        assert_eq!(verdict(&[3.0, 4.05], 5e-3), Verdict::Fine);
        assert_eq!(verdict(&[3.0, 4.05], 1e-3), Verdict::Wrong);
        assert_eq!(verdict(&[3.0, 5.0], 1.0), Verdict::Wrong);
    }

    #[test]
    fn rotation_moves_both_views_of_an_image() {
        let pixels: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let batch = Batch {
            step: 0,
            epoch: 0,
            chunk: simclr_data::Chunk::WHOLE,
            ids: vec![7, 8, 9],
            second_view_ids: vec![7, 8, 9],
            views: pixels.into(),
            failed: Vec::new(),
        };
        let rotated = rotated(&batch, 1);
        assert_eq!((&rotated.ids[..], &rotated.second_view_ids[..]), (&[8, 9, 7][..], &[8, 9, 7][..]));
        assert_eq!(rotated.pixels()[..], [2.0, 3.0, 4.0, 5.0, 0.0, 1.0, 8.0, 9.0, 10.0, 11.0, 6.0, 7.0]);
    }
}
