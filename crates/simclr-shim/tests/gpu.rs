//! The kernels for GPUs under their own compiler. What they compute is tested elsewhere, emulated, beside what it must equal.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use simclr_shim::{
    Cuda, ShimError,
    gpu::{LIBRARY, Order, agree, compile, emulated, prepare},
    load_cuda, operations,
    stream::{CudaEvent, CudaGraph, StreamGuard},
    upload,
};
use tch::{Device, Kind, Tensor};

/// Needs NVRTC, but no GPU: `SIMCLR_NVRTC` names a libcaffe2_nvrtc.so, or libtorch lies beside one.
#[test]
#[ignore = "needs a libtorch with CUDA"]
fn nvrtc_takes_the_kernels_for_every_architecture() {
    let beside = || simclr_shim::libtorch_folder().join(LIBRARY);
    let library = std::env::var_os("SIMCLR_NVRTC").map_or_else(beside, PathBuf::from);
    for architecture in ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"] {
        let size = compile(&library, architecture).unwrap_or_else(|error| panic!("{architecture}: {error}"));
        assert!(size > 1000, "{architecture}: {size} bytes");
    }
    let error = compile(&library, "sm_1").unwrap_err().to_string();
    assert!(error.contains("NVRTC"), "{error}");
}

/// What is asked of kernels before they serve a GPU. They take steps here as there: in either order of threads.
#[test]
fn kernels_agree_with_libtorch() {
    let like = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    for order in [Order::Rising, Order::Falling] {
        emulated(order, || agree(&like)).unwrap();
    }
}

/// Both warn in every step when they are given a device. What happens without a GPU shows what is asked of libtorch with one.
#[test]
fn an_upload_calls_neither_pin_memory_nor_is_pinned() {
    let (uploaded, operations) = operations(|| upload(&[1.0f32, 2.0], Device::Cuda(0))).unwrap();
    let deprecated = ["aten::pin_memory", "aten::_pin_memory", "aten::is_pinned"];
    let found: Vec<_> = operations.iter().filter(|name| deprecated.contains(&name.as_str())).collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(operations.iter().any(|name| name.starts_with("aten::empty")), "{operations:?}");
    if let Ok(uploaded) = uploaded {
        assert_eq!(Vec::<f32>::try_from(&uploaded.to_device(Device::Cpu)).unwrap(), [1.0, 2.0]);
    }
}

/// Without CUDA's libraries the reason is told, and nothing is served.
#[test]
fn a_missing_library_is_named() {
    let error = compile("/nowhere/libcaffe2_nvrtc.so".as_ref(), "sm_90").unwrap_err().to_string();
    assert!(error.contains("/nowhere/libcaffe2_nvrtc.so"), "{error}");
    if !tch::Cuda::is_available() {
        prepare(&Tensor::zeros([1], (Kind::Float, Device::Cpu))).unwrap_err();
    }
}

/// On the CPU there is nothing to wait for, and nothing to record.
#[test]
fn streams_are_nothing_on_the_cpu() {
    load_cuda();
    let like = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    let own = StreamGuard::new(&like).unwrap();
    let mark = CudaEvent::new(&like).unwrap();
    std::thread::spawn(move || mark.wait(&Tensor::zeros([1], (Kind::Float, Device::Cpu))).unwrap())
        .join()
        .unwrap();
    drop(own);
    if tch::Cuda::is_available() {
        return;
    }
    let recorded = CudaGraph::capture(|| Ok::<_, ShimError>(()));
    // Without libtorch_cuda there is no such class; with it, no driver.
    let error = recorded.unwrap_err().to_string();
    assert!(error.contains("CUDA"), "{error}");
}

/// A recorded addition does nothing at first and then, replayed, adds again and again.
#[test]
#[ignore = "needs a GPU"]
fn a_recording_is_done_again() {
    assert_eq!(load_cuda(), Cuda::Loaded);
    let x = Tensor::zeros([1000], (Kind::Float, Device::Cuda(0)));
    let _own = StreamGuard::new(&x).unwrap();
    let add = || Ok::<_, ShimError>(x.shallow_clone().g_add_scalar_(1.0));
    let _ = add().unwrap();
    let (recording, _) = CudaGraph::capture(add).unwrap();
    for _ in 0..3 {
        recording.replay().unwrap();
    }
    assert_eq!(x.sum(Kind::Double).double_value(&[]), 4000.0);
}
