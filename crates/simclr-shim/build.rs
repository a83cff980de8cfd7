//! Compiles the C++ files against the libtorch that torch-sys found (its `DEP_TCH_LIBTORCH_LIB`).

use std::path::{Path, PathBuf};

fn main() {
    rerun_if_cpp_changed("src");
    rerun_if_cpp_changed("src/gpu");
    let lib =
        PathBuf::from(std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's lib folder"));
    let include = lib.parent().expect("libtorch/lib has a parent").join("include");
    glue(&include);
    kernels();
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display()); // for this crate's own tests
    println!("cargo:libtorch_lib={}", lib.display());
}

/// The Rust files of the same folder are left out: a change of theirs must not recompile the C++.
fn rerun_if_cpp_changed(folder: &str) {
    let entries = std::fs::read_dir(folder).expect("the crate has this folder");
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_file() && path.extension().is_some_and(|extension| extension != "rs") {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
}

fn glue(include: &Path) {
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .include("src/gloo_declarations")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // As libtorch is built: classes such as at::RecordFunction have other members without it.
        .define("NDEBUG", None)
        .files(
            [
                "shim",
                "batch_norm",
                "batch_norm_cpu",
                "batch_norm_gpu",
                "c10d",
                "convolution",
                "device_memory",
                "dispatch",
                "gpu/emulate",
                "gpu/launch",
                "gradient",
                "hooks",
                "max_pool",
                "memory",
                "nccl",
                "optimizer",
                "parallel",
                "profile",
                "stream",
                "upload",
                "views_gpu",
            ]
            .map(|name| format!("src/{name}.cpp")),
        )
        .compile("simclr_shim");
}

/// The inner loops, once per instruction set: name, compiler flags, SIMCLR_TILE. `baseline` is the target's (SSE2, NEON).
fn kernels() {
    let x86: &[(&str, &[&str], &str)] = &[
        ("avx2", &["-mavx2", "-mfma"], "2"),
        (
            "avx512",
            &["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
            "4",
        ),
    ];
    let is_x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let sets = [("baseline", &[][..], "1")].into_iter().chain(if is_x86 { x86 } else { &[] }.iter().copied());
    for (name, flags, tile) in sets {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .pic(true)
            .opt_level(3)
            .flags(flags)
            .flag("-ffp-contract=fast")
            .flag("-fno-math-errno");
        build.flag_if_supported("-Wno-psabi"); // vectors are passed between inlined functions only
        build.define("SIMCLR_KERNELS", format!("kernels_{name}").as_str());
        build.define("SIMCLR_INSTRUCTIONS", format!("\"{name}\"").as_str()).define("SIMCLR_TILE", tile);
        build.file("src/kernels.cpp").compile(&format!("simclr_kernels_{name}"));
    }
}
