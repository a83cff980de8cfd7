//! Losses against formulas over stored logits in f64, moving average and queue after some steps.

use simclr::{
    losses::SingleProcess,
    methods::BatchSlice,
    task::{MocoConfig, MomentumSchedule},
};

use super::*;

fn objective(method: &dyn Method, z: &Tensor) -> (f64, f64) {
    let ids: Vec<usize> = (0..z.size()[0] as usize / 2).collect();
    let slice = BatchSlice { ids: &ids, batch_images: ids.len(), group: &SingleProcess };
    let output = method.objective(z, &slice);
    (output.loss.double_value(&[]), output.accuracy.double_value(&[]))
}

fn normals(seed: u64, shape: &[i64]) -> Tensor {
    let draws = Key::weights(seed, 7).stream().normals(shape.iter().product::<i64>() as usize);
    Tensor::from_slice(&draws).view(shape)
}

/// Mean loss and accuracy of `queries` with `positives` against the rows of `negatives` that `mask` (1 = excluded) leaves.
fn formula(queries: &Tensor, positives: &Tensor, negatives: &Tensor, mask: &Tensor, tau: f64) -> (f64, f64) {
    let positive = (queries * positives).sum_dim_intlist([1i64].as_slice(), true, Kind::Double) / tau;
    let others = queries.matmul(&negatives.tr()) / tau - mask * 1e9;
    let logits = Tensor::cat(&[&positive, &others], 1);
    let labels = Tensor::zeros([queries.size()[0]], (Kind::Int64, Device::Cpu));
    let right = logits.argmax(1, false).eq_tensor(&labels).to_kind(Kind::Double).mean(Kind::Double);
    (logits.cross_entropy_for_logits(&labels).double_value(&[]), right.double_value(&[]))
}

fn near(found: (f64, f64), expected: (f64, f64)) {
    assert!((found.0 / expected.0 - 1.0).abs() < 1e-5, "{found:?} {expected:?}");
    assert!((found.1 - expected.1).abs() < 1e-6, "{found:?} {expected:?}");
}

#[test]
fn moco_contrasts_queries_with_the_queue() {
    let method = method(&config(&[]));
    let z = normals(0, &[24, 8]);
    let (queries, keys) = (unit(&z.narrow(0, 0, 12)), unit(&z.narrow(0, 12, 12)));
    let queue = state(&*method, "moco.queue").to_kind(Kind::Double);
    let mask = Tensor::zeros([12, 40], (Kind::Double, Device::Cpu));
    near(objective(&*method, &z), formula(&queries, &keys, &queue, &mask, 0.3));
    assert!((method.chance_loss(12) - 41f64.ln()).abs() < 1e-12 && method.loss_scale() == 1.0);
}

#[test]
fn the_symmetric_loss_is_the_sum_of_both_directions() {
    let (one, both) = (method(&config(&[])), method(&config(&["moco.symmetric=true"])));
    let z = normals(1, &[24, 16]);
    let part = |view: i64, column: i64| z.narrow(0, 12 * view, 12).narrow(1, 8 * column, 8);
    let direction = |view: i64| objective(&*one, &Tensor::cat(&[part(view, 0), part(1 - view, 1)], 0));
    let (first, second) = (direction(0), direction(1));
    near(objective(&*both, &z), (first.0 + second.0, (first.1 + second.1) / 2.0));
    assert!((both.chance_loss(12) - 2.0 * 41f64.ln()).abs() < 1e-12 && both.loss_scale() == 2.0);
}

/// Candidates of an anchor: the keys of the other images' views and the other view of its own, and the queue.
#[test]
fn simclr_momentum_contrasts_both_views_with_batch_and_queue() {
    for scale in ["paper", "official"] {
        let set = ["task.objective=simclr-momentum", &format!("loss.scale={scale}")];
        let method = method(&config(&set));
        let z = normals(2, &[24, 16]);
        let (queries, keys) = (unit(&z.narrow(1, 0, 8)), unit(&z.narrow(1, 8, 8)));
        let queue = state(&*method, "moco.queue").to_kind(Kind::Double);
        let negatives = Tensor::cat(&[&keys, &queue], 0);
        let own = Tensor::eye(24, (Kind::Double, Device::Cpu));
        let mask = Tensor::cat(
            &[&own + own.roll([12], [0]), Tensor::zeros([24, 40], (Kind::Double, Device::Cpu))],
            1,
        );
        let expected = formula(&queries, &keys.roll([12], [0]), &negatives, &mask, 0.3);
        near(objective(&*method, &z), (expected.0 * method.loss_scale(), expected.1));
        assert!((method.chance_loss(12) - method.loss_scale() * 63f64.ln()).abs() < 1e-12);
    }
}

