//! Views made by the kernels for GPUs, emulated: against the goldens of `simclr-data` (`reference/augment.py`), against the
//! loader's own pixels, and through whole steps.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../simclr-data/tests/golden/cases.rs"]
mod cases;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cases::{Case, goldens, picture, plain};
use proptest::prelude::*;
use simclr::{
    RunConfig,
    data::{
        AugmentConfig, Batch, Chunking, DataError, Dataset, DeferredView, DeferredViews, Image, Loader,
        LoaderConfig, Sample, ViewParams, ViewSpec,
        augment::{self, AugmentBuffers, Brightness, ColorModel, Crop, CropSampler, Cutout, Interpolation},
        dataset::Source,
        decode::Decoding,
        rng::Key,
    },
    device::{DeviceChoice, choose_device},
    train::{Observer, RunFolder, StepReport, pretrain},
    views::{AugmentDevice, AugmentDeviceChoice, choose_augment_device, upload, upload_deferred},
};
use simclr_shim::gpu::{Order, emulated};
use tch::Device;

/// Whether a GPU makes every view, too.
static ON_GPU: AtomicBool = AtomicBool::new(false);

#[test]
#[ignore = "needs a GPU"]
fn on_a_gpu_the_kernels_do_what_the_emulator_does() {
    assert!(choose_device(DeviceChoice::Cuda, 0).unwrap().is_cuda());
    ON_GPU.store(true, Ordering::Relaxed);
    crops_resize_as_pillow_does();
    every_operator_alone();
    a_whole_view();
    sizes_beyond_tables_and_tiles();
    without_antialiasing_views_are_those_of_the_cpu();
    a_square_is_cut_where_the_cpu_cuts_it();
}

/// Views of images, each its own, as planes `[C, S, S]` like the CPU's. Both orders of threads must give the same bits.
fn by_kernels(images: &[(&Image, ViewParams)], config: &AugmentConfig, size: usize) -> Vec<Vec<f32>> {
    let channels = images[0].0.channels;
    let (mut bytes, mut rows) = (Vec::new(), Vec::new());
    for (image, params) in images {
        let (at, width, height) = (bytes.len(), image.width, image.height);
        rows.push(DeferredView { at, width, height, params: params.clone() });
        bytes.extend_from_slice(&image.data);
    }
    let AugmentConfig { interpolation, antialias, color_model, .. } = *config;
    let method = ViewSpec { channels, size, interpolation, antialias, color_model, blurs: true };
    let recipes = DeferredViews { bytes: bytes.into(), rows, method };
    let [rising, falling] = [Order::Rising, Order::Falling].map(|order| {
        emulated(order, || {
            let views = upload_deferred(&recipes, Device::Cpu).unwrap().views().unwrap();
            let (c, s) = (channels as i64, size as i64);
            assert_eq!(
                (views.size(), views.stride()),
                (vec![images.len() as i64, c, s, s], vec![c * s * s, 1, c * s, c])
            );
            Vec::<f32>::try_from(views.contiguous().view(-1)).unwrap()
        })
    });
    assert_eq!(rising, falling, "the order of threads decides");
    if ON_GPU.load(Ordering::Relaxed) {
        let views = upload_deferred(&recipes, Device::Cuda(0)).unwrap().views().unwrap();
        let views = Vec::<f32>::try_from(views.to_device(Device::Cpu).contiguous().view(-1)).unwrap();
        // Compilers may round a product and a sum once or twice.
        assert!(furthest(&views, &rising) < 1e-5, "off by {}", furthest(&views, &rising));
    }
    rising.chunks(channels * size * size).map(<[f32]>::to_vec).collect()
}

fn by_kernel(image: &Image, params: &ViewParams, config: &AugmentConfig, size: usize) -> Vec<f32> {
    by_kernels(&[(image, params.clone())], config, size).remove(0)
}

fn by_loader(image: &Image, params: &ViewParams, config: &AugmentConfig, size: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; image.channels * size * size];
    augment::apply(image, params, config, size, &mut out, &mut AugmentBuffers::default());
    out
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |most, next| if next > most { next } else { most })
}

