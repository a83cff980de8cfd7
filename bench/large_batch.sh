#!/bin/sh
# Seconds per image and peak memory of one update of ResNet-18 at 32 px: plain at 128 images (256 views), and large batches
# in chunks with every kind of batch norm. One process per figure.
# usage: bench/large_batch.sh [OUTPUT]     about 15 minutes on 2 cores
#        CASES="4096:256:chunk" for others (IMAGES:CHUNK:OVER, IMAGES:: for a plain step), STEPS=3 for more steps
set -eu
cd "$(dirname "$0")/.."
out=${1:-bench/results/large_batch.txt}
[ -n "${NO_BUILD:-}" ] || cargo build --release --locked -p simclr --example large_batch_bench
mkdir -p "$(dirname "$out")"
{
    date -u '+%F %T UTC'; lscpu | grep 'Model name'; echo "load:$(uptime | sed 's/.*load average//')"
    for case in ${CASES:-128:: 512:128:chunk 512:128:global 1024:128:chunk 4096:128:chunk 4096:128:global 128::}; do
        images=${case%%:*} rest=${case#*:}
        chunk=${rest%%:*} over=${rest#*:}
        set -- "$images" --steps "${STEPS:-1}"
        [ -z "$chunk" ] || set -- "$@" --chunk "$chunk" --over "$over"
        target/release/examples/large_batch_bench "$@"
    done
} >"$out.partial"
mv "$out.partial" "$out"
cat "$out"