/// Both directions of MoCo v3: predictions against the keys of the other views, times 2 tau.
#[test]
fn moco_v3_contrasts_predictions_with_the_keys_of_the_batch() {
    let method = method(&config(&["task.objective=moco-v3", "moco.predictor_hidden=24"]));
    let z = normals(4, &[24, 16]);
    let (queries, keys) = (unit(&z.narrow(1, 0, 8)), unit(&z.narrow(1, 8, 8)));
    let own = Tensor::eye(12, (Kind::Double, Device::Cpu));
    let direction = |view: i64| {
        let (queries, keys) = (queries.narrow(0, 12 * view, 12), keys.narrow(0, 12 * (1 - view), 12));
        formula(&queries, &keys, &keys, &own, 0.3)
    };
    let (first, second) = (direction(0), direction(1));
    near(objective(&*method, &z), (0.6 * (first.0 + second.0), (first.1 + second.1) / 2.0));
    assert!((method.chance_loss(12) - 1.2 * 12f64.ln()).abs() < 1e-12 && method.loss_scale() == 1.2);
}

/// Finite differences of the loss through the normalisation of the predictions.
#[test]
fn gradients_of_moco_v3_agree_with_finite_differences() {
    let method = method(&config(&["task.objective=moco-v3", "moco.predictor_hidden=24"]));
    let z = normals(5, &[24, 16]).set_requires_grad(true);
    let ids: Vec<usize> = (0..12).collect();
    let slice = BatchSlice { ids: &ids, batch_images: 12, group: &SingleProcess };
    method.objective(&z, &slice).loss.backward();
    let gradient = z.grad();
    assert_eq!(gradient.narrow(1, 8, 8).abs().max().double_value(&[]), 0.0, "keys have no gradient");
    for (row, column) in [(0, 0), (5, 3), (12, 7), (23, 1)] {
        let shifted = |by: f64| {
            let moved = z.detach().copy();
            let _ = moved.get(row).get(column).g_add_scalar_(by);
            objective(&*method, &moved).0
        };
        let expected = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
        let found = gradient.double_value(&[row, column]);
        assert!(
            (found - expected).abs() < 1e-3 * expected.abs().max(0.05),
            "{row} {column}: {found} {expected}"
        );
    }
}

/// The predictor is not in the momentum encoder, and the queries of a step pass through it.
#[test]
fn the_predictor_belongs_to_the_trained_network_alone() {
    let result = train(
        &config(&["task.objective=moco-v3", "moco.predictor_hidden=24", "head.norm=unscaled-last"]),
        None,
        2,
    );
    let online: Vec<String> = result.online().into_iter().map(|(name, _)| name).collect();
    let predictor: Vec<&str> = online.iter().filter_map(|name| name.strip_prefix("predictor.")).collect();
    assert_eq!(
        predictor,
        [
            "0.weight",
            "1.weight",
            "1.bias",
            "2.weight",
            "1.running_mean",
            "1.running_var",
            "3.running_mean",
            "3.running_var"
        ]
    );
    let state = result.method.state();
    assert_eq!(state.len() + predictor.len(), online.len());
    assert!(state.iter().all(|(name, _)| !name.contains("predictor") && !name.contains("queue")));
    let moved = result.gradients();
    let moved = moved.iter().filter(|(name, _)| name.contains("predictor"));
    assert_eq!(moved.filter(|(_, gradient)| gradient.norm().double_value(&[]) > 0.0).count(), 4);
}

/// m = 1 - (1 - m0) (1 + cos(pi t / T)) / 2 before step t.
#[test]
fn the_momentum_rises_along_half_a_cosine() {
    let config =
        MocoConfig { momentum: 0.9, momentum_schedule: MomentumSchedule::Cosine, ..MocoConfig::default() };
    let momentum = Momentum::new(&config, 40);
    for (step, expected) in [(0, 0.9), (20, 0.95), (40, 1.0), (10, 1.0 - 0.05 * (1.0 + 0.5f64.sqrt()))] {
        assert!((momentum.before_step(step) - expected).abs() < 1e-12, "{step}");
    }
    let constant = MocoConfig { momentum_schedule: MomentumSchedule::Constant, ..config };
    assert_eq!(Momentum::new(&constant, 40).before_step(39), 0.9);
}

