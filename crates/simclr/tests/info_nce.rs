//! InfoNCE against the formula in f64, finite differences and its limits.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use simclr::{
    data::rng::Key,
    losses::{InfoNce, NegativeKeys, info_nce},
    losses::{LossConfig, contrastive_loss, l2_normalize},
};
use tch::{Kind, Tensor};

const CPU: (Kind, tch::Device) = (Kind::Float, tch::Device::Cpu);

fn normals(seed: u64, rows: i64, columns: i64) -> Tensor {
    let draws = Key::weights(seed, 0).stream().normals((rows * columns) as usize);
    Tensor::from_slice(&draws).view([rows, columns])
}

fn unit(seed: u64, rows: i64, columns: i64) -> Tensor {
    l2_normalize(&normals(seed, rows, columns))
}

fn rows_of(tensor: &Tensor) -> Vec<Vec<f64>> {
    let columns = tensor.size()[1] as usize;
    let values = Vec::<f64>::try_from(tensor.to_kind(Kind::Double).reshape([-1])).unwrap();
    values.chunks(columns).map(<[f64]>::to_vec).collect()
}

/// Sum of the losses and number of right queries, in f64.
fn oracle(queries: &Tensor, positives: &Tensor, negatives: &[NegativeKeys<'_>], tau: f64) -> (f64, f64) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let blocks: Vec<_> = negatives.iter().map(|block| (rows_of(block.keys), block.excluded)).collect();
    let (mut loss, mut right) = (0.0, 0.0);
    for (i, (query, positive)) in rows_of(queries).iter().zip(rows_of(positives)).enumerate() {
        let norm = dot(query, query).sqrt();
        let logit = |key: &[f64]| dot(query, key) / norm / tau;
        let mut others = Vec::new();
        for (keys, excluded) in &blocks {
            let is_negative = |at: usize| !excluded.contains(&(at as i64 - i as i64));
            others.extend(
                keys.iter().enumerate().filter(|(at, _)| is_negative(*at)).map(|(_, key)| logit(key)),
            );
        }
        let (own, largest) = (logit(&positive), others.iter().copied().fold(f64::MIN, f64::max));
        let top = own.max(largest);
        let sum: f64 = others.iter().chain([&own]).map(|x| (x - top).exp()).sum();
        loss += top + sum.ln() - own;
        right += f64::from(u8::from(own > largest));
    }
    (loss, right)
}

fn values(output: &InfoNce) -> (f64, f64) {
    (output.loss.double_value(&[]), output.right.double_value(&[]))
}

/// Several blocks, excluded keys, and sizes of one tile, of several tiles in columns, and of several tiles in both directions.
#[test]
fn values_equal_the_formula_in_f64() {
    for (case, (m, k)) in [(3, 5), (7, 300), (130, 9000), (1030, 2100)].into_iter().enumerate() {
        let seed = 10 * case as u64;
        let (queries, positives) = (normals(seed, m, 6), unit(seed + 1, m, 6));
        let (batch, queue) = (unit(seed + 2, 2 * m, 6), unit(seed + 3, k, 6));
        let negatives =
            [NegativeKeys { keys: &batch, excluded: &[0, m] }, NegativeKeys { keys: &queue, excluded: &[] }];
        for tau in [0.07, 0.5] {
            let found = values(&info_nce(&queries, &positives, &negatives, tau));
            let expected = oracle(&queries, &positives, &negatives, tau);
            assert!((found.0 / expected.0 - 1.0).abs() < 2e-6, "{m} x {k}: {found:?} {expected:?}");
            assert_eq!(found.1, expected.1);
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let (positives, keys) = (unit(1, 4, 5), unit(2, 9, 5));
    let negatives = [NegativeKeys { keys: &keys, excluded: &[1] }];
    let queries = normals(0, 4, 5).set_requires_grad(true);
    info_nce(&queries, &positives, &negatives, 0.3).loss.backward();
    let gradient = queries.grad();
    let at = |row: i64, column: i64, by: f64| {
        let moved = queries.detach().to_kind(Kind::Double).copy();
        let _ = moved.get(row).get(column).g_add_scalar_(by);
        oracle(&moved, &positives, &negatives, 0.3).0
    };
    for (row, column) in (0..4).flat_map(|row| (0..5).map(move |column| (row, column))) {
        let expected = (at(row, column, 1e-5) - at(row, column, -1e-5)) / 2e-5;
        let found = gradient.double_value(&[row, column]);
        assert!((found - expected).abs() < 2e-5, "({row}, {column}): {found} {expected}");
    }
}

/// The gradient over several tiles equals that of libtorch's cross entropy over stored logits.
#[test]
fn tiles_give_the_gradient_of_stored_logits() {
    let (m, k) = (1100, 1500);
    let (positives, keys) = (unit(1, m, 4), unit(2, k, 4));
    let tiled = normals(0, m, 4).set_requires_grad(true);
    info_nce(&tiled, &positives, &[NegativeKeys { keys: &keys, excluded: &[] }], 0.2).loss.backward();
    let stored = normals(0, m, 4).to_kind(Kind::Double).set_requires_grad(true);
    let queries = l2_normalize(&stored);
    let positive =
        (&queries * positives.to_kind(Kind::Double)).sum_dim_intlist([1i64].as_slice(), true, Kind::Double);
    let logits = Tensor::cat(&[positive, queries.matmul(&keys.to_kind(Kind::Double).tr())], 1) / 0.2;
    let labels = Tensor::zeros([m], (Kind::Int64, tch::Device::Cpu));
    (logits.cross_entropy_for_logits(&labels) * m as f64).backward();
    let apart = (tiled.grad().to_kind(Kind::Double) - stored.grad()).norm() / stored.grad().norm();
    assert!(apart.double_value(&[]) < 2e-6, "{apart}");
}

#[test]
fn the_loss_at_chance_is_ln_of_the_candidates() {
    let ones = l2_normalize(&Tensor::ones([8, 3], CPU));
    let queue = l2_normalize(&Tensor::ones([100, 3], CPU));
    let output = info_nce(&ones, &ones, &[NegativeKeys { keys: &queue, excluded: &[] }], 0.1);
    let (loss, right) = values(&output);
    assert!((loss / 8.0 - 101f64.ln()).abs() < 1e-5, "{loss}");
    assert_eq!(right, 0.0, "a tie counts as wrong");
}

/// Without a queue, with the keys of the batch, this is NT-Xent.
#[test]
fn keys_of_the_batch_alone_give_nt_xent() {
    let (n, z) = (6, normals(3, 12, 5));
    let keys = l2_normalize(&z);
    let directions = [(0, n), (n, 0)].map(|(own, other)| {
        let negatives = [NegativeKeys { keys: &keys, excluded: &[own, other] }];
        info_nce(&z.narrow(0, own, n), &keys.narrow(0, other, n), &negatives, 0.4).loss.double_value(&[])
    });
    let expected = contrastive_loss(&z, &LossConfig { temperature: 0.4, ..LossConfig::default() })
        .loss
        .double_value(&[]);
    assert!(((directions[0] + directions[1]) / (2 * n) as f64 - expected).abs() < 1e-6);
}

#[test]
fn extreme_values_stay_finite() {
    let queries = Tensor::cat(&[normals(0, 3, 4), Tensor::zeros([1, 4], CPU)], 0).set_requires_grad(true);
    let keys = unit(1, 10, 4);
    for (positives, tau) in [(unit(2, 4, 4), 1e-3), (l2_normalize(&queries.detach()), 1e-3)] {
        let loss = info_nce(&queries, &positives, &[NegativeKeys { keys: &keys, excluded: &[] }], tau).loss;
        assert!(loss.double_value(&[]).is_finite());
        loss.backward();
        assert_eq!(queries.grad().isfinite().all().int64_value(&[]), 1);
    }
}
