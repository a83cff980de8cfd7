//! Does a configuration do on this machine what it says? Proved on a small batch of the user's own images, in the user's own
//! set-up, within about a minute.

use std::{path::Path, sync::Arc};

use simclr_data::{Batch, Chunking, Dataset, Loader};
use tch::{Kind, Tensor};

use super::{
    agreed::all_ok,
    fit::{Fitted, fitted, machine, measure},
    large::{Chunks, LargeStep},
    run::{Opened, Ready, loader_config, open, ready},
    start,
    step::{Setting, Stepped, gradients},
};
use crate::{
    Plan, RunConfig, TrainError,
    config::Written,
    device::PrecisionChoice,
    dist::{GradientBuckets, ProcessGroup},
    encoder::BatchNormScope,
    model::Model,
    objective::Objective,
    params::Params,
    views::AugmentDeviceChoice,
};

/// What was found out about one thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The thing.
    pub name: String,
    /// What it is.
    pub text: String,
    /// Whether it is right.
    pub verdict: Verdict,
}

/// Of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Checked, and right.
    Fine,
    /// Said, not checked.
    Note,
    /// Checked, and wrong.
    Wrong,
}

/// Losses and gradients may differ by rounding, relative to each tensor's norm: f32 has 6e-8, which dozens of layers of batch
/// norm over few images multiply.
const ROUNDING: f64 = 1e-4;
/// Rounding also puts an activation next to 0 on the other side of a ReLU's edge, which moves a gradient by far more. How much
/// it does here is seen where one process takes the same images in other orders; gradients may differ by so many times that.
const OTHER_EDGES: f64 = 4.0;
/// Orders that are tried.
const ORDERS: usize = 3;
/// No edge explains more: a missing summand or a wrong mask moves gradients by tenths and more.
const MOST: f64 = 0.1;
/// A tensor's norm counts as at least this share of the whole gradient's.
const SMALLEST: f64 = 1e-6;
/// Images of the proof, at least; every process has four.
const IMAGES: usize = 8;
/// Share of the free memory that a batch may take.
const SHARE: f64 = 0.9;
const MIB: f64 = 1024.0 * 1024.0;

/// Examines `config` with the images of `data`, on all ranks together. What is not `written` is chosen as `pretrain` does.
///
/// # Errors
/// What keeps a run from starting; see [`TrainError`].
pub fn examine(
    group: &ProcessGroup,
    (config, written): (&RunConfig, &Written),
    data: &Path,
) -> Result<Vec<Finding>, TrainError> {
    let opened = all_ok(group, open(group, config, data))?;
    let Fitted { config, facts: chosen } = fitted(group, &opened, written)?;
    let mut own = all_ok(group, ready(group, &opened, &config))?;
    let carried = group.connect_gpus(own.model.params.device());
    let facts = start::facts(&own.plan, &own.dataset, &own.model, &own.optimizer, own.model.params.device());
    let mut findings: Vec<Finding> = facts
        .into_iter()
        .chain(chosen)
        .map(|(name, text)| Finding { name, text, verdict: Verdict::Note })
        .collect();
    let carried = carried.map(|text| Finding { name: "exchange".into(), text, verdict: Verdict::Note });
    findings.extend(carried);
    findings.push(groups(&own));
    let memory = all_ok(group, memory(group, &mut own));
    drop(own);
    findings.extend(proofs(group, &opened, &config)?);
    findings.push(memory?);
    Ok(findings)
}

/// That decay and adaptation leave out what they must, and that there is something to train.
fn groups(own: &Ready) -> Finding {
    use crate::params::Role;
    let (params, optim) = (own.model.params.params(), &own.plan.config.optim);
    let is_weight = |role| matches!(role, Role::Weight | Role::Classifier);
    let weights = params.iter().filter(|param| is_weight(param.role)).count();
    // Weights have two dimensions or more, all other parameters one. The roles in a foreign module are inferred from names.
    let odd = params.iter().find(|param| is_weight(param.role) != (param.tensor.dim() >= 2));
    let (text, verdict) = match odd {
        _ if weights == 0 => ("no weight to train".to_owned(), Verdict::Wrong),
        Some(param) => (format!("`{}` has the wrong group", param.name), Verdict::Wrong),
        None => {
            let others = params.iter().filter(|param| !is_weight(param.role));
            let (decayed, spared): (Vec<_>, Vec<_>) = others.partition(|param| optim.decays(param.role));
            let more = if decayed.is_empty() { "" } else { " and all that optim.decay adds" };
            let spared = spared.len();
            (
                format!("{weights} weights{more} decay, {spared} biases, scales and shifts do not"),
                Verdict::Fine,
            )
        }
    };
    Finding { name: "weight decay".into(), text, verdict }
}