/// How the pixels of a row of `all` weigh in `size` pixels over `length` of them from `from` on: Pillow's `precompute_coeffs`,
/// in f64.
fn weights(from: usize, length: usize, all: usize, size: usize, how: Interpolation) -> Vec<Vec<f64>> {
    let scale = length as f64 / size as f64;
    let weight = |distance: f64| match (how, distance.abs() / scale.max(1.0)) {
        (Interpolation::Bilinear, x) => (1.0 - x).max(0.0),
        (Interpolation::Bicubic, x) if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        (Interpolation::Bicubic, x) if x < 2.0 => -0.5 * (((x - 5.0) * x + 8.0) * x - 4.0),
        _ => 0.0,
    };
    let row = |out: usize| {
        let centre = from as f64 + (out as f64 + 0.5) * scale;
        let raw: Vec<f64> = (0..all).map(|at| weight(at as f64 + 0.5 - centre)).collect();
        let sum: f64 = raw.iter().sum();
        raw.into_iter().map(|weight| weight / sum).collect()
    };
    (0..size).map(row).collect()
}

/// The resize in f64: down, cut to the range, across, cut.
fn exact(image: &Image, crop: Crop, how: Interpolation, size: usize) -> Vec<f32> {
    let (down, across) = (
        weights(crop.y, crop.height, image.height, size, how),
        weights(crop.x, crop.width, image.width, size, how),
    );
    let value = |channel: usize, y: usize, x: usize| {
        f64::from(image.data[(y * image.width + x) * image.channels + channel])
    };
    let mut out = Vec::new();
    for channel in 0..image.channels {
        for rows in &down {
            let line: Vec<f64> = (0..image.width)
                .map(|x| rows.iter().enumerate().map(|(y, share)| share * value(channel, y, x)).sum::<f64>())
                .map(|value| value.clamp(0.0, 255.0))
                .collect();
            out.extend(across.iter().map(|columns| {
                let sum: f64 = columns.iter().zip(&line).map(|(share, value)| share * value).sum();
                (sum.clamp(0.0, 255.0) / 255.0) as f32
            }));
        }
    }
    out
}

#[track_caller]
fn near(name: &str, found: &[f32], goldens: &HashMap<String, Vec<f32>>, tolerance: f32) {
    let worst = furthest(found, &goldens[name]);
    assert!(worst <= tolerance, "{name}: off by {worst}, allowed {tolerance}");
}

/// How far Pillow's bytes may be from exact values: half a level at its end, and half a level after its first direction, of
/// which the cubic's weights (5/4 in absolute value, together) make 5/8.
const ONE_LEVEL: f32 = 1.125 / 255.0;
/// Where nothing is resized.
const ROUNDING: f32 = 2e-6;

#[test]
fn crops_resize_as_pillow_does() {
    let goldens = goldens();
    for Case { name, image, params, config, size } in cases::resizes() {
        let view = by_kernel(&image, &params, &config, size);
        near(&name, &view, &goldens, ONE_LEVEL);
        let worst = furthest(&view, &exact(&image, params.crop, config.interpolation, size));
        assert!(worst <= ROUNDING, "{name}: off by {worst} from the formula");
    }
}

#[test]
fn every_operator_alone() {
    let goldens = goldens();
    for Case { name, image, params, config, size } in cases::operators() {
        near(&name, &by_kernel(&image, &params, &config, size), &goldens, ROUNDING);
    }
}

#[test]
fn a_whole_view() {
    let Case { name, image, params, config, size } = cases::whole_view();
    near(&name, &by_kernel(&image, &params, &config, size), &goldens(), 2.0 * ONE_LEVEL);
}

/// Any image: noise, which no resize takes kindly to.
fn noise(width: usize, height: usize, channels: usize, seed: u64) -> Image {
    let mut dice = Key { seed, epoch: 0, image: 0, view: 0 }.stream();
    let data = (0..width * height * channels).map(|_| dice.below(256) as u8).collect();
    Image::new(width, height, channels, data)
}

