//! The choice of the augmentation device, and whole runs on either.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use simclr::{
    RunConfig,
    data::augment::{Policy, SecondView},
    train::{Observer, RunFolder, StepReport, pretrain},
    views::{AugmentDevice, AugmentDeviceChoice, choose_augment_device},
};
use simclr_shim::gpu::{Order, emulated};
use tch::Device;

use crate::noise;

#[test]
fn augment_device_is_selected_or_the_error_explains_why() {
    let choose = |on, shape| choose_augment_device(on, shape, Device::Cpu);
    let shape = (3, 32);
    assert_eq!(choose(AugmentDeviceChoice::Auto, shape).unwrap(), AugmentDevice::Cpu);
    let error = choose(AugmentDeviceChoice::Device, shape).unwrap_err().to_string();
    assert_eq!(error, "data.augment_on = device: expected cpu or auto: the device is the CPU");
    emulated(Order::Rising, || {
        assert_eq!(
            choose(AugmentDeviceChoice::Auto, shape).unwrap(),
            AugmentDevice::Cpu,
            "auto selects the device only if it is a GPU"
        );
        assert_eq!(choose(AugmentDeviceChoice::Device, shape).unwrap(), AugmentDevice::Device);
        assert_eq!(choose(AugmentDeviceChoice::Cpu, shape).unwrap(), AugmentDevice::Cpu);
        for (shape, reason) in [
            ((17, 32), "kernels support up to 16 channels, not 17"),
            ((3, 2049), "kernels support views of up to 2048 pixels, not 2049"),
        ] {
            let error = choose(AugmentDeviceChoice::Device, shape).unwrap_err().to_string();
            assert!(error.ends_with(reason), "{error}");
            assert_eq!(choose(AugmentDeviceChoice::Auto, shape).unwrap(), AugmentDevice::Cpu);
        }
    });
}

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
        // Small steps, so that losses differ by the views only.
        "optim.lr=0.001".into(),
        "loss.temperature=0.5".into(),
        format!("train.chunk={chunk}"),
        format!("data.augment_on={place}"),
    ];
    RunConfig::load(None, &overrides).unwrap()
}

/// Runs on an emulated device, for one step if `stopped`. Returns the losses and the augmentation device of the plan.
fn run(folder: &RunFolder, data: &Path, config: &RunConfig, stopped: bool) -> (Vec<f64>, String) {
    let mut losses = Losses::default();
    let stop = AtomicBool::new(stopped);
    emulated(Order::Falling, || pretrain(config, data, folder, &mut losses, &stop).unwrap());
    let plan = fs_err::read_to_string(folder.path().join("plan.json")).unwrap();
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    (losses.0, plan["augment_device"].as_str().unwrap().to_owned())
}

/// Equal up to the rounding of the resize.
#[test]
fn losses_do_not_depend_on_the_augment_device() {
    let folder = tempfile::tempdir().unwrap();
    let data = image_folder(folder.path());
    for chunk in [0, 4] {
        let [cpu, device] = ["cpu", "device"].map(|place| {
            let run_folder = RunFolder::create(&folder.path().join(format!("{place}{chunk}"))).unwrap();
            let (losses, device) = run(&run_folder, &data, &run_config(place, chunk), false);
            assert_eq!(device, place);
            losses
        });
        assert!(cpu.len() == 4 && device.len() == 4);
        for (cpu, device) in cpu.iter().zip(&device) {
            assert!((cpu / device - 1.0).abs() < 5e-3, "{cpu} and {device}");
        }
    }
}

/// AutoAugment and noise, of the second view only; resizing between them and the images rounds differently, and they amplify that.
#[test]
fn a_run_with_a_policy_and_noise_augments_on_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let data = image_folder(folder.path());
    let [cpu, device] = ["cpu", "device"].map(|place| {
        let mut config = run_config(place, 0);
        let learned = SecondView {
            policy: Some(Policy::AutoaugmentCifar10),
            noise: Some(1.0),
            ..SecondView::default()
        };
        config.augment.second_view = Some(learned);
        let run_folder = RunFolder::create(&folder.path().join(place)).unwrap();
        let (losses, device) = run(&run_folder, &data, &config, false);
        assert_eq!(device, place);
        losses
    });
    assert!(cpu.len() == 4 && device.len() == 4);
    for (cpu, device) in cpu.iter().zip(&device) {
        assert!((cpu / device - 1.0).abs() < 2e-2, "{cpu} and {device}");
    }
}

#[test]
fn a_resumed_run_keeps_its_augment_device() {
    let folder = tempfile::tempdir().unwrap();
    let data = image_folder(folder.path());
    let config = run_config("device", 0);
    for original in ["device", "cpu"] {
        let run_folder = RunFolder::create(&folder.path().join(original)).unwrap();
        run(&run_folder, &data, &config, true);
        let mut checkpoint = run_folder.newest_checkpoint().unwrap().0.unwrap();
        checkpoint.sections.get_mut("state").unwrap()["augment_device"] = original.into();
        checkpoint.save(&checkpoint.path).unwrap();
        let (losses, device) = run(&run_folder, &data, &config, false);
        assert_eq!((losses.len(), device.as_str()), (3, original));
    }
}
