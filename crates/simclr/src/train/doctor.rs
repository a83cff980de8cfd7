//! Does a configuration do on this machine what it says? Proved on a small batch of the user's own images, in the user's own
//! set-up, within about a minute.

use std::{path::Path, sync::Arc};

use simclr_data::{Batch, Chunking, Dataset, Loader};
use tch::{Device, Kind, Tensor};

use super::{
    agreed::agreed,
    large::{Chunks, LargeStep},
    run::{Ready, loader_config, ready},
    start,
    step::{Setting, Stepped, gradients},
};
use crate::{
    Plan, RunConfig, TrainError,
    device::PrecisionChoice,
    encoder::NormOver,
    model::SimClr,
    objective::Objective,
    params::Params,
    ranks::{Buckets, Ranks},
    views::ViewsOn,
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

/// Examines `config` with the images of `data`, on all ranks together.
///
/// # Errors
/// What keeps a run from starting; see [`TrainError`].
pub fn examine(ranks: &Ranks, config: &RunConfig, data: &Path) -> Result<Vec<Finding>, TrainError> {
    let own = agreed(ranks, ready(ranks, config, data))?;
    let carried = ranks.connect_gpus(own.model.params.device());
    let facts = start::facts(&own.plan, &own.dataset, &own.model, &own.optimizer, own.model.params.device());
    let mut findings: Vec<Finding> =
        facts.into_iter().map(|(name, text)| Finding { name, text, verdict: Verdict::Note }).collect();
    let carried = carried.map(|text| Finding { name: "exchange".into(), text, verdict: Verdict::Note });
    findings.extend(carried);
    findings.push(groups(&own));
    let memory = agreed(ranks, memory(ranks, &own));
    drop(own);
    findings.extend(proofs(ranks, config, data)?);
    findings.push(memory?);
    Ok(findings)
}

/// That decay and adaptation leave out what they must, and that there is something to train.
fn groups(own: &Ready) -> Finding {
    use crate::params::Role;
    let (params, optim) = (own.model.params.params(), &own.plan.config.optim);
    let is_weight = |role| matches!(role, Role::Kernel | Role::Classifier);
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
        let apart =
            self.gradients.iter().zip(&plain.gradients).map(|(own, twin)| {
                norm(&(own - twin)) / norm(twin).max(SMALLEST * all).max(f64::MIN_POSITIVE)
            });
        // A distance that is no number must not get lost.
        apart.fold(0.0, |most: f64, next| if next.is_nan() { f64::INFINITY } else { most.max(next) })
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
fn proofs(ranks: &Ranks, config: &RunConfig, data: &Path) -> Result<Vec<Finding>, TrainError> {
    if config.encoder.file.is_some() {
        let text = "not proved: the batch norm inside a TorchScript module sees its own part of a batch only";
        return Ok(vec![Finding { name: "equality".into(), text: text.into(), verdict: Verdict::Note }]);
    }
    let mut small = config.clone();
    small.train.batch = IMAGES.max(4 * ranks.count());
    (small.train.chunk, small.train.batch_norm) = (0, NormOver::Global);
    small.train.precision = PrecisionChoice::F32;
    // The order of images is changed in their pixels.
    small.data.views_on = ViewsOn::Cpu;
    let bench = agreed(ranks, Bench::new(ranks, &small, data))?;
    let alone = Ranks::alone();
    let batch = agreed(ranks, bench.part(&alone))?;
    let plain = agreed(ranks, bench.pass(&alone, &batch))?;
    let edges = agreed(ranks, bench.edges(&batch, &plain))?;
    let mut findings = Vec::new();
    if ranks.count() > 1 {
        let what = format!("{} processes", ranks.count());
        findings.push(agreed(ranks, bench.whole(ranks))?.finding(&plain, edges, "processes", &what));
    } else {
        let text = "one; `mpirun -n N simclr doctor ...` proves what N of them do".to_owned();
        findings.push(Finding { name: "processes".into(), text, verdict: Verdict::Note });
    }
    if !config.task.frozen {
        let chunk = (small.train.batch / ranks.count() / 2).max(1);
        let what = format!("chunks of {chunk} images in lock step");
        findings.push(agreed(ranks, bench.chunked(ranks, chunk))?.finding(&plain, edges, "chunks", &what));
    }
    Ok(findings)
}

/// A small batch and the model, for steps that update nothing.
struct Bench {
    dataset: Arc<Dataset>,
    plan: Plan,
    model: SimClr,
    objective: Objective,
}

impl Bench {
    fn new(ranks: &Ranks, config: &RunConfig, data: &Path) -> Result<Self, TrainError> {
        let Ready { dataset, plan, model, objective, .. } = ready(ranks, config, data)?;
        Ok(Self { dataset, plan, model, objective })
    }

    fn loader(&self) -> Result<Loader, TrainError> {
        let (dataset, augment) = (Arc::clone(&self.dataset), self.plan.config.augment.clone());
        Ok(Loader::new(dataset, augment, loader_config(&self.plan))?)
    }

    fn setting<'a>(&'a self, ranks: &'a Ranks, buckets: &'a Buckets) -> Setting<'a> {
        let shape = (self.plan.channels, self.plan.config.train.image_size);
        Setting {
            model: &self.model,
            objective: &self.objective,
            over: NormOver::Global,
            shape,
            ranks,
            buckets,
        }
    }

    /// One pass, each rank with its part.
    fn whole(&self, ranks: &Ranks) -> Result<Taken, TrainError> {
        self.pass(ranks, &self.part(ranks)?)
    }

    /// What this rank holds of the batch.
    fn part(&self, ranks: &Ranks) -> Result<Batch, TrainError> {
        let loader = self.loader()?.part(ranks.rank(), ranks.count());
        let batch = loader.batches(0, 1)?.next();
        Ok(batch.unwrap_or(Err(simclr_data::DataError::WorkerLost { step: 0 }))?)
    }

    /// How far the order of the images alone moves a gradient from `plain`.
    fn edges(&self, batch: &Batch, plain: &Taken) -> Result<f64, TrainError> {
        (1..=ORDERS).try_fold(0.0, |most: f64, turn| {
            let taken = self.pass(&Ranks::alone(), &turned(batch, turn * batch.ids.len() / (ORDERS + 1)))?;
            Ok(most.max(taken.distance(plain)))
        })
    }

    fn pass(&self, ranks: &Ranks, batch: &Batch) -> Result<Taken, TrainError> {
        let buckets = Buckets::new(&self.model.params, ranks);
        let (_, stepped) = gradients(&self.setting(ranks, &buckets), batch)?;
        Ok(Taken::of(&stepped, &self.model.params))
    }

    fn chunked(&self, ranks: &Ranks, images: usize) -> Result<Taken, TrainError> {
        let loader = self.loader()?.chunked(Chunking { images, apart: false, passes: 1 });
        let mut batches = loader.part(ranks.rank(), ranks.count()).batches(0, 1)?;
        let buckets = Buckets::new(&self.model.params, ranks);
        let step = LargeStep { setting: self.setting(ranks, &buckets), passes: 1, seed: 0 };
        let (_, stepped) = step.gradients(&mut Chunks::new(0, &mut batches))?;
        Ok(Taken::of(&stepped, &self.model.params))
    }
}

