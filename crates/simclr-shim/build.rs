//! Compiles the C++ files against the libtorch that torch-sys found (its `DEP_TCH_LIBTORCH_LIB`).

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src");
    let lib =
        PathBuf::from(std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's lib folder"));
    let include = lib.parent().expect("libtorch/lib has a parent").join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .files(["src/shim.cpp", "src/batch_norm.cpp", "src/gradient.cpp", "src/hooks.cpp"])
        .compile("simclr_shim");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display()); // for this crate's own tests
    println!("cargo:libtorch_lib={}", lib.display());
}
