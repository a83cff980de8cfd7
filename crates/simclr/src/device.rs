//! Choice of device and precision, memory of the device, and copies of pixels to it.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use simclr_shim::{Cuda, DeviceMemory};
use tch::{Device, Kind, Tensor};

use crate::{ConfigError, ModelError};

/// `train.device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceChoice {
    /// CUDA if `libtorch_cuda.so` is next to libtorch and there is a GPU, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device, or an error.
    Cuda,
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_value(text.into()).map_err(|error| error.to_string())
    }
}

/// `train.precision` of convolutions, dense layers and the products of Muon. Master weights, batch-norm statistics and the loss are
/// always `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrecisionChoice {
    /// bf16 if the device multiplies it natively, else f32.
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
    /// The compute dtype.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// Number of GPUs that this process could use. Loads `libtorch_cuda` if present.
pub fn gpu_count() -> usize {
    simclr_shim::load_cuda();
    usize::try_from(tch::Cuda::device_count()).unwrap_or_default()
}

/// Chooses the device. Call once, at start: it loads `libtorch_cuda` if present and compiles the GPU kernels. Of several GPUs
/// each process takes number `local_rank`.
///
/// # Errors
/// CUDA was requested but is unavailable; the error explains why.
pub fn choose_device(choice: DeviceChoice, local_rank: usize) -> Result<Device, ConfigError> {
    if choice == DeviceChoice::Cpu {
        return Ok(cpu());
    }
    let cuda = simclr_shim::load_cuda();
    if tch::Cuda::is_available() {
        let device = Device::Cuda(local_rank % tch::Cuda::device_count().max(1) as usize);
        prepare_kernels(device);
        return Ok(device);
    }
    if choice == DeviceChoice::Auto {
        return Ok(cpu());
    }
    let reason = match cuda {
        Cuda::Loaded => "a GPU, but none is available".to_owned(),
        Cuda::NotThere => {
            format!(
                "a libtorch_cuda.so in `{}`, which is a CPU build",
                simclr_shim::libtorch_folder().display()
            )
        }
        Cuda::Failed(reason) => format!("a loadable libtorch_cuda.so ({reason})"),
    };
    Err(ConfigError::Value { key: "train.device".into(), value: "cuda".into(), expected: reason })
}

/// Outcome of compiling the kernels for this process's GPU.
static KERNELS: OnceLock<Result<(), String>> = OnceLock::new();

/// Compiles the kernels, once; on failure ATen operations are used.
fn prepare_kernels(device: Device) {
    KERNELS.get_or_init(|| {
        let like = Tensor::zeros([1], (Kind::Float, device));
        simclr_shim::gpu::prepare(&like).map_err(|error| error.to_string())
    });
}

/// Whether there are GPU kernels for `device`.
pub fn has_kernels(device: Device) -> bool {
    simclr_shim::gpu::kernels_available(&Tensor::empty([0], (Kind::Float, device)))
}

/// Why there are no GPU kernels for `device`.
pub fn why_no_kernels(device: Device) -> String {
    match KERNELS.get() {
        Some(Err(reason)) if device.is_cuda() => format!("no kernels for this GPU ({reason})"),
        _ if device.is_cuda() => "no kernels for this GPU".into(),
        _ => "the device is the CPU".into(),
    }
}

/// Human-readable state of the GPU kernels; `None` on the CPU.
pub fn describe_kernels(device: Device) -> Option<String> {
    let state = || if has_kernels(device) { "compiled for this GPU".into() } else { why_no_kernels(device) };
    device.is_cuda().then(state)
}

/// Memory of the GPU `device`; `None` on other devices.
pub fn gpu_memory(device: Device) -> Option<DeviceMemory> {
    simclr_shim::device_memory(&Tensor::empty([0], (Kind::Float, device))).ok()
}

/// Releases cached memory on `device`. On a GPU this resets the peak of [`gpu_memory`].
pub fn trim_memory(device: Device) {
    if device.is_cuda() {
        // If this fails, the peak is that of the whole process.
        let _ = simclr_shim::reset_device_peak(&Tensor::empty([0], (Kind::Float, device)));
    } else {
        simclr_shim::trim_memory();
    }
}

/// The CPU, with the caching allocator; without it training is slower.
fn cpu() -> Device {
    let _ = simclr_shim::cache_memory();
    Device::Cpu
}

/// Chooses the precision for `device`.
pub fn choose_precision(choice: PrecisionChoice, device: Device) -> Precision {
    match choice {
        PrecisionChoice::F32 => Precision::F32,
        PrecisionChoice::Bf16 => Precision::Bf16,
        PrecisionChoice::Auto if multiplies_bf16(device) => Precision::Bf16,
        PrecisionChoice::Auto => Precision::F32,
    }
}

