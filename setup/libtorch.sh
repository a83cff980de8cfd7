#!/bin/sh
# Assembles a CPU libtorch in ./libtorch from the wheels pinned in setup/libtorch.txt.
#
# PyTorch itself is not installed: the wheels are zip files, and only the C++ libraries, headers and licences leave them.
# Resumable: a wheel already downloaded whole is kept, and ./libtorch appears by one rename at the end.
# Where LIBTORCH or LIBTORCH_USE_PYTORCH is set, the user has a libtorch and nothing is done.
#
# `setup/libtorch.sh licences DIR` copies the licences of the wheels to DIR; it fetches those that ./libtorch, made by an earlier version
# of this script, lacks.
set -eu
cd "$(dirname "$0")/.."
wheels=.cache/wheels

# Downloads the wheels of the requirement file $1 to $wheels. One wheel whatever the python: the C++ libraries in it do not depend on the
# interpreter.
fetch() {
    mkdir -p "$wheels"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --python-version 3.11 --implementation cp --abi cp311 --abi none \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 \
        --platform manylinux_2_17_x86_64 --requirement "$1" --dest "$wheels"
}

licences() {
    folder=${LIBTORCH:-libtorch}
    cp "$folder/LICENSE" "$1/libtorch.txt"
    for library in "$folder"/lib/libcudart.so* "$folder"/lib/libcupti.so*; do
        [ -e "$library" ] || continue
        case $library in *libcudart*) package=nvidia-cuda-runtime ;; *) package=nvidia-cuda-cupti ;; esac
        kept=$folder/LICENSE-$package
        if [ ! -e "$kept" ]; then
            kept=.cache/LICENSE-$package
            mkdir -p .cache
            if [ ! -e "$kept" ]; then
                grep "^$package==" setup/libtorch.txt >.cache/requirement.txt
                fetch .cache/requirement.txt
                python3 setup/unpack_libtorch.py --licences "$wheels" .cache
                rm -rf "$wheels" .cache/requirement.txt
            fi
        fi
        cp "$kept" "$1/$package.txt"
    done
}

if [ "${1:-}" = licences ]; then licences "$2"; exit 0; fi
if [ -n "${LIBTORCH_USE_PYTORCH:-}" ]; then echo "libtorch: the installed PyTorch's (LIBTORCH_USE_PYTORCH)"; exit 0; fi
if [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || { echo "error: LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so" >&2; exit 2; }
    echo "libtorch: $LIBTORCH (LIBTORCH)"; exit 0
fi
if cmp -s setup/libtorch.txt libtorch/pinned.txt; then exit 0; fi

if [ "$(uname -s)-$(uname -m)" != "Linux-x86_64" ]; then
    echo "error: the pinned libtorch is for Linux on x86-64, this is $(uname -s) on $(uname -m)" >&2
    echo "hint: install libtorch 2.11.0 or PyTorch 2.11.0, then set LIBTORCH=DIR or LIBTORCH_USE_PYTORCH=1" >&2
    exit 2
fi

echo "libtorch: fetching the pinned wheels (about 0.6 GB, once)"
fetch setup/libtorch.txt
python3 setup/unpack_libtorch.py "$wheels" libtorch.partial
cp setup/libtorch.txt libtorch.partial/pinned.txt
rm -rf libtorch
mv libtorch.partial libtorch
rm -rf "$wheels"
echo "libtorch: ready in ./libtorch"
