//! Chunks against the whole batch, and chunks against one graph.

use simclr::exec::launch_step;
use simclr_shim::{
    gpu::{Order, emulated},
    operations,
};

use super::*;

const METHODS: [&[&str]; 4] = [
    &[],
    &["moco.symmetric=true"],
    &["task.objective=simclr-momentum"],
    &[
        "task.objective=moco-v3",
        "moco.predictor_hidden=24",
        "moco.momentum_schedule=cosine",
        // Batch norm in the predictor makes the gradients of shifts before it 0 up to rounding, which has no relative distance.
        "head.norm=none",
    ],
];

const UNSCALED: [&str; 3] = ["task.objective=moco-v3", "moco.predictor_hidden=24", "head.norm=unscaled-last"];

/// SyncBN over chunks of even and uneven sizes: loss, gradients, running statistics, momentum encoder and queue of the whole batch.
#[test]
fn chunks_with_global_norm_equal_the_whole_batch() {
    for set in METHODS {
        let config = config(set);
        let expected = train(&config, None, 1);
        for images in [6, 5, 3] {
            let found = train(&config, Some((images, BatchNormScope::Global)), 1);
            let (a, b) = (&found.outputs[0], &expected.outputs[0]);
            assert!((a.loss / b.loss - 1.0).abs() < 1e-5, "{set:?}: {} {}", a.loss, b.loss);
            assert_eq!(a.accuracy, b.accuracy);
            assert!(relative(&a.z, &b.z) < 1e-5);
            for (what, found, expected) in [
                ("gradients", found.gradients(), expected.gradients()),
                ("weights and statistics", found.online(), expected.online()),
                ("state", found.method.state(), expected.method.state()),
            ] {
                let (distance, name) = furthest(&found, &expected);
                assert!(distance < 1e-5, "{set:?}, chunks of {images}, {what}: {name} is {distance:e} away");
            }
        }
    }
}

#[test]
fn ten_steps_in_chunks_follow_whole_batches() {
    for set in METHODS {
        let config = config(set);
        let (expected, found) =
            (train(&config, None, 10), train(&config, Some((5, BatchNormScope::Global)), 10));
        for (a, b) in found.outputs.iter().zip(&expected.outputs) {
            assert!((a.loss / b.loss - 1.0).abs() < 1e-4, "{set:?}: {} {}", a.loss, b.loss);
        }
        let (distance, name) = furthest(&found.method.state(), &expected.method.state());
        assert!(distance < 1e-3, "{set:?}: {name} is {distance:e} away");
    }
}

/// The step as CUDA graphs capture it, on emulated kernels: the same bits as the eager step over several steps, with the queue, the
/// momentum encoder and the permutation updated in place between them, and no synchronisation with the host.
#[test]
fn a_launched_step_equals_the_eager_step() {
    for set in [METHODS[0], METHODS[1], METHODS[2], METHODS[3], &UNSCALED, &["train.batch_norm_groups=3"]] {
        let config = config(set);
        let run = || {
            let mut method = method(&config);
            let mut optimizer = Optimizer::new(&config.optim, method.params());
            let group = ProcessGroup::alone();
            let gradients = GradientBuckets::new(method.params(), &group);
            let (scope, groups) = (BatchNormScope::Global, config.train.batch_norm_groups);
            let norm = NormConfig { scope, momentum: MOMENTUM, groups };
            let mut losses = Vec::new();
            for step in 0..4 {
                let part = batches(step, 12, None).remove(0);
                let views = DeviceBatch::on_host(part, 3, Device::Cpu).views().unwrap();
                method.before_step(step);
                optimizer.set_step_scalars(method.params(), 0.05).unwrap();
                let context =
                    StepContext { method: &*method, norm, group: &group, gradients: &gradients, seed: 0 };
                let (launched, names) =
                    operations(|| launch_step(&context, &optimizer, (&views, &[12])).unwrap()).unwrap();
                let syncs =
                    names.iter().filter(|name| name.contains("item") || name.contains("_local_scalar"));
                assert_eq!(syncs.count(), 0, "{set:?}");
                let output = launched.download((0..12).collect(), vec![12]).unwrap().wait().unwrap();
                method.after_step(step, &output.z, &BatchShards::new(&group, vec![12]));
                losses.push((output.loss, output.accuracy, output.gradient_norm));
            }
            let named =
                method.params().named().map(|(name, tensor)| (name.to_owned(), tensor.detach().copy()));
            (losses, named.chain(method.state()).collect::<Vec<_>>())
        };
        let (losses, state) = emulated(Order::Rising, run);
        let eager = emulated(Order::Rising, || train(&config, None, 4));
        let scalars = |output: &StepOutput| (output.loss, output.accuracy, output.gradient_norm);
        assert_eq!(losses, eager.outputs.iter().map(scalars).collect::<Vec<_>>(), "{set:?}");
        let expected: Vec<_> = eager.online().into_iter().chain(eager.method.state()).collect();
        assert_eq!(furthest(&state, &expected).0, 0.0, "{set:?}");
    }
}