/// Whether the device multiplies bf16 in hardware; elsewhere libtorch emulates it, slower than f32.
fn multiplies_bf16(device: Device) -> bool {
    if device.is_cuda() {
        // Ampere (2020) and later. The CUDA 13 build of libtorch supports no older GPUs but Turing, which emulates bf16.
        return true;
    }
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Human-readable description: processor or GPU model, libtorch's version, instruction set and threads.
pub fn describe(device: Device) -> String {
    let version = simclr_shim::libtorch_version();
    match device {
        Device::Cuda(index) => format!("CUDA device {index}{}, libtorch {version}", in_brackets(gpu())),
        Device::Cpu => {
            let (instructions, threads) = (simclr_shim::cpu_capability(), tch::get_num_threads());
            format!("CPU{}, libtorch {version} ({instructions}, {threads} threads)", in_brackets(processor()))
        }
        other => format!("{other:?}, libtorch {version}"),
    }
}

fn in_brackets(name: Option<String>) -> String {
    name.map(|name| format!(" ({name})")).unwrap_or_default()
}

/// Model name of the processor, if the system provides it.
fn processor() -> Option<String> {
    let info = fs_err::read_to_string("/proc/cpuinfo").ok()?;
    Some(info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "))?.1.trim().to_owned())
}

/// Model name of the only GPU; `None` with several, as the driver's order may differ from CUDA's.
fn gpu() -> Option<String> {
    let mut found = fs_err::read_dir("/proc/driver/nvidia/gpus").ok()?;
    let (Some(Ok(only)), None) = (found.next(), found.next()) else { return None };
    let info = fs_err::read_to_string(only.path().join("information")).ok()?;
    Some(info.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned())
}

/// Host pixels `[B, C, S, S]` to a channels-last `f32` tensor on `device`.
///
/// # Errors
/// See [`pixels_to_device`].
///
/// # Panics
/// If `pixels` does not fill `shape`.
pub fn to_device(pixels: &[f32], shape: [i64; 4], device: Device) -> Result<Tensor, ModelError> {
    Ok(channels_last(&pixels_to_device(pixels, shape, device)?))
}

/// Host pixels `[B, C, S, S]` to a contiguous tensor on `device`; see [`simclr_shim::upload`].
///
/// # Errors
/// Out of memory.
///
/// # Panics
/// If `pixels` does not fill `shape`.
pub fn pixels_to_device(pixels: &[f32], shape: [i64; 4], device: Device) -> Result<Tensor, ModelError> {
    Ok(simclr_shim::upload(pixels, device)?.view(shape))
}

/// The same values with channels innermost in memory, the fast layout of convolutions.
pub fn channels_last(images: &Tensor) -> Tensor {
    images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_device_preserves_values_in_channels_last_layout() {
        let pixels: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| i as f32).collect();
        let images = to_device(&pixels, [2, 3, 4, 5], Device::Cpu).unwrap();
        assert_eq!((images.size(), images.kind()), (vec![2, 3, 4, 5], Kind::Float));
        assert_eq!(images.stride(), [60, 1, 15, 3]);
        assert_eq!(Vec::<f32>::try_from(images.contiguous().view(-1)).unwrap(), pixels);
    }

    #[test]
    fn description_contains_libtorch_version_and_threads() {
        let line = describe(Device::Cpu);
        let version = simclr_shim::libtorch_version();
        assert!(version.starts_with(|c: char| c.is_ascii_digit()) && line.contains(&version), "{line}");
        assert!(line.contains(&format!("{} threads", tch::get_num_threads())), "{line}");
    }

    #[test]
    fn explicit_precisions_are_kept() {
        assert_eq!(choose_precision(PrecisionChoice::F32, Device::Cpu), Precision::F32);
        assert_eq!(choose_precision(PrecisionChoice::Bf16, Device::Cpu), Precision::Bf16);
        let native = multiplies_bf16(Device::Cpu);
        assert_eq!(choose_precision(PrecisionChoice::Auto, Device::Cpu) == Precision::Bf16, native);
    }

    /// Without a GPU, `auto` falls back to the CPU; with one, `auto` and `cuda` agree.
    #[test]
    fn cuda_is_selected_or_error_explains_why() {
        assert_eq!(choose_device(DeviceChoice::Cpu, 0).unwrap(), Device::Cpu);
        let auto = choose_device(DeviceChoice::Auto, 0).unwrap();
        match choose_device(DeviceChoice::Cuda, 0) {
            Ok(device) => assert_eq!(device, auto),
            Err(error) => {
                assert_eq!(auto, Device::Cpu);
                let message = error.to_string();
                assert!(message.starts_with("train.device = cuda: expected a"), "{message}");
            }
        }
    }
}
