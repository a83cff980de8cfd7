//! Entropy of the contrastive distribution (paper, Table 5): softmax of the similarities of a view to all others at the temperature of
//! the loss, and how often the other view of the image is first.

use std::sync::Arc;

use simclr_data::{Loader, LoaderConfig};
use tch::{Kind, Tensor};

use super::{
    super::{arm::Run, table::Figures},
    features::Network,
};
use crate::{EvalError, losses::l2_normalize};

/// Images of a batch.
const IMAGES: usize = 512;

/// `entropy` in nats, and its maximum `entropy limit`.
pub(super) fn entropy(network: &Network<'_>, run: &Run) -> Result<Figures, EvalError> {
    let workspace = network.workspace;
    let chosen = workspace.chosen(&run.images);
    let set = workspace.opened(run.images.set).set.train.subset(&chosen);
    let config = network.encoder.config();
    let loader = LoaderConfig {
        batch: IMAGES.min(set.len()),
        size: config.train.image_size,
        seed: config.train.seed,
        ..LoaderConfig::default()
    };
    let mut batches = Loader::new(Arc::new(set), config.augment.clone(), loader)?.batches(0, 1)?;
    let Some(batch) = batches.next().transpose()? else { return Ok(Figures::default()) };
    let z = network.split(&network.both(&network.views(batch.pixels())?)?).pop().unwrap_or_default();
    let z = if config.loss.normalize { l2_normalize(&z) } else { z };
    let entropy = mean_entropy(&z, config.loss.temperature);
    let mut figures = Figures::of("entropy", entropy);
    figures.set("entropy limit", ((z.size()[0] - 1) as f64).ln());
    Ok(figures)
}

/// Mean over rows of the entropy of the softmax over all other rows.
fn mean_entropy(z: &Tensor, temperature: f64) -> f64 {
    let logits = z.matmul(&z.tr()) / temperature;
    let mask = Tensor::eye(z.size()[0], (Kind::Bool, z.device()));
    let logs = logits.masked_fill(&mask, f64::NEG_INFINITY).log_softmax(1, Kind::Double);
    let terms = (logs.exp() * &logs).masked_fill(&mask, 0.0).nan_to_num(0.0, 0.0, 0.0);
    -terms.sum_dim_intlist([1i64].as_slice(), false, Kind::Double).mean(Kind::Double).double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_of_equal_and_of_certain_similarities() {
        let equal = Tensor::ones([5, 2], (Kind::Float, tch::Device::Cpu));
        assert!((mean_entropy(&equal, 0.5) - 4f64.ln()).abs() < 1e-9);
        // Two pairs of equal unit rows, opposite to each other.
        let pairs = Tensor::from_slice(&[1f32, 1.0, -1.0, -1.0]).view([4, 1]);
        assert!(mean_entropy(&pairs, 0.01) < 1e-9);
    }
}
