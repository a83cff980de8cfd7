//! Views of a batch on the device.
//!
//! A batch holds pixels of views augmented by the loader, or images and augmentation parameters, from which the kernels of
//! `simclr-shim` compute the views. Both give the same views, except that the kernels do not round to bytes within the resize.

use serde::{Deserialize, Serialize};
use simclr_data::{
    DeferredView, DeferredViews, Views,
    augment::{Affine, ColorModel, Interpolation, Jitter, MotionBlur, NoiseSeed, Operation, PolicyStep},
};
use simclr_shim::views::{
    self as kernels, Change, MAX_CHANGES, MAX_CHANNELS, MAX_SIDE, MAX_STEPS, Step, View, ViewOptions,
};
use tch::{Device, Tensor};

use crate::{
    ConfigError, ModelError,
    device::{channels_last, has_kernels, pixels_to_device, why_no_kernels},
};

/// `data.augment_on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AugmentDeviceChoice {
    /// The device if it is a GPU and its kernels support the views, else the CPU.
    #[default]
    Auto,
    /// The loader's threads.
    Cpu,
    /// The device; an error if its kernels do not support the views.
    Device,
}

/// Resolved `data.augment_on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AugmentDevice {
    /// The loader's threads.
    Cpu,
    /// Kernels of the device.
    Device,
}

/// Resolves `data.augment_on` for views `[.., channels, size, size]`.
///
/// # Errors
/// [`ConfigError::Value`] with the reason if `device` is configured but not supported.
pub fn choose_augment_device(
    choice: AugmentDeviceChoice,
    (channels, size): (usize, usize),
    device: Device,
) -> Result<AugmentDevice, ConfigError> {
    let obstacle = || (!has_kernels(device)).then(|| why_no_kernels(device));
    let obstacle = obstacle().or_else(|| unsupported_by_kernels(channels, size));
    match (choice, obstacle) {
        (AugmentDeviceChoice::Device, None) => Ok(AugmentDevice::Device),
        (AugmentDeviceChoice::Auto, None) if device.is_cuda() => Ok(AugmentDevice::Device),
        (AugmentDeviceChoice::Device, Some(reason)) => Err(ConfigError::Value {
            key: "data.augment_on".into(),
            value: "device".into(),
            expected: format!("cpu or auto: {reason}"),
        }),
        _ => Ok(AugmentDevice::Cpu),
    }
}

/// Why the kernels do not support views `[.., channels, size, size]`; `None` if they do.
pub fn unsupported_by_kernels(channels: usize, size: usize) -> Option<String> {
    if channels > MAX_CHANNELS {
        return Some(format!("kernels support up to {MAX_CHANNELS} channels, not {channels}"));
    }
    if size > MAX_SIDE {
        return Some(format!("kernels support views of up to {MAX_SIDE} pixels, not {size}"));
    }
    None
}

/// Views, or the inputs that they are computed from, in device memory.
#[derive(Debug)]
pub enum Uploaded {
    /// `[rows, C, S, S]`.
    Pixels(Tensor),
    /// Images and augmentation parameters.
    Deferred(kernels::KernelInputs, ViewOptions),
}

/// Copies `rows` views `[rows, channels, S, S]`, or the inputs that they are computed from, to `device`. Computes nothing there.
///
/// # Errors
/// No device memory; augmentation parameters out of range for their images.
pub fn upload(views: &Views, rows: usize, channels: usize, device: Device) -> Result<Uploaded, ModelError> {
    match views {
        Views::Pixels(pixels) => {
            let size = (pixels.len() / (rows * channels).max(1)).isqrt();
            let shape = [rows, channels, size, size].map(|side| side as i64);
            Ok(Uploaded::Pixels(pixels_to_device(pixels, shape, device)?))
        }
        Views::Deferred(deferred) => upload_deferred(deferred, device),
    }
}

/// [`upload`] of deferred views.
///
/// # Errors
/// As [`upload`].
pub fn upload_deferred(deferred: &DeferredViews, device: Device) -> Result<Uploaded, ModelError> {
    let method = deferred.method;
    let table: Vec<View> =
        deferred.rows.iter().map(|view| kernel_view(view, method.size, method.color_model)).collect();
    let inputs = kernels::KernelInputs::upload(&deferred.bytes, &table, method.channels, device)?;
    let options = ViewOptions {
        channels: method.channels,
        side: method.size,
        cubic: method.interpolation == Interpolation::Bicubic,
        antialias: method.antialias,
        gray_mean: method.color_model == ColorModel::Torchvision,
        policies: method.policies,
        blurs: method.blurs,
        filters: method.filters,
        noise: method.noise,
    };
    Ok(Uploaded::Deferred(inputs, options))
}