fn configuration() -> impl Strategy<Value = AugmentConfig> {
    let kinds = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (kinds, 0.0f32..2.0).prop_map(|((bilinear, torchvision, additive, sampler, antialias), color)| {
        AugmentConfig {
            antialias,
            interpolation: if bilinear { Interpolation::Bilinear } else { Interpolation::Bicubic },
            color_model: if torchvision { ColorModel::Torchvision } else { ColorModel::Tensorflow },
            brightness: if additive { Brightness::Additive } else { Brightness::Multiplicative },
            crop_sampler: if sampler { CropSampler::Torchvision } else { CropSampler::Tensorflow },
            color,
            solarize: 0.3,
            rotate: 0.5,
            cutout: 0.3,
            ..AugmentConfig::default()
        }
    })
}

/// Against bytes that the CPU rounds twice within its resize, by weights of few bits.
const TWICE_ROUNDED: f32 = 1.5 / 255.0;
/// The same operations in f32, in another order here and there.
const SAME: f32 = 1e-5;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Crop, flip and turns alone, of any size to any size: within one and a half levels.
    #[test]
    fn resizes_agree(config in configuration(), sizes in (1usize..90, 1usize..70), size in 8usize..50,
                     channels in prop::sample::select(vec![1usize, 2, 3, 4, 5]), seed in any::<u64>()) {
        let image = noise(sizes.0, sizes.1, channels, seed);
        let config = AugmentConfig { color: 0.0, gray: 0.0, blur: 0.0, solarize: 0.0, cutout: 0.0, ..config };
        let params = config.draw(Key { seed, epoch: 0, image: 1, view: 0 }, image.width, image.height);
        let (found, expected) = (by_kernel(&image, &params, &config, size), by_loader(&image, &params, &config, size));
        let worst = furthest(&found, &expected);
        prop_assert!(worst <= TWICE_ROUNDED, "off by {} levels: {:?}", worst * 255.0, params);
    }

    /// Everything but the resize: the same up to rounding, unless a threshold lies between.
    #[test]
    fn operators_agree(config in configuration(), size in 8usize..50,
                       channels in prop::sample::select(vec![1usize, 2, 3, 4, 5]), seed in any::<u64>()) {
        let image = noise(size, size, channels, seed);
        let config = AugmentConfig { crop: false, solarize: 0.0, ..config };
        let params = config.draw(Key { seed, epoch: 0, image: 1, view: 0 }, size, size);
        let (found, expected) = (by_kernel(&image, &params, &config, size), by_loader(&image, &params, &config, size));
        let worst = furthest(&found, &expected);
        prop_assert!(worst <= SAME, "off by {worst}: {params:?}");
    }

    /// All at once, so that each operator finds its place after the others: by the mean, as colour multiplies the resize's error.
    #[test]
    fn whole_views_agree(config in configuration(), sizes in (20usize..60, 20usize..60), size in 8usize..40,
                         seed in any::<u64>()) {
        let image = picture(sizes.0, sizes.1, 3);
        let config = AugmentConfig { solarize: 0.0, ..config };
        let params = config.draw(Key { seed, epoch: 0, image: 1, view: 0 }, image.width, image.height);
        let (found, expected) = (by_kernel(&image, &params, &config, size), by_loader(&image, &params, &config, size));
        let mean = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum::<f32>() / found.len() as f32;
        prop_assert!(mean <= TWICE_ROUNDED, "off by {} levels on average: {:?}", mean * 255.0, params);
    }
}

