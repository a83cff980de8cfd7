//! How much h and z hold about a transformation of the image (paper, Table 3): a network of one hidden layer predicts from frozen
//! features which transformation was applied. The paper publishes neither its size nor its training; both are ours.

use simclr_data::{
    Image, ViewParams,
    augment::{AugmentConfig, NoiseSeed},
    rng::Key,
};
use tch::{Kind, Tensor};

use super::{
    super::{arm::Run, table::Figures, workspace::Part},
    features::Network,
};
use crate::{
    EvalError, ModelError,
    optim::{OptimConfig, OptimKind, Optimizer},
    params::{Params, Role},
};

/// Training and test images.
const IMAGES: (usize, usize) = (4000, 2000);
/// Units of the hidden layer.
const HIDDEN: i64 = 256;
/// Full-batch steps of AdamW, and its learning rate.
const STEPS: usize = 200;
const RATE: f64 = 3e-3;
/// Largest deviation of the noise in millionths, as in `augment.noise_sigma`.
const MAX_NOISE: f32 = 100_000.0;

/// A transformation, and the number of its variants, of which each image gets one with equal probability.
#[derive(Clone, Copy)]
enum Task {
    Rotation,
    Gray,
    Noise,
    Sobel,
}

const TASKS: [(&str, Task, usize); 4] = [
    ("rotation", Task::Rotation, 4),
    ("gray", Task::Gray, 2),
    ("noise", Task::Noise, 2),
    ("Sobel", Task::Sobel, 2),
];

/// `rotation h`, `rotation z`, and so on: test accuracy in points.
pub(super) fn transformations(network: &Network<'_>, run: &Run, seed: u64) -> Result<Figures, EvalError> {
    let train = network.workspace.train_part(&run.images).thinned(IMAGES.0);
    let test = network.workspace.test_part(&run.images).thinned(IMAGES.1);
    let (train, test) = (decoded(&train)?, decoded(&test)?);
    let mut figures = Figures::default();
    for (number, (name, task, variants)) in TASKS.into_iter().enumerate() {
        let part = |images: &[Image], first: usize| {
            transformed(network, images, (task, variants), (seed, number as u64, first))
        };
        let (train, test) = (part(&train, 0)?, part(&test, train.len())?);
        for (layer, of) in ["h", "z"].into_iter().enumerate() {
            let (Some(x), Some(held)) = (train.0.get(layer), test.0.get(layer)) else { continue };
            let accuracy = trained_accuracy((x, &train.1), (held, &test.1), variants as i64, seed)?;
            figures.set(format!("{name} {of}"), 100.0 * accuracy);
        }
    }
    Ok(figures)
}

fn decoded(part: &Part<'_>) -> Result<Vec<Image>, EvalError> {
    part.indices.iter().map(|&index| Ok(part.set.decode(index)?)).collect()
}

/// Features of the transformed images, and the variant of each.
fn transformed(
    network: &Network<'_>,
    images: &[Image],
    (task, variants): (Task, usize),
    (seed, number, first): (u64, u64, usize),
) -> Result<(Vec<Tensor>, Tensor), EvalError> {
    let mut labels = Vec::new();
    let mut views = Vec::new();
    for (at, image) in images.iter().enumerate() {
        let key = Key { seed, epoch: number, image: (first + at) as u64, view: 3 };
        let mut stream = key.stream();
        let variant = stream.below(variants);
        let mut params = AugmentConfig::nothing().draw(key, image.width, image.height);
        match task {
            Task::Rotation => params.quarter_turns = variant as u8,
            Task::Gray => params.gray = variant == 1,
            Task::Sobel => params.sobel = variant == 1,
            Task::Noise => {
                let sigma_millionths = stream.uniform(0.0, MAX_NOISE) as u32;
                let noise = NoiseSeed { sigma_millionths, seed: stream.bits() };
                params.noise = (variant == 1).then_some(noise);
            }
        }
        labels.push(variant as i64);
        views.push((image.clone(), params));
    }
    let features: Vec<Tensor> = network.of_views(&views as &[(Image, ViewParams)])?;
    Ok((features, Tensor::from_slice(&labels)))
}

/// Accuracy on the second set of a two-layer network trained on the first.
fn trained_accuracy(
    (x, labels): (&Tensor, &Tensor),
    (held, truth): (&Tensor, &Tensor),
    classes: i64,
    seed: u64,
) -> Result<f64, ModelError> {
    let mean = x.mean_dim([0i64].as_slice(), true, Kind::Float);
    let deviation = x.std_dim([0i64].as_slice(), true, true) + 1e-6;
    let scaled = |x: &Tensor| (x - &mean) / &deviation;
    let (x, held) = (scaled(x), scaled(held));
    let mut params = Params::new(x.device(), seed);
    let layers = [(HIDDEN, x.size()[1]), (classes, HIDDEN)].map(|shape| layer(&mut params, shape));
    let logits = |x: &Tensor| {
        let [(first, first_bias), (last, last_bias)] = &layers;
        let hidden = x.linear(first, Some(first_bias)).relu();
        hidden.linear(last, Some(last_bias))
    };
    let config = OptimConfig { kind: OptimKind::Adamw, weight_decay: 1e-4, ..OptimConfig::default() };
    let mut optimizer = Optimizer::new(&config, &params);
    for step in 0..STEPS {
        logits(&x).cross_entropy_for_logits(labels).backward();
        let half_cosine = 0.5 + 0.5 * (std::f64::consts::PI * step as f64 / STEPS as f64).cos();
        optimizer.step(&params, RATE * half_cosine)?;
    }
    let predicted = tch::no_grad(|| logits(&held)).argmax(1, false);
    Ok(crate::knn::accuracy(&predicted, truth))
}

/// Weights `[out, in]`, uniform in +-1/sqrt(in), and zero biases.
fn layer(params: &mut Params, (output, input): (i64, i64)) -> (Tensor, Tensor) {
    let bound = 1.0 / (input as f32).sqrt();
    let mut stream = params.stream();
    let weights: Vec<f32> = (0..output * input).map(|_| stream.uniform(-bound, bound)).collect();
    let name = format!("layer{}", params.params().len());
    let weight = params.add(
        format!("{name}.weight"),
        Role::Weight,
        Tensor::from_slice(&weights).view([output, input]),
    );
    let zeros = Tensor::zeros([output], (Kind::Float, params.device()));
    (weight, params.add(format!("{name}.bias"), Role::Bias, zeros))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// XOR of two signs: not linearly separable.
    #[test]
    fn the_network_learns_what_a_linear_classifier_cannot() {
        let points = |seed: u64, count: i64| {
            let x = crate::test_normals(seed, &[count, 2]);
            let label = (x.select(1, 0) * x.select(1, 1)).gt(0.0).to_kind(Kind::Int64);
            (x, label)
        };
        let ((x, labels), (held, truth)) = (points(1, 600), points(2, 300));
        let accuracy = trained_accuracy((&x, &labels), (&held, &truth), 2, 0).unwrap();
        assert!(accuracy > 0.9, "{accuracy}");
    }
}
