#!/bin/sh
# Does contrastive pretraining work here? CIFAR-10 (JPEG class folders), small encoder, 30 epochs, 3 seeds,
# crop + colour against crop alone and against the random-init encoder (the setting of 10,000 training images, 1,000 a class).
# usage: bench/cifar10.sh cifar10-jpeg.tar [OUTPUT.jsonl]     about 15 minutes on 2 cores
set -eu
cd "$(dirname "$0")/.."
archive=$1
out=${2:-bench/results/cifar10.jsonl}
data=datasets/cifar10-10k
simclr=target/release/simclr

if [ ! -d "$data/test" ]; then
    # The first 1,000 training and 500 test images of each class.
    rm -rf "$data.partial" && mkdir -p "$data.partial"
    tar -xf "$archive" -C "$data.partial" --wildcards '*train/*/0[0-9][0-9][0-9].jpg' '*test/*/0[0-4][0-9][0-9].jpg'
    inner=$(dirname "$(find "$data.partial" -type d -name train | head -n 1)")
    mv "$inner" "$data" && rm -rf "$data.partial"
fi
mkdir -p "$(dirname "$out")"
for seed in 0 1 2; do
    for recipe in cifar10_conv_c3 cifar10_conv_c3_crop_only; do
        run=runs/bench-$recipe-$seed
        rm -rf "$run"
        "$simclr" pretrain --config "configs/$recipe.toml" --data "$data" --run "$run" --seed "$seed"
        "$simclr" evaluate "$run" --data "$data" --json >>"$out"
    done
done