/// Weights that are not kept, images much larger and much smaller than the view, sides beyond a tile, many rows at once.
#[test]
fn sizes_beyond_tables_and_tiles() {
    let config = AugmentConfig::nothing();
    for (width, height, size) in [(700, 20, 9), (20, 700, 9), (3, 2, 70), (150, 90, 67)] {
        let image = noise(width, height, 3, 7);
        let params = ViewParams { quarter_turns: 3, flip: true, ..plain(&image) };
        let (found, expected) =
            (by_kernel(&image, &params, &config, size), by_loader(&image, &params, &config, size));
        let worst = furthest(&found, &expected);
        assert!(worst <= TWICE_ROUNDED, "{width}x{height} to {size}: off by {} levels", worst * 255.0);
    }
}

/// Without antialiasing nothing is rounded to bytes, so kernels and processors agree to rounding, whatever the sizes.
#[test]
fn without_antialiasing_views_are_those_of_the_cpu() {
    let noisy = AugmentConfig { antialias: false, solarize: 0.0, jitter: 0.7, ..AugmentConfig::default() };
    let soft = AugmentConfig { interpolation: Interpolation::Bilinear, ..noisy.clone() };
    for (at, (width, height, size)) in
        [(700, 20, 9), (20, 700, 9), (3, 2, 70), (150, 90, 67), (61, 47, 23), (40, 40, 40)]
            .into_iter()
            .enumerate()
    {
        for (config, channels) in [(&noisy, 3), (&soft, 3), (&noisy, 1), (&noisy, 5)] {
            let image = noise(width, height, channels, at as u64);
            for draw in 0..8 {
                let key = Key { seed: 5, epoch: 0, image: draw, view: 0 };
                let params = config.draw(key, width, height);
                let (found, expected) =
                    (by_kernel(&image, &params, config, size), by_loader(&image, &params, config, size));
                let worst = furthest(&found, &expected);
                assert!(
                    worst <= 2.0 * SAME,
                    "{width}x{height}x{channels} to {size}: off by {worst}, {params:?}"
                );
            }
        }
    }
}

/// A view depends on nothing but itself.
#[test]
fn neighbours_change_no_bit() {
    let config = AugmentConfig::default();
    let images: Vec<Image> = (0..5).map(|seed| noise(30 + seed, 40 - seed, 3, seed as u64)).collect();
    let draw = |at: usize| {
        config.draw(Key { seed: 3, epoch: 0, image: at as u64, view: 0 }, images[at].width, images[at].height)
    };
    let all: Vec<_> = images.iter().enumerate().map(|(at, image)| (image, draw(at))).collect();
    let together = by_kernels(&all, &config, 24);
    for (at, (image, params)) in all.iter().enumerate() {
        assert_eq!(by_kernel(image, params, &config, 24), together[at], "view {at}");
    }
}

#[test]
fn a_square_is_cut_where_the_cpu_cuts_it() {
    let image = picture(32, 32, 1);
    for (x, y) in [(0.5, 0.5), (0.01, 0.99)] {
        let params = ViewParams { cutout: Some(Cutout { x, y }), blur: Some(1.0), ..plain(&image) };
        let config = AugmentConfig::nothing();
        let (found, expected) =
            (by_kernel(&image, &params, &config, 32), by_loader(&image, &params, &config, 32));
        assert!(furthest(&found, &expected) <= ROUNDING);
    }
}

/// Random pixels, much larger than the views; image 5 fails.
struct Noise;

impl Source for Noise {
    fn decode(&self, index: usize, &Decoding { channels, .. }: &Decoding) -> Result<Image, DataError> {
        if index == 5 {
            return Err(DataError::Decode { name: index.to_string(), reason: "bad on purpose".into() });
        }
        Ok(noise(50 + 9 * (index % 4), 40 + 7 * (index % 3), channels, index as u64))
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        index as u64
    }
}

/// Nothing but crops and flips.
fn crops() -> AugmentConfig {
    AugmentConfig { crop: true, flip: 0.5, ..AugmentConfig::nothing() }
}

fn loader(augment: AugmentConfig) -> Loader {
    let samples = (0..12).map(|index| Sample { name: format!("{index:02}"), label: None }).collect();
    let dataset = Arc::new(Dataset::from_source(samples, Vec::new(), 3, Box::new(Noise)));
    let config =
        LoaderConfig { views: 2, batch: 6, size: 16, seed: 5, threads: 2, prefetch: 2, max_bad_share: 0.5 };
    Loader::new(dataset, augment, config).unwrap()
}

