//! Compilation of the GPU kernels, their self-test, streams and CUDA graphs. Their results are tested elsewhere, emulated.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use simclr_shim::{
    Cuda, ShimError,
    gpu::{LIBRARY, Order, compile, emulated, prepare, self_test},
    load_cuda, operations,
    stream::{CudaEvent, CudaGraph, StreamGuard},
    upload,
};
use tch::{Device, Kind, Tensor};

/// Needs NVRTC, but no GPU: `SIMCLR_NVRTC` is the path of a libcaffe2_nvrtc.so, by default the one next to libtorch.
#[test]
#[ignore = "needs a libtorch with CUDA"]
fn nvrtc_compiles_the_kernels_for_every_architecture() {
    let default = || simclr_shim::libtorch_folder().join(LIBRARY);
    let library = std::env::var_os("SIMCLR_NVRTC").map_or_else(default, PathBuf::from);
    for architecture in ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"] {
        let size = compile(&library, architecture).unwrap_or_else(|error| panic!("{architecture}: {error}"));
        assert!(size > 1000, "{architecture}: {size} bytes");
    }
    let error = compile(&library, "sm_1").unwrap_err().to_string();
    assert!(error.contains("NVRTC"), "{error}");
}

#[test]
fn emulated_kernels_pass_the_self_test() {
    let like = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    for order in [Order::Rising, Order::Falling] {
        emulated(order, || self_test(&like)).unwrap();
    }
}

/// `pin_memory` and `is_pinned` print deprecation warnings. The operations are the same without a GPU.
#[test]
fn upload_calls_neither_pin_memory_nor_is_pinned() {
    let (uploaded, operations) = operations(|| upload(&[1.0f32, 2.0], Device::Cuda(0))).unwrap();
    let deprecated = ["aten::pin_memory", "aten::_pin_memory", "aten::is_pinned"];
    let found: Vec<_> = operations.iter().filter(|name| deprecated.contains(&name.as_str())).collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(operations.iter().any(|name| name.starts_with("aten::empty")), "{operations:?}");
    if let Ok(uploaded) = uploaded {
        assert_eq!(Vec::<f32>::try_from(&uploaded.to_device(Device::Cpu)).unwrap(), [1.0, 2.0]);
    }
}

#[test]
fn error_contains_the_missing_library() {
    let error = compile("/nowhere/libcaffe2_nvrtc.so".as_ref(), "sm_90").unwrap_err().to_string();
    assert!(error.contains("/nowhere/libcaffe2_nvrtc.so"), "{error}");
    if !tch::Cuda::is_available() {
        prepare(&Tensor::zeros([1], (Kind::Float, Device::Cpu))).unwrap_err();
    }
}

/// Graph capture fails on the CPU.
#[test]
fn streams_and_events_are_no_ops_on_the_cpu() {
    load_cuda();
    let like = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    let stream = StreamGuard::new(&like).unwrap();
    let event = CudaEvent::new(&like).unwrap();
    std::thread::spawn(move || event.wait(&Tensor::zeros([1], (Kind::Float, Device::Cpu))).unwrap())
        .join()
        .unwrap();
    drop(stream);
    if tch::Cuda::is_available() {
        return;
    }
    let captured = CudaGraph::capture(|| Ok::<_, ShimError>(()));
    // Without libtorch_cuda the class is missing; with it, the driver.
    let error = captured.unwrap_err().to_string();
    assert!(error.contains("CUDA"), "{error}");
}

/// Capture executes nothing; each replay adds once.
#[test]
#[ignore = "needs a GPU"]
fn captured_graph_is_replayed() {
    assert_eq!(load_cuda(), Cuda::Loaded);
    let x = Tensor::zeros([1000], (Kind::Float, Device::Cuda(0)));
    let _stream = StreamGuard::new(&x).unwrap();
    let add = || Ok::<_, ShimError>(x.shallow_clone().g_add_scalar_(1.0));
    let _ = add().unwrap();
    let (graph, _) = CudaGraph::capture(add).unwrap();
    for _ in 0..3 {
        graph.replay().unwrap();
    }
    assert_eq!(x.sum(Kind::Double).double_value(&[]), 4000.0);
}
