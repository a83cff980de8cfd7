//! Lets the binary find libtorch: beside it (`$ORIGIN/../lib`, as a release archive lays it out), else where it
//! was built against.

fn main() {
    if let Ok(lib) = std::env::var("DEP_SIMCLR_SHIM_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
