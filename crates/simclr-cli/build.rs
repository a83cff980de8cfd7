//! Sets the library search path for libtorch: `$ORIGIN/../lib` as in release archives, then the libtorch of the build.

fn main() {
    if let Ok(lib) = std::env::var("DEP_SIMCLR_SHIM_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
