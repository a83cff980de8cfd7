#!/bin/sh
# The whole line on Fashion-MNIST: views, pretraining, evaluation, export. Called by `make demo`.
set -eu
cd "$(dirname "$0")/.."
simclr=target/release/simclr
data=datasets/fashion-mnist
run=runs/demo

rm -rf "$run"
"$simclr" pretrain --config configs/fashion_mnist.toml --data "$data" --run "$run"
"$simclr" views --data "$data" --config configs/fashion_mnist.toml --out "$run/views.png"
"$simclr" evaluate "$run" --data "$data"
"$simclr" export "$run" --out "$run/encoder.safetensors"

cat <<END

run folder   $run  (config.toml, plan.json, metrics.jsonl, TensorBoard events, checkpoints, results.json)
pictures     $run/views.png  (originals and what the augmentation makes of them)
encoder      $run/encoder.safetensors  (torchvision-style names, input normalisation in the metadata)
END
