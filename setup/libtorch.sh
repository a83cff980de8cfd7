#!/bin/sh
# Assembles a CPU libtorch in ./libtorch from the wheels pinned in setup/libtorch.txt.
#
# PyTorch itself is not installed: the wheels are zip files, and only the C++ libraries and headers leave them.
# Resumable: a wheel already downloaded whole is kept, and ./libtorch appears by one rename at the end.
# Where LIBTORCH or LIBTORCH_USE_PYTORCH is set, the user has a libtorch and nothing is done.
set -eu
cd "$(dirname "$0")/.."

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

wheels=.cache/wheels
mkdir -p "$wheels"
echo "libtorch: fetching the pinned wheels (about 0.6 GB, once)"
# One wheel whatever the python: the C++ libraries in it do not depend on the interpreter.
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --python-version 3.11 --implementation cp --abi cp311 --abi none \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 \
    --platform manylinux_2_17_x86_64 --requirement setup/libtorch.txt --dest "$wheels"

python3 setup/unpack_libtorch.py "$wheels" libtorch.partial
cp setup/libtorch.txt libtorch.partial/pinned.txt
rm -rf libtorch
mv libtorch.partial libtorch
rm -rf "$wheels"
echo "libtorch: ready in ./libtorch"