/// After n updates from k with constant weights q: q + m^n (k - q).
#[test]
fn the_moving_average_has_its_closed_form() {
    let config = config(&[]);
    for momentum in [0.9, 1.0, 0.0] {
        let online = model(&config);
        let schedule = MocoConfig { momentum, ..config.moco.clone() };
        let encoder = MomentumEncoder::new(model(&config), &online, Momentum::new(&schedule, STEPS));
        let before: Vec<Tensor> = encoder.model().params.params().iter().map(|p| p.tensor.copy()).collect();
        for param in online.params.params() {
            let _ = tch::no_grad(|| param.tensor.shallow_clone().g_mul_scalar_(3.0).g_add_scalar_(0.5));
        }
        (0..7).for_each(|step| encoder.update(&online, step));
        let pairs = encoder.model().params.params().iter().zip(online.params.params());
        for ((key, query), start) in pairs.zip(before) {
            let query = query.tensor.detach();
            let expected = &query + (&start - &query) * momentum.powi(7);
            let exact = momentum == 1.0 && key.tensor == start;
            assert!(exact || relative(&key.tensor, &expected) < 1e-6, "{} m = {momentum}", key.name);
        }
    }
}

#[test]
fn the_momentum_encoder_has_no_gradient_and_its_own_statistics() {
    let v3 = &["task.objective=moco-v3", "moco.predictor_hidden=24"][..];
    for set in [&[][..], &["moco.symmetric=true"], &["task.objective=simclr-momentum"], v3] {
        let config = config(&[set, &["moco.momentum=1"]].concat());
        let result = train(&config, None, 3);
        let target = result.method.target().unwrap().model;
        let initial = model(&config);
        for ((param, start), online) in
            target.params.params().iter().zip(initial.params.params()).zip(result.method.params().params())
        {
            assert!(!param.tensor.requires_grad() && !param.tensor.grad().defined(), "{}", param.name);
            assert_eq!(param.tensor, start.tensor.detach(), "m = 1 keeps {}", param.name);
            assert_ne!(online.tensor, start.tensor, "{} is trained", param.name);
        }
        for ((name, own), (_, online)) in target.params.buffers().iter().zip(result.method.params().buffers())
        {
            assert_ne!(own, online, "{name}");
        }
    }
}

/// Keys enter the queue behind the pointer, first views before second views, after the loss of their step.
#[test]
fn steps_enqueue_their_keys() {
    for (set, keys) in
        [(&[][..], 12), (&["moco.symmetric=true"], 24), (&["task.objective=simclr-momentum"], 24)]
    {
        let config = config(set);
        let initial = state(&*method(&config), "moco.queue");
        let result = train(&config, None, 2);
        let queue = state(&*result.method, "moco.queue");
        assert_eq!(state(&*result.method, "moco.pointer").int64_value(&[0]), 2 * keys % 40);
        let (_, found) = result.method.branches().split(&result.outputs[1].z);
        let wrapped = (2 * keys - 40).max(0);
        let here = (2 * keys).min(40) - keys;
        assert!(relative(&queue.narrow(0, keys, here), &unit(&found).narrow(0, 0, here)) < 1e-6);
        assert!(
            wrapped == 0
                || relative(&queue.narrow(0, 0, wrapped), &unit(&found).narrow(0, here, wrapped)) < 1e-6
        );
        let rest = 40 - keys - here;
        assert_eq!(queue.narrow(0, 40 - rest, rest), initial.narrow(0, 40 - rest, rest));
    }
}

#[test]
fn health_metrics_compare_a_query_with_its_positive_key() {
    let v3 = &["task.objective=moco-v3", "moco.predictor_hidden=24"][..];
    for set in [&[][..], &["moco.symmetric=true"], &["task.objective=simclr-momentum"], v3] {
        let result = train(&config(set), None, 1);
        let z = &result.outputs[0].z;
        let (queries, keys) = result.method.branches().split(z);
        let pairs = result.method.positive_pairs(z);
        assert_eq!(pairs.size(), [24, 8]);
        assert_eq!(pairs.narrow(0, 0, 12), queries.narrow(0, 0, 12));
        assert_eq!(pairs.narrow(0, 12, 12), keys.narrow(0, keys.size()[0] - 12, 12));
    }
}