impl Uploaded {
    /// All tensors, for synchronisation between streams.
    pub fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Pixels(pixels) => vec![pixels],
            Self::Deferred(inputs, _) => inputs.tensors().into(),
        }
    }

    /// The views `[rows, C, S, S]`, `f32`, channels last.
    ///
    /// # Errors
    /// No device memory; a device without kernels.
    pub fn views(&self) -> Result<Tensor, ModelError> {
        match self {
            Self::Pixels(pixels) => Ok(channels_last(pixels)),
            Self::Deferred(inputs, options) => Ok(inputs.views(*options)?),
        }
    }
}

/// A view in the memory layout of the kernels.
fn kernel_view(view: &DeferredView, size: usize, model: ColorModel) -> View {
    let params = &view.params;
    let crop = params.crop;
    let jitter = params.jitter.iter().map(|&operation| kernel_change(operation, model));
    let changes: Vec<Change> = jitter.chain(params.gray.then(Change::gray)).collect();
    let mut change = [Change::default(); MAX_CHANGES];
    change.iter_mut().zip(&changes).for_each(|(slot, &change)| *slot = change);
    let mut step = [Step::default(); MAX_STEPS];
    step.iter_mut().zip(&params.policy).for_each(|(slot, &step)| *slot = kernel_step(step, size));
    let cut = params.cutout.map_or([0; 4], |centre| {
        let (columns, rows) = centre.covers(size);
        [columns.start, columns.end, rows.start, rows.end].map(|pixel| pixel as i32)
    });
    let seed = params.noise.map_or(0, |noise| noise.seed);
    let (right, down) = params.motion_blur.map_or((1.0, 0.0), MotionBlur::direction);
    View {
        at: view.at as i64,
        width: view.width as i32,
        height: view.height as i32,
        left: crop.x as i32,
        top: crop.y as i32,
        columns: crop.width as i32,
        rows: crop.height as i32,
        mirrored: params.flip.into(),
        flipped: params.vertical_flip.into(),
        turns: i32::from(params.quarter_turns % 4),
        steps: params.policy.len() as i32,
        step,
        sigma: params.blur.unwrap_or(0.0),
        length: params.motion_blur.map_or(0.0, |blur| blur.length),
        direction: [right as f32, down as f32],
        equalizes: params.equalize.into(),
        edges: params.sobel.into(),
        inverts: params.solarize.is_some().into(),
        threshold: params.solarize.unwrap_or(1.0),
        noise: params.noise.map_or(0.0, NoiseSeed::sigma),
        seed: [seed as u32, (seed >> 32) as u32],
        cut,
        changes: changes.len() as i32,
        change,
    }
}

fn kernel_change(operation: Jitter, model: ColorModel) -> Change {
    match (operation, model) {
        (Jitter::Brightness(factor), _) => Change::scale(factor),
        (Jitter::BrightnessShift(shift), _) => Change::shift(shift),
        (Jitter::Contrast(factor), _) => Change::contrast(factor),
        (Jitter::Saturation(factor), ColorModel::Tensorflow) => Change::saturation(factor),
        (Jitter::Saturation(factor), ColorModel::Torchvision) => Change::blend(factor),
        (Jitter::Hue(turns), _) => Change::hue(turns),
    }
}

/// `size`: side of the view in pixels.
fn kernel_step(step: PolicyStep, size: usize) -> Step {
    use Operation::{Rotate, ShearX, ShearY, TranslateX, TranslateY};
    let gather = |affine: Affine| Step::gather(affine.start, affine.across, affine.down);
    let PolicyStep { operation, magnitude } = step;
    match operation {
        ShearX | ShearY | TranslateX | TranslateY | Rotate => {
            step.affine(size).map(gather).unwrap_or_default()
        }
        Operation::Brightness => Step::brightness(1.0 + magnitude),
        Operation::Color => Step::color(1.0 + magnitude),
        Operation::Contrast => Step::contrast(1.0 + magnitude),
        Operation::Sharpness => Step::sharpness(1.0 + magnitude),
        Operation::Posterize => Step::posterize(magnitude),
        Operation::Solarize => Step::solarize(magnitude),
        Operation::AutoContrast => Step::auto_contrast(),
        Operation::Equalize => Step::equalize(),
        Operation::Invert => Step::solarize(0.0),
    }
}
