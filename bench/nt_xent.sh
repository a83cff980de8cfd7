#!/bin/sh
# Time and memory of NT-Xent, loss and gradient, against batch: tile by tile (what trains) and as one [2N, 2N] matrix
# through autograd, where that fits. One process per figure.
# usage: bench/nt_xent.sh [OUTPUT]     about 4 minutes on 2 cores
#        SIZES="256 4096" MATRIX_SIZES="256 4096" for other batches, RUNS=5 for more runs
set -eu
cd "$(dirname "$0")/.."
out=${1:-bench/results/nt_xent.txt}
[ -n "${NO_BUILD:-}" ] || cargo build --release --locked -p simclr --example nt_xent_bench
mkdir -p "$(dirname "$out")"
{
    date -u '+%F %T UTC'; lscpu | grep 'Model name'; echo "load:$(uptime | sed 's/.*load average//')"
    for images in ${MATRIX_SIZES:-256 1024 4096 8192}; do
        target/release/examples/nt_xent_bench matrix "$images" --runs "${RUNS:-3}"
    done
    for images in ${SIZES:-256 1024 4096 8192 16384}; do
        target/release/examples/nt_xent_bench tiles "$images" --runs "${RUNS:-3}"
    done
    for images in ${ONCE:-32768 65536}; do
        target/release/examples/nt_xent_bench tiles "$images" --runs 1
    done
} >"$out.partial"
mv "$out.partial" "$out"
cat "$out"
