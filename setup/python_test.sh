#!/bin/sh
# Runs python/tests from the sources with the program $1. numpy and Pillow are fetched into target/python once.
set -eu
program=$(realpath "$1")
cd "$(dirname "$0")/.."
packages=target/python

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || ! python3 -m pip --version >/dev/null 2>&1; then
    echo "python package: not tested, needs python3 of 3.9 or later with pip"
    exit 0
fi
[ -d "$packages/PIL" ] || python3 -m pip install --quiet --target "$packages" --only-binary :all: numpy pillow || {
    echo "python package: not tested, numpy and Pillow cannot be fetched"
    exit 0
}
PYTHONPATH=python/src:$packages SIMCLR_PROGRAM=$program python3 -m unittest discover -s python/tests