/// Loss and gradient of one way to take a step.
struct Taken {
    loss: f64,
    gradients: Vec<Tensor>,
}

impl Taken {
    fn of(stepped: &Stepped, params: &Params) -> Self {
        let take = |leaf: &Tensor| {
            let mut gradient = leaf.grad();
            let copy = if gradient.defined() { gradient.copy() } else { leaf.zeros_like() };
            if gradient.defined() {
                let _ = tch::no_grad(|| gradient.zero_());
            }
            copy.detach()
        };
        Self {
            loss: stepped.loss,
            gradients: params.params().iter().map(|param| take(&param.tensor)).collect(),
        }
    }

    /// Largest distance of a gradient from its twin, relative to the twin.
    fn distance(&self, plain: &Self) -> f64 {
        let norm = |tensor: &Tensor| tensor.norm().to_kind(Kind::Double).double_value(&[]);
        let all = plain.gradients.iter().map(|gradient| norm(gradient).powi(2)).sum::<f64>().sqrt();
        let distances =
            self.gradients.iter().zip(&plain.gradients).map(|(own, twin)| {
                norm(&(own - twin)) / norm(twin).max(SMALLEST * all).max(f64::MIN_POSITIVE)
            });
        // A distance that is no number must not get lost.
        distances.fold(0.0, |most: f64, next| if next.is_nan() { f64::INFINITY } else { most.max(next) })
    }

    /// `edges`: what another order of the images does to a gradient.
    fn finding(&self, plain: &Self, edges: f64, name: &str, what: &str) -> Finding {
        let loss = (self.loss / plain.loss - 1.0).abs();
        let distance = self.distance(plain);
        let fine = loss <= ROUNDING && distance <= ROUNDING.max((OTHER_EDGES * edges).min(MOST));
        let text = format!(
            "{what}: loss {:.6} (one plain run {:.6}), gradients differ by {distance:.1e} at most (one plain run with its \
             images in other orders: {edges:.1e})",
            self.loss, plain.loss
        );
        Finding { name: name.into(), text, verdict: if fine { Verdict::Fine } else { Verdict::Wrong } }
    }
}

/// Processes and chunks give what one process gives in one pass.
fn proofs(group: &ProcessGroup, opened: &Opened, config: &RunConfig) -> Result<Vec<Finding>, TrainError> {
    if config.encoder.file.is_some() {
        let text = "not proved: the batch norm inside a TorchScript module sees its own part of a batch only";
        return Ok(vec![Finding { name: "equality".into(), text: text.into(), verdict: Verdict::Note }]);
    }
    let mut small = config.clone();
    small.train.batch = IMAGES.max(4 * group.count());
    (small.train.chunk, small.train.batch_norm) = (0, BatchNormScope::Global);
    small.train.precision = PrecisionChoice::F32;
    // The order of images is changed in their pixels.
    small.data.views_on = AugmentDeviceChoice::Cpu;
    let bench = all_ok(group, Bench::new(group, opened, &small))?;
    let alone = ProcessGroup::alone();
    let batch = all_ok(group, bench.part(&alone))?;
    let plain = all_ok(group, bench.pass(&alone, &batch))?;
    let edges = all_ok(group, bench.edges(&batch, &plain))?;
    let mut findings = Vec::new();
    if group.count() > 1 {
        let what = format!("{} processes", group.count());
        findings.push(all_ok(group, bench.whole(group))?.finding(&plain, edges, "processes", &what));
    } else {
        let text = "one; `mpirun -n N simclr doctor ...` proves what N of them do".to_owned();
        findings.push(Finding { name: "processes".into(), text, verdict: Verdict::Note });
    }
    if !config.task.frozen {
        let chunk = (small.train.batch / group.count() / 2).max(1);
        let what = format!("chunks of {chunk} images in lock step");
        findings.push(all_ok(group, bench.chunked(group, chunk))?.finding(&plain, edges, "chunks", &what));
    }
    Ok(findings)
}

