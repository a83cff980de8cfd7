//! What batch norm over a part of the batch gives away (spec 7; paper section 2.2; MoCo, arXiv 1911.05722, section 3.3).
//!
//! Here the two views of an image have nothing in common: each is a random colour of its own. So nothing in the pixels says
//! which views belong together, and a loss below that of guessing can come from batch norm alone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use simclr::{
    RunConfig,
    data::{Batch, Chunk, Chunking, DataError, rng::Key},
    device::Precision,
    encoder::NormOver,
    model::SimClr,
    objective::Objective,
    optim::Optimizer,
    train::large::{Chunks, LargeStep},
};
use tch::Device;

const IMAGES: usize = 32;
const GROUP: usize = 4;
const SIZE: usize = 8;
const STEPS: u64 = 200;

/// A view of one colour and a little noise, a function of (step, image, view).
fn view(step: u64, image: usize, view: u64) -> Vec<f32> {
    let mut dice = Key { seed: 1, epoch: step, image: image as u64, view }.stream();
    let color = [(); 3].map(|()| dice.unit());
    (0..3 * SIZE * SIZE).map(|at| 0.8 * color[at / (SIZE * SIZE)] + 0.2 * dice.unit()).collect()
}

fn chunks(step: u64, over: NormOver) -> Vec<Batch> {
    let chunking = Chunking { images: GROUP, apart: over == NormOver::ChunkShuffled, passes: 1 };
    let ids: Vec<usize> = (0..IMAGES).collect();
    let dealt = chunking.deal(&ids, 2, Key::dealing(1, 0, step));
    let count = dealt.len();
    let batch = |(index, dealt): (usize, simclr::data::chunking::Dealt)| {
        let views =
            |ids: &[usize], number| ids.iter().map(move |&id| view(step, id, number)).collect::<Vec<_>>();
        Batch {
            step,
            epoch: 0,
            chunk: Chunk { index, count, pass: 0 },
            pixels: [views(&dealt.first, 0), views(&dealt.second, 1)].concat().concat(),
            ids: dealt.first,
            second: dealt.second,
            bad: Vec::new(),
        }
    };
    dealt.into_iter().enumerate().map(batch).collect()
}

/// Mean loss of the last quarter of the steps. The views of a step are seen once, so it is that of unseen views.
fn loss_after_training(over: NormOver) -> f64 {
    let overrides = [
        "encoder.name=conv-c3",
        "encoder.width=0.5",
        "head.hidden=64",
        "head.out=32",
        "head.norm=hidden",
        "loss.temperature=0.2",
        "optim.kind=adamw",
        "train.image_size=8",
    ];
    let config = RunConfig::load(None, &overrides.map(str::to_owned)).unwrap();
    tch::set_num_threads(1);
    let model =
        SimClr::new(&config.encoder, &config.head, (3, SIZE as i64), 2, Device::Cpu, Precision::F32).unwrap();
    let mut optimizer = Optimizer::new(&config.optim, &model.params);
    let objective = Objective::Contrastive(config.loss);
    let large =
        LargeStep { model: &model, objective: &objective, over, passes: 1, shape: (3, SIZE), seed: 1 };
    let losses = (0..STEPS).map(|step| {
        let mut chunks = chunks(step, over).into_iter();
        let first = chunks.next().unwrap();
        let mut rest = chunks.map(Ok::<_, DataError>);
        large.run(&mut Chunks::new(first, &mut rest), &mut optimizer, 3e-3).unwrap().1.loss
    });
    let last = losses.skip((STEPS - STEPS / 4) as usize);
    last.sum::<f64>() / (STEPS / 4) as f64
}

/// One test, so that libtorch's generator draws the same first weights for all three.
#[test]
fn statistics_of_small_groups_leak_and_shuffled_or_global_ones_do_not() {
    let guessing = ((2 * IMAGES - 1) as f64).ln();
    // Who knows the group of four has to guess among its other views only.
    let knows_group = ((2 * GROUP - 1) as f64).ln();
    // Dealt apart, the partner is known not to be in the own group; no more can be had.
    let knows_other_groups = ((2 * (IMAGES - GROUP)) as f64).ln();
    let [leaky, shuffled, global] =
        [NormOver::Chunk, NormOver::ChunkShuffled, NormOver::Global].map(loss_after_training);
    println!(
        "guessing {guessing:.3}, group known {knows_group:.3}: chunk {leaky:.3}, shuffled {shuffled:.3}, global {global:.3}"
    );
    assert!(leaky < guessing - 0.3, "views are told by their group's statistics: {leaky} of {guessing}");
    assert!(shuffled > knows_other_groups - 0.05, "{shuffled} of {knows_other_groups}");
    assert!(global > guessing - 0.02, "{global} of {guessing}");
}
