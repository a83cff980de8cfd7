#!/bin/sh
# Compiles the GPU kernels for every architecture with CUDA's run-time compiler (NVRTC), without a GPU: tests without one run them
# compiled by the C++ compiler, which accepts more. Downloads NVRTC (90 MB, hash-pinned, once) to .cache/nvrtc; needs python3 with pip and cc.
set -eu
cd "$(dirname "$0")/.."
folder=$PWD/.cache/nvrtc
library=$folder/libcaffe2_nvrtc.so

# libtorch reaches NVRTC and the driver by one library. This one has no driver behind it: nothing is launched. NVRTC opens its other
# library by name, which succeeds because it is loaded already.
link() {
    for function in cuModuleLoadData cuModuleGetFunction cuLaunchKernel cuGetErrorString cuDeviceGetAttribute; do
        echo "int $function(void) { return 1; }"
    done >"$folder/driver.c"
    cc -shared -fPIC -o "$library.partial" "$folder/driver.c" -Wl,--no-as-needed "$1" "${1%/*}"/libnvrtc-builtins.so.13.* -Wl,-rpath,"${1%/*}"
    mv "$library.partial" "$library"
}

if [ ! -e "$library" ]; then
    mkdir -p "$folder"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --requirement setup/nvrtc.txt --dest "$folder"
    python3 -m zipfile -e "$folder"/*.whl "$folder"
    rm "$folder"/*.whl
    link "$(find "$folder" -name 'libnvrtc.so.13')"
fi
SIMCLR_NVRTC=$library "${CARGO:-cargo}" test --release --locked -p simclr-shim --test gpu -- --ignored nvrtc