/// A small batch and the model, for steps that update nothing.
struct Bench {
    dataset: Arc<Dataset>,
    plan: Plan,
    model: Model,
    objective: Objective,
}

impl Bench {
    fn new(group: &ProcessGroup, opened: &Opened, config: &RunConfig) -> Result<Self, TrainError> {
        let Ready { dataset, plan, model, objective, .. } = ready(group, opened, config)?;
        Ok(Self { dataset, plan, model, objective })
    }

    fn loader(&self) -> Result<Loader, TrainError> {
        let (dataset, augment) = (Arc::clone(&self.dataset), self.plan.config.augment.clone());
        Ok(Loader::new(dataset, augment, loader_config(&self.plan))?)
    }

    fn setting<'a>(&'a self, group: &'a ProcessGroup, buckets: &'a GradientBuckets) -> Setting<'a> {
        let shape = (self.plan.channels, self.plan.config.train.image_size);
        Setting {
            model: &self.model,
            objective: &self.objective,
            over: BatchNormScope::Global,
            shape,
            group,
            buckets,
        }
    }

    /// One pass, each rank with its part.
    fn whole(&self, group: &ProcessGroup) -> Result<Taken, TrainError> {
        self.pass(group, &self.part(group)?)
    }

    /// What this rank holds of the batch.
    fn part(&self, group: &ProcessGroup) -> Result<Batch, TrainError> {
        let loader = self.loader()?.part(group.rank(), group.count());
        let batch = loader.batches(0, 1)?.next();
        Ok(batch.unwrap_or(Err(simclr_data::DataError::WorkerLost { step: 0 }))?)
    }

    /// How far the order of the images alone moves a gradient from `plain`.
    fn edges(&self, batch: &Batch, plain: &Taken) -> Result<f64, TrainError> {
        (1..=ORDERS).try_fold(0.0, |most: f64, turn| {
            let taken =
                self.pass(&ProcessGroup::alone(), &turned(batch, turn * batch.ids.len() / (ORDERS + 1)))?;
            Ok(most.max(taken.distance(plain)))
        })
    }

    fn pass(&self, group: &ProcessGroup, batch: &Batch) -> Result<Taken, TrainError> {
        let buckets = GradientBuckets::new(&self.model.params, group);
        let (_, stepped) = gradients(&self.setting(group, &buckets), batch)?;
        Ok(Taken::of(&stepped, &self.model.params))
    }

    fn chunked(&self, group: &ProcessGroup, images: usize) -> Result<Taken, TrainError> {
        let loader = self.loader()?.chunked(Chunking { images, shuffle_views: false, passes: 1 });
        let mut batches = loader.part(group.rank(), group.count()).batches(0, 1)?;
        let buckets = GradientBuckets::new(&self.model.params, group);
        let step = LargeStep { setting: self.setting(group, &buckets), passes: 1, seed: 0 };
        let (_, stepped) = step.gradients(&mut Chunks::new(0, &mut batches))?;
        Ok(Taken::of(&stepped, &self.model.params))
    }
}

/// The batch, with the first `by` images last.
fn turned(batch: &Batch, by: usize) -> Batch {
    let (mut ids, mut second) = (batch.ids.clone(), batch.second_view_ids.clone());
    ids.rotate_left(by);
    if !second.is_empty() {
        second.rotate_left(by);
    }
    let image = batch.pixels().len() / (ids.len() + second.len());
    let mut pixels = batch.pixels().to_vec();
    pixels.chunks_exact_mut(ids.len() * image).for_each(|views| views.rotate_left(by * image));
    let (step, epoch, chunk, failed) = (batch.step, batch.epoch, batch.chunk, batch.failed.clone());
    Batch { step, epoch, chunk, ids, second_view_ids: second, views: pixels.into(), failed }
}

