//! The choice of the augmentation device, and whole runs on either.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use simclr::{
    RunConfig,
    data::{
        AugmentConfig,
        augment::{Policy, SecondView},
    },
    train::{Observer, RunFolder, StepReport, pretrain},
    views::{AugmentDevice, AugmentDeviceChoice, choose_augment_device},
};
use simclr_shim::gpu::{Order, emulated};
use tch::Device;

use crate::noise;

#[test]
fn augment_device_is_selected_or_the_error_explains_why() {
    let choose = |on, augment: &AugmentConfig| choose_augment_device(on, augment, (3, 32), Device::Cpu);
    let plain = AugmentConfig::default();
    let noisy = AugmentConfig { noise: 0.1, ..AugmentConfig::default() };
    assert_eq!(choose(AugmentDeviceChoice::Auto, &plain).unwrap(), AugmentDevice::Cpu);
    let error = choose(AugmentDeviceChoice::Device, &plain).unwrap_err().to_string();
    assert_eq!(error, "data.augment_on = device: expected cpu or auto: the device is the CPU");
    emulated(Order::Rising, || {
        assert_eq!(
            choose(AugmentDeviceChoice::Auto, &plain).unwrap(),
            AugmentDevice::Cpu,
            "auto selects the device only if it is a GPU"
        );
        assert_eq!(choose(AugmentDeviceChoice::Device, &plain).unwrap(), AugmentDevice::Device);
        assert_eq!(choose(AugmentDeviceChoice::Cpu, &plain).unwrap(), AugmentDevice::Cpu);
        let error = choose(AugmentDeviceChoice::Device, &noisy).unwrap_err().to_string();
        assert!(error.ends_with("augment.noise runs on the CPU only"), "{error}");
        let second_view = SecondView { policy: Some(Policy::AutoaugmentImagenet), ..SecondView::default() };
        let learned = AugmentConfig { second_view: Some(second_view), ..plain.clone() };
        let error = choose(AugmentDeviceChoice::Device, &learned).unwrap_err().to_string();
        assert!(error.ends_with("augment.policy runs on the CPU only"), "{error}");
        assert_eq!(choose(AugmentDeviceChoice::Auto, &learned).unwrap(), AugmentDevice::Cpu);
        let broader = AugmentConfig {
            sobel: 0.1,
            equalize: 0.1,
            motion_blur: 0.1,
            vertical_flip: 0.5,
            ..plain.clone()
        };
        assert_eq!(choose(AugmentDeviceChoice::Device, &broader).unwrap(), AugmentDevice::Device);
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