/// The batch, with the first `by` images last.
fn turned(batch: &Batch, by: usize) -> Batch {
    let (mut ids, mut second) = (batch.ids.clone(), batch.second.clone());
    ids.rotate_left(by);
    if !second.is_empty() {
        second.rotate_left(by);
    }
    let image = batch.pixels().len() / (ids.len() + second.len());
    let mut pixels = batch.pixels().to_vec();
    pixels.chunks_exact_mut(ids.len() * image).for_each(|views| views.rotate_left(by * image));
    let (step, epoch, chunk, bad) = (batch.step, batch.epoch, batch.chunk, batch.bad.clone());
    Batch { step, epoch, chunk, ids, second, views: pixels.into(), bad }
}

/// Memory of the passes of two small batches, and from there, in a straight line, of the batch asked for and of the largest
/// one that fits.
fn memory(ranks: &Ranks, own: &Ready) -> Result<Finding, TrainError> {
    let note = |text: &str| Finding { name: "memory".into(), text: text.into(), verdict: Verdict::Note };
    if own.model.params.device() != Device::Cpu {
        return Ok(note("not measured on a GPU"));
    }
    let train = &own.plan.config.train;
    let few = (if train.image_size > 64 { 8 } else { 64 }).min(own.dataset.len() / 2).min(train.batch.max(2));
    let (Some(one), Some(two)) = (peak_of(own, few)?, peak_of(own, 2 * few)?) else {
        return Ok(note("not measured: this system does not tell a process's peak"));
    };
    let each = (two - one) / few as f64;
    let rest = one - each * few as f64;
    if each <= 0.0 {
        return Ok(note("not measured: two batches too small to tell apart"));
    }
    let (images, processes) = (own.plan.chunk(), ranks.on_this_machine() as f64);
    let need = rest + each * images as f64;
    let free = available()
        .map_or(f64::INFINITY, |bytes| SHARE * (bytes / processes + resident().unwrap_or_default()));
    let most = ((free - rest) / each).max(0.0) as usize * ranks.count();
    let kept = if own.plan.is_chunked() && train.batch_norm == NormOver::Global {
        "; in lock step what goes between the stages of the encoder comes on top"
    } else {
        ""
    };
    let text = format!(
        "{:.0} MiB a process for {images} images at a time ({:.1} MiB each, measured at {few} and {}){kept}; the largest \
         batch that fits without chunks is {most}",
        need / MIB,
        each / MIB,
        2 * few,
    );
    let verdict = if need <= free { Verdict::Fine } else { Verdict::Wrong };
    Ok(Finding { name: "memory".into(), text, verdict })
}