/// Batch norm per chunk: one graph through all chunks, each normalised on its own.
#[test]
fn gradient_caching_equals_the_whole_batch() {
    for set in METHODS {
        let config = config(&[set, &["head.norm=none"]].concat());
        for scope in [BatchNormScope::Chunk, BatchNormScope::ChunkShuffled] {
            let found = train(&config, Some((4, scope)), 1);
            let (loss, gradients, buffers) = in_one_graph(&config, scope);
            assert!((found.outputs[0].loss / loss - 1.0).abs() < 1e-5, "{set:?} {scope:?}");
            let (distance, name) = furthest(&found.gradients(), &gradients);
            assert!(distance < 1e-5, "{set:?} {scope:?}: {name} is {distance:e} away");
            let found = found.method.buffers();
            assert!(!found.is_empty() && found.len() == buffers.len());
            for (found, expected) in found.iter().zip(&buffers) {
                assert!(relative(found, expected) < 1e-6, "every network's statistics are updated once");
            }
        }
    }
}

/// Loss, gradients and buffers of all chunks in one autograd graph, each chunk normalised on its own.
fn in_one_graph(config: &RunConfig, scope: BatchNormScope) -> (f64, Vec<(String, Tensor)>, Vec<Tensor>) {
    use simclr::{
        encoder::{BatchStatistics, Mode},
        losses::SingleProcess,
        methods::BatchSlice,
    };
    let method = method(config);
    let parts = batches(0, config.train.batch, Some(chunks(4, scope)));
    let momentum = 1.0 - (1.0 - MOMENTUM).powf(1.0 / parts.len() as f64);
    let mode = Mode::Train(BatchStatistics { momentum, ..BatchStatistics::default() });
    let mut rows = std::collections::BTreeMap::new();
    for part in parts {
        let (firsts, seconds) = (part.ids.clone(), part.second_view_ids.clone());
        let batch = DeviceBatch::on_host(part, 3, Device::Cpu);
        let (_, z) = method.embed(&batch.views().unwrap(), batch.first_views(), &mode).unwrap();
        let keys = firsts.into_iter().map(|id| (0, id)).chain(seconds.into_iter().map(|id| (1, id)));
        keys.enumerate().for_each(|(at, key)| drop(rows.insert(key, z.get(at as i64))));
    }
    let z = Tensor::stack(&rows.values().collect::<Vec<_>>(), 0);
    let ids: Vec<usize> = (0..config.train.batch).collect();
    let slice = BatchSlice { ids: &ids, batch_images: ids.len(), group: &SingleProcess };
    let loss = method.objective(&z, &slice).loss;
    loss.backward();
    let params = method.params().params().iter();
    let gradients =
        params.map(|param| (format!("optim.first.{}", param.name), param.tensor.grad())).collect();
    (loss.double_value(&[]), gradients, method.buffers())
}