fn views_of(batch: &Batch, order: Order) -> Vec<f32> {
    let views = emulated(order, || {
        upload(&batch.views, batch.ids.len() + batch.second_view_ids.len(), (3, 16), Device::Cpu)
            .unwrap()
            .views()
            .unwrap()
    });
    Vec::<f32>::try_from(views.contiguous().view(-1)).unwrap()
}

/// Steps of two epochs, whole and in chunks made twice: the device's views are the loader's.
#[test]
fn a_stream_of_recipes_is_one_of_pixels() {
    let chunking = Chunking { images: 2, shuffle_views: true, passes: 2 };
    for chunked in [None, Some(chunking)] {
        let stream = |loader: Loader| {
            let loader = match chunked {
                Some(chunking) => loader.chunked(chunking),
                None => loader,
            };
            loader.batches(0, 4).unwrap().map(Result::unwrap).collect::<Vec<_>>()
        };
        let (pixels, recipes) = (stream(loader(crops())), stream(loader(crops()).deferred()));
        assert!(pixels.iter().any(|batch| !batch.failed.is_empty()));
        for (pixels, recipes) in pixels.iter().zip(&recipes) {
            let (expected, found) = (views_of(pixels, Order::Rising), views_of(recipes, Order::Rising));
            let worst = furthest(&found, &expected);
            assert!(worst <= TWICE_ROUNDED, "step {}: off by {} levels", pixels.step, worst * 255.0);
            assert_eq!(found, views_of(recipes, Order::Falling));
        }
    }
}

/// The kernels see no difference between an image and the rectangle of it that a batch holds.
#[test]
fn a_rectangle_changes_no_bit() {
    let config = AugmentConfig { crop_scale: [0.02, 0.3], ..AugmentConfig::default() };
    for interpolation in [Interpolation::Bicubic, Interpolation::Bilinear] {
        let config = AugmentConfig { interpolation, ..config.clone() };
        for batch in loader(config.clone()).deferred().batches(0, 2).unwrap().map(Result::unwrap) {
            let images: Vec<Image> = batch
                .ids
                .iter()
                .chain(&batch.second_view_ids)
                .map(|&id| Noise.decode(id, &3.into()).unwrap())
                .collect();
            let views =
                batch.ids.iter().map(|&id| (id, 0)).chain(batch.second_view_ids.iter().map(|&id| (id, 1)));
            let whole: Vec<_> = images
                .iter()
                .zip(views)
                .map(|(image, (id, view))| {
                    let key = Key { seed: 5, epoch: batch.epoch, image: id as u64, view };
                    (image, config.draw(key, image.width, image.height))
                })
                .collect();
            assert_eq!(by_kernels(&whole, &config, 16).concat(), views_of(&batch, Order::Rising));
        }
    }
}

/// What the device cannot do is done by the loader, or refused with the reason.
#[test]
fn a_place_that_is_asked_for_is_had_or_missed_with_a_reason() {
    let choose = |on, augment: &AugmentConfig| choose_augment_device(on, augment, (3, 32), Device::Cpu);
    let (plain, noisy) = (AugmentConfig::default(), AugmentConfig { noise: 0.1, ..AugmentConfig::default() });
    assert_eq!(choose(AugmentDeviceChoice::Auto, &plain).unwrap(), AugmentDevice::Cpu);
    let error = choose(AugmentDeviceChoice::Device, &plain).unwrap_err().to_string();
    assert_eq!(error, "data.augment_on = device: expected cpu or auto: the device is the CPU");
    emulated(Order::Rising, || {
        assert_eq!(
            choose(AugmentDeviceChoice::Auto, &plain).unwrap(),
            AugmentDevice::Cpu,
            "only a GPU takes them by itself"
        );
        assert_eq!(choose(AugmentDeviceChoice::Device, &plain).unwrap(), AugmentDevice::Device);
        assert_eq!(choose(AugmentDeviceChoice::Cpu, &plain).unwrap(), AugmentDevice::Cpu);
        let error = choose(AugmentDeviceChoice::Device, &noisy).unwrap_err().to_string();
        assert!(error.ends_with("augment.noise runs on the CPU only"), "{error}");
    });
}