/// Memory of two small steps, and from there, in a straight line, of the batch asked for and of the largest one that fits.
fn memory(group: &ProcessGroup, own: &mut Ready) -> Result<Finding, TrainError> {
    let note = |text: &str| Finding { name: "memory".into(), text: text.into(), verdict: Verdict::Note };
    let device = own.model.params.device();
    let processes = if device.is_cuda() { 1 } else { group.on_this_machine() } as f64;
    let held = if device.is_cuda() { 0.0 } else { machine::resident().unwrap_or_default() };
    let free = machine::free_on(device).map_or(f64::INFINITY, |bytes| SHARE * (bytes / processes + held));
    let steps = measure::steps(own, 1, free)?;
    let Some(line) = steps.memory else {
        return Ok(note("not measured: this system does not tell a process's peak"));
    };
    let need = line.at(own.plan.chunk());
    let verdict = if need <= free { Verdict::Fine } else { Verdict::Wrong };
    if line.each <= 0.0 {
        let text = format!("{:.0} MiB a process; images of this size add too little to measure", need / MIB);
        return Ok(Finding { name: "memory".into(), text, verdict });
    }
    let most = ((free - line.fixed) / line.each).max(0.0) as usize * group.count();
    let kept = if own.plan.is_chunked() && own.plan.config.train.batch_norm == BatchNormScope::Global {
        "; in lock step what goes between the stages of the encoder comes on top"
    } else {
        ""
    };
    let text = format!(
        "{:.0} MiB a process for {} images at a time ({:.1} MiB each, measured at {} and {}){kept}; the largest \
         batch that fits without chunks is {most}",
        need / MIB,
        own.plan.chunk(),
        line.each / MIB,
        steps.images[0],
        steps.images[1],
    );
    Ok(Finding { name: "memory".into(), text, verdict })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_wrong_and_rounding_is_not() {
        let taken = |loss: f64, numbers: &[f32]| Taken { loss, gradients: vec![Tensor::from_slice(numbers)] };
        let plain = taken(2.0, &[3.0, 4.0]);
        let verdict = |loss, numbers: &[f32]| taken(loss, numbers).finding(&plain, 0.0, "x", "y").verdict;
        assert_eq!(verdict(2.0, &[3.0, 4.000_01]), Verdict::Fine);
        assert_eq!(verdict(2.0, &[3.0, 4.01]), Verdict::Wrong);
        assert_eq!(verdict(2.01, &[3.0, 4.0]), Verdict::Wrong);
        assert_eq!(verdict(2.0, &[3.0, f32::NAN]), Verdict::Wrong);
    }

    #[test]
    fn a_gradient_may_move_as_other_orders_move_it_and_not_by_tenths() {
        let taken = |numbers: &[f32]| Taken { loss: 2.0, gradients: vec![Tensor::from_slice(numbers)] };
        let plain = taken(&[3.0, 4.0]);
        let verdict = |numbers: &[f32], edges| taken(numbers).finding(&plain, edges, "x", "y").verdict;
        assert_eq!(verdict(&[3.0, 4.05], 5e-3), Verdict::Fine);
        assert_eq!(verdict(&[3.0, 4.05], 1e-3), Verdict::Wrong);
        assert_eq!(verdict(&[3.0, 5.0], 1.0), Verdict::Wrong);
    }

    #[test]
    fn a_turned_batch_keeps_its_pairs() {
        let pixels: Vec<f32> = (0..12).map(|at| at as f32).collect();
        let (ids, second) = (vec![7, 8, 9], vec![7, 8, 9]);
        let batch = Batch {
            step: 0,
            epoch: 0,
            chunk: simclr_data::Chunk::WHOLE,
            ids,
            second_view_ids: second,
            views: pixels.into(),
            failed: Vec::new(),
        };
        let turned = turned(&batch, 1);
        assert_eq!((&turned.ids[..], &turned.second_view_ids[..]), (&[8, 9, 7][..], &[8, 9, 7][..]));
        assert_eq!(turned.pixels()[..], [2.0, 3.0, 4.0, 5.0, 0.0, 1.0, 8.0, 9.0, 10.0, 11.0, 6.0, 7.0]);
    }
}
