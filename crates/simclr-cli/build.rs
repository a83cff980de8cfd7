//! Sets the library search path for libtorch: `$ORIGIN/../lib`, the layout of release archives, then the libtorch of the build.
//! With `SIMCLR_RELOCATABLE` (`setup/dist.sh`) no path of the build machine is recorded.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SIMCLR_RELOCATABLE");
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    let relocatable = std::env::var_os("SIMCLR_RELOCATABLE").is_some();
    if let Some(lib) = std::env::var("DEP_SIMCLR_SHIM_LIBTORCH_LIB").ok().filter(|_| !relocatable) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
