//! The only file that names a backend: which device, which precision, and host pixels to a tensor.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use simclr_shim::{Cuda, DeviceMemory};
use tch::{Device, Kind, Tensor};

use crate::ConfigError;

/// `train.device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceChoice {
    /// CUDA where `libtorch_cuda.so` lies beside libtorch and a GPU answers, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device, or an error.
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

/// Decides the device. Call once, at start: it loads the CUDA half of libtorch where there is one, and on the CPU has
/// large tensors kept (see [`simclr_shim::keep_memory`]). Of several GPUs, each process of a machine takes the one with its
/// own number there, `local_rank`.
///
/// # Errors
/// Says why CUDA is not to be had, where it was asked for.
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
        Cuda::Loaded => "a GPU, but none answers".to_owned(),
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

/// What became of the kernels of this process's GPU.
static KERNELS: OnceLock<Result<(), String>> = OnceLock::new();

/// Has the kernels compiled, once; where that fails all works by libtorch's own operations.
fn prepare_kernels(device: Device) {
    KERNELS.get_or_init(|| {
        let like = Tensor::zeros([1], (Kind::Float, device));
        simclr_shim::gpu::prepare(&like).map_err(|error| error.to_string())
    });
}

/// Whether the kernels of `simclr-shim` serve `device`.
pub fn has_kernels(device: Device) -> bool {
    simclr_shim::gpu::serves(&Tensor::empty([0], (Kind::Float, device)))
}

/// Why they do not.
pub fn why_no_kernels(device: Device) -> String {
    match KERNELS.get() {
        Some(Err(reason)) if device.is_cuda() => format!("no kernels for this GPU ({reason})"),
        _ if device.is_cuda() => "no kernels for this GPU".into(),
        _ => "the device is the CPU".into(),
    }
}

/// The line for people about the kernels of a GPU; none on the CPU, which has its own without compiling.
pub fn describe_kernels(device: Device) -> Option<String> {
    let told = || if has_kernels(device) { "compiled for this GPU".into() } else { why_no_kernels(device) };
    device.is_cuda().then(told)
}

/// Memory of the GPU `device`; none where libtorch does not tell.
pub fn gpu_memory(device: Device) -> Option<DeviceMemory> {
    simclr_shim::device_memory(&Tensor::empty([0], (Kind::Float, device))).ok()
}

/// Gives memory back that is kept on `device` and not in use. On a GPU the peak of [`gpu_memory`] starts again from the rest.
pub fn trim_memory(device: Device) {
    if device.is_cuda() {
        // Where libtorch does not do it, the peak is that of the whole process.
        let _ = simclr_shim::forget_device_peak(&Tensor::empty([0], (Kind::Float, device)));
    } else {
        simclr_shim::trim_memory();
    }
}

/// The CPU, with its memory kept. Where that fails all works, slower.
fn cpu() -> Device {
    let _ = simclr_shim::keep_memory();
    Device::Cpu
}

/// Decides the precision for `device`.
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
        // Ampere (2020) and later; the shim has no query for the compute capability, and older cards are past
        // what the CUDA 13 build of libtorch supports (Turing runs it slowly but rightly).
        return true;
    }
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// One line for people: processor or GPU model, libtorch's version, instructions and threads.
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

/// Model name, where the system tells it.
fn processor() -> Option<String> {
    let info = fs_err::read_to_string("/proc/cpuinfo").ok()?;
    Some(info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "))?.1.trim().to_owned())
}

/// Model name of the only GPU. With several, the driver's order need not be CUDA's, so none is named.
fn gpu() -> Option<String> {
    let mut found = fs_err::read_dir("/proc/driver/nvidia/gpus").ok()?;
    let (Some(Ok(only)), None) = (found.next(), found.next()) else { return None };
    let info = fs_err::read_to_string(only.path().join("information")).ok()?;
    Some(info.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned())
}

/// Host pixels `[B, C, S, S]` to a channels-last `f32` tensor on `device`.
///
/// # Panics
/// If `pixels` does not fill `shape`.
pub fn to_device(pixels: &[f32], shape: [i64; 4], device: Device) -> Tensor {
    channels_last(&pixels_to_device(pixels, shape, device))
}

/// Host pixels `[B, C, S, S]` to a tensor on `device`, laid out as they are; see [`simclr_shim::upload`].
///
/// # Panics
/// If `pixels` does not fill `shape`, or the device has no room.
pub fn pixels_to_device(pixels: &[f32], shape: [i64; 4], device: Device) -> Tensor {
    let there = simclr_shim::upload(pixels, device).unwrap_or_else(|error| panic!("{error}"));
    there.view(shape)
}

/// The same values stored with channels innermost, the layout in which convolutions are fast.
pub fn channels_last(images: &Tensor) -> Tensor {
    images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_keep_their_places_and_lie_channels_last() {
        let pixels: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| i as f32).collect();
        let images = to_device(&pixels, [2, 3, 4, 5], Device::Cpu);
        assert_eq!((images.size(), images.kind()), (vec![2, 3, 4, 5], Kind::Float));
        assert_eq!(images.stride(), [60, 1, 15, 3]);
        assert_eq!(Vec::<f32>::try_from(images.contiguous().view(-1)).unwrap(), pixels);
    }

    #[test]
    fn the_line_for_people_names_libtorch_and_its_threads() {
        let line = describe(Device::Cpu);
        let version = simclr_shim::libtorch_version();
        assert!(version.starts_with(|c: char| c.is_ascii_digit()) && line.contains(&version), "{line}");
        assert!(line.contains(&format!("{} threads", tch::get_num_threads())), "{line}");
    }

    #[test]
    fn named_precisions_are_kept() {
        assert_eq!(choose_precision(PrecisionChoice::F32, Device::Cpu), Precision::F32);
        assert_eq!(choose_precision(PrecisionChoice::Bf16, Device::Cpu), Precision::Bf16);
        let native = multiplies_bf16(Device::Cpu);
        assert_eq!(choose_precision(PrecisionChoice::Auto, Device::Cpu) == Precision::Bf16, native);
    }

    /// Where no GPU answers, `auto` falls back and `cuda` says what is missing; where one does, both take it.
    #[test]
    fn a_device_that_is_asked_for_is_had_or_missed_with_a_reason() {
        assert_eq!(choose_device(DeviceChoice::Cpu, 0).unwrap(), Device::Cpu);
        let auto = choose_device(DeviceChoice::Auto, 0).unwrap();
        match choose_device(DeviceChoice::Cuda, 0) {
            Ok(device) => assert_eq!(device, auto),
            Err(error) => {
                assert_eq!(auto, Device::Cpu);
                let said = error.to_string();
                assert!(said.starts_with("train.device = cuda: expected a"), "{said}");
            }
        }
    }
}
