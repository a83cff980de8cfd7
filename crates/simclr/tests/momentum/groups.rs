//! `train.batch_norm_groups`: groups of a batch on one device, the leak, and the permutation of MoCo's keys.

use simclr::encoder::{BatchStatistics, Mode};

use super::*;

fn mode(groups: usize) -> Mode {
    Mode::Train(BatchStatistics { groups, ..BatchStatistics::default() })
}

fn views() -> Tensor {
    let batch = batches(0, 12, None).remove(0);
    DeviceBatch::on_host(batch, 3, Device::Cpu).views().unwrap()
}

/// Both views of images 0..3, 3..6, ... in passes of their own.
#[test]
fn groups_of_simclr_hold_both_views_of_an_image() {
    let config = config(&["task.objective=contrastive"]);
    let (method, views) = (method(&config), views());
    let (_, z) = method.embed(&views, 12, &mode(4)).unwrap();
    for group in 0..4 {
        let rows = |z: &Tensor| Tensor::cat(&[z.narrow(0, 3 * group, 3), z.narrow(0, 12 + 3 * group, 3)], 0);
        let (_, expected) = model(&config).forward(&rows(&views), &Mode::train()).unwrap();
        assert!(relative(&rows(&z), &expected) < 1e-5);
    }
}

/// Queries in contiguous groups; keys in groups of a permutation that changes with the step and is undone.
#[test]
fn moco_shuffles_the_images_of_its_keys() {
    for symmetric in ["moco.symmetric=false", "moco.symmetric=true"] {
        let config = config(&["train.batch_norm_groups=3", symmetric]);
        let (mut method, views) = (method(&config), views());
        let (_, before) = method.embed(&views, 12, &mode(3)).unwrap();
        let (_, by_norm) = method.embed(&views, 12, &mode(1)).unwrap();
        method.before_step(1);
        let (_, after) = method.embed(&views, 12, &mode(3)).unwrap();
        let split = |z: &Tensor| method.branches().split(z);
        assert_eq!(split(&before).0, split(&after).0, "queries are not permuted");
        assert!(relative(&split(&before).1, &split(&after).1) > 1e-3);
        assert!(relative(&split(&before).1, &split(&by_norm).1) > 1e-3);
        // With running statistics, rows do not depend on one another, so the permutation has no effect.
        let (_, eval) = method.embed(&views, 12, &Mode::Eval).unwrap();
        method.before_step(2);
        assert_eq!(method.embed(&views, 12, &Mode::Eval).unwrap().1, eval);
    }
}

/// The keys of a permutation by hand: row order[i] is encoded at place i.
#[test]
fn keys_are_those_of_the_permuted_groups() {
    let config = config(&["train.batch_norm_groups=3"]);
    let (mut method, views) = (method(&config), views());
    method.before_step(5);
    let (_, z) = method.embed(&views, 12, &mode(3)).unwrap();
    let order: Vec<i64> =
        Key::shuffle(0, 5).stream().permutation(12).into_iter().map(|row| row as i64).collect();
    for group in order.chunks(4) {
        let rows = |z: &Tensor| z.narrow(0, 12, 12).index_select(0, &Tensor::from_slice(group));
        let (_, expected) = model(&config).forward(&rows(&views), &Mode::train()).unwrap();
        assert!(relative(&rows(&z), &expected) < 1e-5);
    }
}

#[test]
fn training_in_groups_is_deterministic_and_differs_from_global_norm() {
    for set in
        [&["moco.shuffle=true"][..], &["task.objective=simclr-momentum"], &["task.objective=contrastive"]]
    {
        let grouped = config(&[set, &["train.batch_norm_groups=3"]].concat());
        let (a, b, whole) =
            (train(&grouped, None, 3), train(&grouped, None, 3), train(&config(set), None, 3));
        assert_eq!(furthest(&a.online(), &b.online()).0, 0.0);
        assert!(furthest(&a.online(), &whole.online()).0 > 1e-4, "{set:?}");
    }
}

/// One image in a group of its own kind: probes with equal pixels can be matched by the statistics of their group alone.
#[test]
fn groups_leak_pairs_and_the_permutation_prevents_it() {
    let accuracy = |set: &[&str]| {
        let mut config =
            config(&[set, &["train.batch=64", "train.batch_norm_groups=16", "moco.queue=128"]].concat());
        config.head.out = 128;
        config.encoder.width = 1.0;
        let method = method(&config);
        let probe = |id: usize| id.is_multiple_of(4);
        let ids: Vec<usize> = (0..64).collect();
        let mut whole = batch(0, Chunk::WHOLE, ChunkRows { first: ids.clone(), second: ids.clone() });
        let mut pixels = whole.pixels().to_vec();
        let image = 3 * SIZE * SIZE;
        let source = pixels[..image].to_vec();
        // Both views of an image are alike, and all probes are.
        for (row, view) in pixels.chunks_exact_mut(image).enumerate() {
            if probe(row % 64) {
                view.copy_from_slice(&source);
            }
        }
        let (first, second) = pixels.split_at_mut(64 * image);
        second.copy_from_slice(first);
        whole.views = pixels.into();
        let views = DeviceBatch::on_host(whole, 3, Device::Cpu).views().unwrap();
        let (_, z) = method.embed(&views, 64, &mode(16)).unwrap();
        let probes: Vec<i64> = (0..64).filter(|&id| probe(id)).map(|id| id as i64).collect();
        let (queries, keys) = (unit(&z.narrow(0, 0, 64)), unit(&z.narrow(0, 64, 64)));
        let rows = |z: &Tensor| z.index_select(0, &Tensor::from_slice(&probes));
        let nearest = rows(&queries).matmul(&rows(&keys).tr()).argmax(1, false);
        let own = Tensor::arange(16, (Kind::Int64, Device::Cpu));
        nearest.eq_tensor(&own).to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
    };
    assert_eq!(accuracy(&["task.objective=contrastive"]), 1.0, "both views share their group's statistics");
    assert_eq!(accuracy(&["moco.shuffle=false"]), 1.0, "a query and its key do, too");
    assert!(accuracy(&["moco.shuffle=true"]) < 0.4);
}
