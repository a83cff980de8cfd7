//! What communication costs a step, and what it would cost in larger groups.

use std::time::Instant;

use tch::Tensor;

use super::{
    auto_config::measure::{self, MeasuredStep},
    setup::Prepared,
};
use crate::{
    TrainError,
    dist::{
        ProcessGroup, all_ok,
        scaling::{Link, StepParts, median},
    },
    encoder::BatchNormScope,
    losses::AllGather,
    methods::{BatchSlice, Method},
};

/// Images of a measured step on a rank, at most.
const MAX_IMAGES: usize = 64;
/// Measured steps; the first one compiles kernels and is not counted.
const STEPS: usize = 6;
/// Sizes of the forecast.
const LARGER: [usize; 3] = [8, 64, 512];

/// Measured on all ranks; times are means over them.
pub(super) struct Communication {
    ranks: usize,
    images: usize,
    link: Link,
    parts: StepParts,
    /// Seconds of a step of the whole group.
    together: f64,
    /// What the loss adds to a step with [`LARGER`] ranks.
    loss: [f64; LARGER.len()],
}

/// Steps at learning rate 0 with the same images on every rank, alone and together; `None` in a group of one. Collective.
pub(super) fn measure(group: &ProcessGroup, own: &mut Prepared) -> Result<Option<Communication>, TrainError> {
    let device = own.method.params().device();
    let ranks = group.count();
    let Some(link) = Link::measure(group, device) else { return Ok(None) };
    let images = (own.plan.config.train.batch / ranks).clamp(2, MAX_IMAGES);
    let scope = own.plan.config.train.batch_norm;
    let whole = ProcessGroup::alone();
    let (alone, _) = all_ok(group, median_step(&whole, own, (images, BatchNormScope::Global)))?;
    let (together, step) = all_ok(group, median_step(group, own, (images, scope)))?;
    let seconds = |ranks| loss_seconds(&*own.method, &step.z, images, ranks);
    let one = seconds(ranks);
    let loss = LARGER.map(|larger| if larger > ranks { (seconds(larger) - one).max(0.0) } else { 0.0 });
    // The step alone has the loss of one rank.
    let mut sums = [alone + (one - seconds(1)).max(0.0), together];
    group.all_reduce_f64(&mut sums);
    let [alone, together] = sums.map(|sum| sum / ranks as f64);
    let traffic = step.traffic;
    let parts = StepParts { alone, traffic, buckets: step.buckets };
    Ok(Some(Communication { ranks, images, link, parts, together, loss }))
}

/// The median of [`STEPS`] steps of `group`, with all ranks starting together, and the last of them.
fn median_step(
    group: &ProcessGroup,
    own: &mut Prepared,
    (images, scope): (usize, BatchNormScope),
) -> Result<(f64, MeasuredStep), TrainError> {
    let mut last = measure::step_in(group, own, (images, 1), scope)?;
    let mut seconds = Vec::new();
    for _ in 1..STEPS {
        group.all_gather_bytes(&[]);
        last = measure::step_in(group, own, (images, 1), scope)?;
        seconds.push(last.seconds);
    }
    Ok((median(seconds), last))
}

/// Seconds of the loss of this rank's `z` and its gradient if `ranks` had the same rows each.
fn loss_seconds(method: &dyn Method, z: &Tensor, images: usize, ranks: usize) -> f64 {
    let ids: Vec<usize> = (0..images).collect();
    let run = || {
        let own = z.copy().set_requires_grad(true);
        let slice = BatchSlice { ids: &ids, batch_images: ranks * images, group: &Repeated { ranks } };
        let start = Instant::now();
        method.objective(&own, &slice).loss.backward();
        let _ = own.grad().sum(None).double_value(&[]);
        start.elapsed().as_secs_f64()
    };
    run();
    median(vec![run(), run(), run()])
}

/// An all-gather of ranks that hold the same rows.
struct Repeated {
    ranks: usize,
}

impl AllGather for Repeated {
    fn all_gather(&self, own: &Tensor) -> Tensor {
        let views = own.detach().chunk(2, 0);
        let rows: Vec<&Tensor> =
            views.iter().flat_map(|view| std::iter::repeat_n(view, self.ranks)).collect();
        Tensor::cat(&rows, 0)
    }

    fn first_image(&self) -> i64 {
        0
    }
}

impl std::fmt::Display for Communication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ranks, images, link, parts, together, loss } = self;
        let milli = |seconds: f64| 1e3 * seconds;
        let mega = |bytes: usize| bytes as f64 / 1e6;
        let model = parts.seconds(link, *ranks, 0.0);
        let (sums, gathered) = (parts.traffic.sums, parts.traffic.gathered);
        let gradients = parts.buckets.iter().map(|bucket| bucket.bytes).sum::<usize>();
        writeln!(
            f,
            "a step with {images} images per process takes {:.1} ms, {:.1} of them without communication (model: {:.1})",
            milli(*together),
            milli(parts.alone),
            milli(model)
        )?;
        writeln!(
            f,
            "{} sums ({:.2} MB), {} all-gathers ({:.2} MB), {:.2} MB of gradients in {} buckets; {:.3} ms a hop, {:.1} MB/s",
            sums.count,
            mega(sums.bytes),
            gathered.count,
            mega(gathered.bytes),
            mega(gradients),
            parts.buckets.len(),
            milli(link.latency),
            link.rate / 1e6
        )?;
        let larger = LARGER.iter().zip(loss).filter(|(larger, _)| *larger > ranks);
        let forecasts = larger.map(|(&larger, &loss)| {
            let seconds = parts.seconds(link, larger, loss);
            let efficiency = 100.0 * parts.alone / seconds;
            format!("{larger} processes {:.1} ms ({efficiency:.0} % of the time computes)", milli(seconds))
        });
        let forecasts = forecasts.collect::<Vec<_>>().join(", ");
        write!(f, "the same images per process over a ring of such links: {forecasts}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_ranks_hold_all_first_views_and_then_all_second() {
        let own = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([4, 1]);
        let all = Repeated { ranks: 2 }.all_gather(&own);
        assert_eq!(Vec::<f32>::try_from(all.view(-1)).unwrap(), [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
        assert_eq!(Repeated { ranks: 1 }.all_gather(&own), own);
    }
}
