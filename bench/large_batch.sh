#!/bin/sh
# What a large batch costs on one device: ResNet-18, 32 px, seconds per image and peak memory of the plain step at 128 images (256
# views), and of batches in chunks of 128 over `chunk` and `global` statistics. One process a figure, so that memory is its own.
# usage: bench/large_batch.sh [OUTPUT]     about 10 minutes on 2 cores;  BATCHES="1024 4096" GLOBAL="1024" for others
set -eu
cd "$(dirname "$0")/.."
out=${1:-bench/results/large_batch.txt}
cargo build --release --locked -p simclr --example large_batch_bench
bench=target/release/examples/large_batch_bench
{
    date -u '+%F %T UTC'; lscpu | grep 'Model name'; echo "cores: $(nproc)"
    "$bench" 128 --steps 7
    for batch in ${BATCHES:-512 1024 4096}; do "$bench" "$batch" --chunk 128 --over chunk; done
    for batch in ${GLOBAL:-512 1024}; do "$bench" "$batch" --chunk 128 --over global; done
    "$bench" 128 --steps 7
} | tee "$out.partial"
mv "$out.partial" "$out"
# The plain step runs first and last: the machine may have changed its pace meanwhile.
awk '/at once/ { for (i = 1; i <= NF; i++) if ($i == "ms/image,") { s += $(i - 1); n++ } }
     /chunks of/ { for (i = 1; i <= NF; i++) if ($i == "ms/image,") ours[$0] = $(i - 1) }
     END { for (line in ours) printf "%.2f x the plain step per image: %s\n", ours[line] / (s / n), line }' "$out" >"$out.ratios"
cat "$out.ratios" >>"$out" && rm "$out.ratios"
tail -n 8 "$out"
