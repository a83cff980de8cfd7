//! The only file that names a backend: which device, which precision, and host pixels to a tensor.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// `train.device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceChoice {
    /// CUDA where `libtorch_cuda.so` lies beside libtorch and a GPU answers, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device, or an error.
    Cuda,
}

/// `train.precision`: what convolutions and dense layers compute in. Master weights, batch-norm statistics and the
/// loss are always `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrecisionChoice {
    /// bf16 where the device multiplies it natively, else f32.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// bfloat16 compute.
    Bf16,
}

/// Precision as run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Single precision.
    F32,
    /// bfloat16 compute with f32 master weights.
    Bf16,
}

impl Precision {
    /// The compute type.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// Decides the device. Call once, at start.
///
/// # Errors
/// Says why CUDA is not to be had, where it was asked for.
pub fn choose_device(choice: DeviceChoice) -> Result<Device, crate::ConfigError> {
    let _ = choice;
    todo!("helper model")
}

/// Decides the precision for `device`.
pub fn choose_precision(choice: PrecisionChoice, device: Device) -> Precision {
    let _ = (choice, device);
    todo!("helper model")
}

/// One line for people: processor or GPU model, libtorch version, threads.
pub fn describe(device: Device) -> String {
    let _ = device;
    todo!("helper model")
}

/// Host pixels `[B, C, S, S]` to a channels-last `f32` tensor on `device`.
pub fn to_device(pixels: &[f32], shape: [i64; 4], device: Device) -> Tensor {
    let _ = (pixels, shape, device);
    todo!("helper model")
}
