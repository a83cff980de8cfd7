//! Information leak of batch norm over a part of the batch (paper section 2.2; MoCo, arXiv 1911.05722, section 3.3): shuffle BN and
//! statistics of the whole batch prevent it.
//!
//! Every group of the batch has one probe image and three other images. All views of all probes have equal pixels, so the two views of
//! a probe can be matched only by the batch-norm statistics of their group.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use simclr::{
    RunConfig,
    data::{Batch, Chunk, Chunking, chunking::ChunkRows, rng::Key},
    device::Precision,
    dist::{GradientBuckets, ProcessGroup},
    encoder::{BatchNormScope, MOMENTUM},
    exec::{DeviceBatch, NormConfig, StepContext, executor},
    losses::contrastive_loss,
    methods::{Method as _, SimClr},
    model::Model,
};
use tch::{Device, Kind, Tensor};

const GROUPS: usize = 16;
const GROUP: usize = 4;
const SIZE: usize = 16;

/// The first image of every group of four is its probe, the same for all groups. The others have a random colour and a little noise.
fn view(image: usize, view: u64) -> Vec<f32> {
    let probe = image.is_multiple_of(GROUP);
    let (image, view) = if probe { (u64::MAX - 7, 0) } else { (image as u64, view) };
    let mut stream = Key { seed: 1, epoch: 0, image, view }.stream();
    let color = [(); 3].map(|()| stream.unit());
    (0..3 * SIZE * SIZE).map(|index| 0.8 * color[index / (SIZE * SIZE)] + 0.2 * stream.unit()).collect()
}

/// The batch in chunks, each with the first views of one group.
fn chunks(scope: BatchNormScope) -> Vec<Batch> {
    let chunking =
        Chunking { images: GROUP, shuffle_views: scope == BatchNormScope::ChunkShuffled, passes: 1 };
    let ids: Vec<usize> = (0..GROUPS * GROUP).collect();
    let chunks = chunking.partition(&ids, 2, Key::chunking(1, 0, 0), 1);
    let batch = |(index, rows): (usize, ChunkRows)| {
        let views = |ids: &[usize], number| ids.iter().flat_map(|&id| view(id, number)).collect::<Vec<_>>();
        Batch {
            step: 0,
            epoch: 0,
            chunk: Chunk { index, count: GROUPS, pass: 0 },
            views: [views(&rows.first, 0), views(&rows.second, 1)].concat().into(),
            ids: rows.first,
            second_view_ids: rows.second,
            failed: Vec::new(),
        }
    };
    chunks.into_iter().enumerate().map(batch).collect()
}

/// Contrastive accuracy among the probes, for an untrained model.
fn probe_accuracy(scope: BatchNormScope) -> f64 {
    let overrides = ["encoder.name=conv-c3", "train.image_size=16"].map(str::to_owned);
    let config = RunConfig::load(None, &overrides).unwrap();
    let size = SIZE as i64;
    let model = Model::new(&config.encoder, &config.head, (3, size), 2, Device::Cpu, Precision::F32).unwrap();
    let method = SimClr::new(model, config.loss.clone());
    let group = ProcessGroup::alone();
    let gradients = GradientBuckets::new(method.params(), &group);
    let norm = NormConfig { scope, momentum: MOMENTUM, groups: 1 };
    let context = StepContext { method: &method, norm, group: &group, gradients: &gradients, seed: 1 };
    let mut chunks = chunks(scope).into_iter().map(|batch| Ok(DeviceBatch::on_host(batch, 3, Device::Cpu)));
    let output = executor(&context, Some(1), false).gradients(&context, 0, &mut chunks).unwrap();
    assert_eq!(output.ids, (0..GROUPS * GROUP).collect::<Vec<_>>(), "rows in the order of images");
    let first = Tensor::arange(GROUPS as i64, (Kind::Int64, Device::Cpu)) * GROUP as i64;
    let rows = Tensor::cat(&[&first, &(&first + (GROUPS * GROUP) as i64)], 0);
    contrastive_loss(&output.z.index_select(0, &rows), &config.loss).accuracy.double_value(&[])
}

#[test]
fn chunk_statistics_leak_pairs_shuffled_and_global_ones_do_not() {
    let [chunk, shuffled, global] =
        [BatchNormScope::Chunk, BatchNormScope::ChunkShuffled, BatchNormScope::Global].map(probe_accuracy);
    assert_eq!(chunk, 1.0, "probes are matched by the statistics of their groups");
    // Accuracy at chance is 1 / 16.
    assert!(shuffled < 0.25, "shuffled: accuracy {shuffled}");
    assert!(global < 0.25, "global: accuracy {global}");
}