/// Peak bytes of a pass over `images` images; none where the system does not tell.
fn peak_of(own: &Ready, images: usize) -> Result<Option<f64>, TrainError> {
    let (train, alone) = (&own.plan.config.train, Ranks::alone());
    let buckets = Buckets::new(&own.model.params, &alone);
    let shape = (own.plan.channels, train.image_size);
    let setting = Setting {
        model: &own.model,
        objective: &own.objective,
        over: NormOver::Global,
        shape,
        ranks: &alone,
        buckets: &buckets,
    };
    let views = own.plan.config.task.objective.views();
    let ids: Vec<usize> = (0..images).collect();
    // Any pixels that differ: Knuth's multiplicative hash of the place.
    let noise = |at: usize| (at as u32).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32;
    let pixels: Vec<f32> = (0..views * images * shape.0 * shape.1 * shape.1).map(noise).collect();
    let second = if views > 1 { ids.clone() } else { Vec::new() };
    let (chunk, views) = (simclr_data::Chunk::WHOLE, pixels.into());
    let batch = Batch { step: 0, epoch: 0, chunk, ids, second, views, bad: Vec::new() };
    // 5: the peak starts again from what is resident now (Linux, proc(5)).
    if fs_err::write("/proc/self/clear_refs", "5").is_err() {
        return Ok(None);
    }
    let (_, stepped) = gradients(&setting, &batch)?;
    drop(Taken::of(&stepped, &own.model.params));
    Ok(status("VmHWM:"))
}

fn resident() -> Option<f64> {
    status("VmRSS:")
}

fn status(name: &str) -> Option<f64> {
    kib(&fs_err::read_to_string("/proc/self/status").ok()?, name)
}

/// Bytes that a new process could have.
fn available() -> Option<f64> {
    kib(&fs_err::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// `Name:   123 kB` as bytes.
fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(1024.0 * line.split_whitespace().next()?.parse::<f64>().ok()?)
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
            second,
            views: pixels.into(),
            bad: Vec::new(),
        };
        let turned = turned(&batch, 1);
        assert_eq!((&turned.ids[..], &turned.second[..]), (&[8, 9, 7][..], &[8, 9, 7][..]));
        assert_eq!(turned.pixels()[..], [2.0, 3.0, 4.0, 5.0, 0.0, 1.0, 8.0, 9.0, 10.0, 11.0, 6.0, 7.0]);
    }

    #[test]
    fn kibibytes_are_read() {
        assert_eq!(kib("VmHWM:\t   12 kB\nVmRSS:\t 3 kB\n", "VmRSS:"), Some(3072.0));
        assert_eq!(kib("x", "VmRSS:"), None);
    }
}