/// Losses as a run reports them.
#[derive(Default)]
struct Losses(Vec<f64>);

impl Observer for Losses {
    fn step(&mut self, report: &StepReport) {
        self.0.push(report.loss);
    }
}

/// 16 images of noise.
fn image_folder(root: &Path) -> PathBuf {
    let data = root.join("images");
    fs_err::create_dir_all(&data).unwrap();
    for number in 0..16 {
        let pixels = noise(24, 20, 3, number).data.to_vec();
        let picture = image::RgbImage::from_raw(24, 20, pixels).unwrap();
        picture.save(data.join(format!("{number:02}.png"))).unwrap();
    }
    data
}

fn run_config(place: &str, chunk: usize) -> RunConfig {
    let overrides = [
        "encoder.name=conv-c3".into(),
        "encoder.width=0.25".into(),
        "head.hidden=16".into(),
        "head.out=16".into(),
        "train.image_size=16".into(),
        "train.batch=8".into(),
        "train.epochs=2".into(),
        "train.threads=1".into(),
        "train.precision=f32".into(),
        "train.device=cpu".into(),
        // Little happens in a step, so that what differs is the views.
        "optim.lr=0.001".into(),
        "loss.temperature=0.5".into(),
        format!("train.chunk={chunk}"),
        format!("data.augment_on={place}"),
    ];
    RunConfig::load(None, &overrides).unwrap()
}

/// Runs on an emulated device, one step if `stopped`; the losses, and where the plan says that views were made.
fn run(folder: &RunFolder, data: &Path, config: &RunConfig, stopped: bool) -> (Vec<f64>, String) {
    let mut losses = Losses::default();
    let stop = AtomicBool::new(stopped);
    emulated(Order::Falling, || pretrain(config, data, folder, &mut losses, &stop).unwrap());
    let plan = fs_err::read_to_string(folder.path().join("plan.json")).unwrap();
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    (losses.0, plan["augment_device"].as_str().unwrap().to_owned())
}

/// A run whose views the (emulated) device makes goes as one whose views the loader makes, up to the rounding of the resize.
#[test]
fn a_run_learns_the_same_from_either() {
    let folder = tempfile::tempdir().unwrap();
    let data = image_folder(folder.path());
    for chunk in [0, 4] {
        let [cpu, device] = ["cpu", "device"].map(|place| {
            let run_folder = RunFolder::create(&folder.path().join(format!("{place}{chunk}"))).unwrap();
            let (losses, made) = run(&run_folder, &data, &run_config(place, chunk), false);
            assert_eq!(made, place);
            losses
        });
        assert!(cpu.len() == 4 && device.len() == 4);
        for (cpu, device) in cpu.iter().zip(&device) {
            assert!((cpu / device - 1.0).abs() < 5e-3, "{cpu} and {device}");
        }
    }
}

/// A run goes on where its views were made; one that began with those of the loader, with those.
#[test]
fn a_resumed_run_keeps_its_views() {
    let folder = tempfile::tempdir().unwrap();
    let (data, config) = (image_folder(folder.path()), run_config("device", 0));
    for began in ["device", "cpu"] {
        let run_folder = RunFolder::create(&folder.path().join(began)).unwrap();
        run(&run_folder, &data, &config, true);
        let (path, mut checkpoint) = run_folder.newest_checkpoint().unwrap().0.unwrap();
        checkpoint.sections.get_mut("state").unwrap()["augment_device"] = began.into();
        checkpoint.save(&path).unwrap();
        let (losses, made) = run(&run_folder, &data, &config, false);
        assert_eq!((losses.len(), made.as_str()), (3, began));
    }
}
