#!/bin/sh
# Does contrastive pretraining work here? CIFAR-10 as JPEG class folders, small encoder, 30 epochs, 3 seeds: crop + colour
# against crop alone and against the random-init encoder. PER_CLASS=1000 (default) is the setting of the scaled-down study
# (10,000 training images), PER_CLASS=5000 the whole set. Writes every run's results.json and a summary. Cut off, it goes on where it was; `rm -r runs/bench-*` starts anew.
# usage: [PER_CLASS=1000] bench/cifar10.sh cifar10-jpeg.tar [OUTPUT-FOLDER]    on 2 cores: see the summary
set -eu
archive=$(realpath "$1")
cd "$(dirname "$0")/.."
per_class=${PER_CLASS:-1000}
out=${2:-bench/results/cifar10-$per_class}
data=datasets/cifar10-$per_class
simclr=${SIMCLR:-target/release/simclr}

. bench/cifar10_subset.sh
cifar10_subset "$archive" "$per_class" "$data"

mkdir -p "$out"
started=$(date +%s)
for seed in 0 1 2; do
    for recipe in cifar10_conv_c3 cifar10_conv_c3_crop_only; do
        run=runs/bench-$recipe-$per_class-$seed
        if [ -d "$run" ]; then # cut off before: it goes on, to the same weights
            "$simclr" pretrain --resume --run "$run"
        else
            "$simclr" pretrain --config "configs/$recipe.toml" --data "$data" --run "$run" --seed "$seed"
        fi
        "$simclr" evaluate "$run" --data "$data" >"$out/$recipe-$seed.txt"
        cp "$run/results.json" "$out/$recipe-$seed.json"
    done
done

# The last column of a row is the linear classifier with all labels.
mean() {
    for seed in 0 1 2; do awk -v row="$2" 'index($0, row) == 1 { print $NF }' "$out/$1-$seed.txt"; done |
        awk '{ s += $1; q += $1 * $1; all = all " " $1 } END { m = s / NR; printf "%.1f (%d seeds:%s)", m, NR, all }'
}
{
    date -u '+%F %T UTC'
    lscpu | grep 'Model name'
    echo "command: PER_CLASS=$per_class bench/cifar10.sh, $(($(date +%s) - started)) s on $(nproc) cores"
    echo "linear classifier, all labels, test accuracy in %"
    echo "crop + colour   $(mean cifar10_conv_c3 'trained h')"
    echo "crop alone      $(mean cifar10_conv_c3_crop_only 'trained h')"
    echo "random-init     $(mean cifar10_conv_c3 'random-init h')"
    echo "raw pixels      $(mean cifar10_conv_c3 'raw pixels')"
    echo "bars: crop + colour at least 8 above random-init and 5 above crop alone"
} | tee "$out/summary.txt"
