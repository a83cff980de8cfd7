//! The views of a batch on the device: host memory goes there first, views are made of it there.
//!
//! A batch holds pixels, which the loader made, or recipes: images and dice, of which the kernels of `simclr-shim` make the
//! pixels. Both are the same views; those of the kernels are not rounded to bytes within the resize.

use serde::{Deserialize, Serialize};
use simclr_data::{
    AugmentConfig, DeferredView, DeferredViews, Views,
    augment::{ColorModel, Interpolation, Jitter},
};
use simclr_shim::views::{self as kernels, Change, MAX_CHANGES, MAX_CHANNELS, MAX_SIDE, View, ViewOptions};
use tch::{Device, Tensor};

use crate::{
    ConfigError, ModelError,
    device::{channels_last, has_kernels, pixels_to_device, why_no_kernels},
};

/// `data.augment_on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AugmentDeviceChoice {
    /// The device where it is a GPU that can, else the processors.
    #[default]
    Auto,
    /// The loader's threads.
    Cpu,
    /// The device, or an error.
    Device,
}

/// Where views are made, as run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AugmentDevice {
    /// The loader's threads.
    Cpu,
    /// The device, from recipes.
    Device,
}

/// Decides where the views `[.., channels, size, size]` are made.
///
/// # Errors
/// Says why the device does not make them, where that was asked for.
pub fn choose_augment_device(
    choice: AugmentDeviceChoice,
    augment: &AugmentConfig,
    (channels, size): (usize, usize),
    device: Device,
) -> Result<AugmentDevice, ConfigError> {
    let obstacle = || (!has_kernels(device)).then(|| why_no_kernels(device));
    let obstacle = obstacle().or_else(|| unsupported_by_kernels(augment, channels, size));
    match (choice, obstacle) {
        (AugmentDeviceChoice::Device, None) => Ok(AugmentDevice::Device),
        (AugmentDeviceChoice::Auto, None) if device.is_cuda() => Ok(AugmentDevice::Device),
        (AugmentDeviceChoice::Device, Some(why)) => Err(ConfigError::Value {
            key: "data.augment_on".into(),
            value: "device".into(),
            expected: format!("cpu or auto: {why}"),
        }),
        _ => Ok(AugmentDevice::Cpu),
    }
}

/// What of a configuration the kernels do not have.
pub fn unsupported_by_kernels(augment: &AugmentConfig, channels: usize, size: usize) -> Option<String> {
    let only = |what: &str| Some(format!("{what} runs on the CPU only"));
    match augment {
        _ if channels > MAX_CHANNELS => {
            Some(format!("kernels take up to {MAX_CHANNELS} channels, not {channels}"))
        }
        _ if size > MAX_SIDE => Some(format!("kernels make views of up to {MAX_SIDE} pixels, not {size}")),
        AugmentConfig { noise, .. } if *noise > 0.0 => only("augment.noise"),
        AugmentConfig { sobel, .. } if *sobel > 0.0 => only("augment.sobel"),
        _ => None,
    }
}

/// A batch in the device's memory.
#[derive(Debug)]
pub enum Uploaded {
    /// Planes `[rows, C, S, S]`.
    Pixels(Tensor),
    /// What the kernels take, and how they make views of it.
    Deferred(kernels::KernelInputs, ViewOptions),
}

/// Copies `rows` views `[rows, C, S, S]`, or the inputs that they are computed from, to `device`. Computes nothing there.
///
/// # Errors
/// No device memory; augmentation parameters that do not fit their images.
pub fn upload(
    views: &Views,
    rows: usize,
    (channels, size): (usize, usize),
    device: Device,
) -> Result<Uploaded, ModelError> {
    match views {
        Views::Pixels(pixels) => {
            let shape = [rows, channels, size, size].map(|side| side as i64);
            Ok(Uploaded::Pixels(pixels_to_device(pixels, shape, device)?))
        }
        Views::Deferred(deferred) => upload_deferred(deferred, device),
    }
}

/// [`upload`] of deferred views.
///
/// # Errors
/// See there.
pub fn upload_deferred(recipes: &DeferredViews, device: Device) -> Result<Uploaded, ModelError> {
    let method = recipes.method;
    let table: Vec<View> =
        recipes.rows.iter().map(|recipe| row(recipe, method.size, method.color_model)).collect();
    let uploaded = kernels::KernelInputs::upload(&recipes.bytes, &table, method.channels, device)?;
    let making = ViewOptions {
        channels: method.channels,
        side: method.size,
        cubic: method.interpolation == Interpolation::Bicubic,
        antialias: method.antialias,
        gray_mean: method.color_model == ColorModel::Torchvision,
        blurs: method.blurs,
    };
    Ok(Uploaded::Deferred(uploaded, making))
}

impl Uploaded {
    /// What lies on the device.
    pub fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Pixels(planes) => vec![planes],
            Self::Deferred(recipes, _) => recipes.tensors().into(),
        }
    }

    /// The views `[rows, C, S, S]`, `f32`, channels last.
    ///
    /// # Errors
    /// No memory, or a device without kernels.
    pub fn views(&self) -> Result<Tensor, ModelError> {
        match self {
            Self::Pixels(planes) => Ok(channels_last(planes)),
            Self::Deferred(recipes, making) => Ok(recipes.views(*making)?),
        }
    }
}

/// A view as the kernels read it.
fn row(recipe: &DeferredView, size: usize, model: ColorModel) -> View {
    let (params, crop) = (&recipe.params, recipe.params.crop);
    let jitter = params.jitter.iter().map(|&operation| change(operation, model));
    let changes: Vec<Change> = jitter.chain(params.gray.then(Change::gray)).collect();
    let mut change = [Change::default(); MAX_CHANGES];
    change.iter_mut().zip(&changes).for_each(|(slot, &change)| *slot = change);
    let cut = params.cutout.map_or([0; 4], |centre| {
        let (columns, rows) = centre.covers(size);
        [columns.start, columns.end, rows.start, rows.end].map(|at| at as i32)
    });
    View {
        at: recipe.at as i64,
        width: recipe.width as i32,
        height: recipe.height as i32,
        left: crop.x as i32,
        top: crop.y as i32,
        columns: crop.width as i32,
        rows: crop.height as i32,
        mirrored: params.flip.into(),
        turns: i32::from(params.quarter_turns % 4),
        sigma: params.blur.unwrap_or(0.0),
        inverts: params.solarize.is_some().into(),
        threshold: params.solarize.unwrap_or(1.0),
        cut,
        changes: changes.len() as i32,
        change,
    }
}

fn change(operation: Jitter, model: ColorModel) -> Change {
    match (operation, model) {
        (Jitter::Brightness(factor), _) => Change::scale(factor),
        (Jitter::BrightnessShift(shift), _) => Change::shift(shift),
        (Jitter::Contrast(factor), _) => Change::contrast(factor),
        (Jitter::Saturation(factor), ColorModel::Tensorflow) => Change::saturation(factor),
        (Jitter::Saturation(factor), ColorModel::Torchvision) => Change::blend(factor),
        (Jitter::Hue(turns), _) => Change::hue(turns),
    }
}
