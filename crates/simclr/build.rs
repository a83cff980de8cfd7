//! Lets tests and examples of this crate find the libtorch they were linked against.

fn main() {
    if let Ok(lib) = std::env::var("DEP_SIMCLR_SHIM_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
