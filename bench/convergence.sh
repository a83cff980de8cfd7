#!/bin/sh
# Accuracy at equal time: the small CPU recipe with the paper's settings against the fast one, and the fast one without each of its
# levers. Choices are made on the validation split: `SPLIT=validation` evaluates on training images that are not trained on, `SPLIT=test`
# on the test part. Writes every run's figures and a summary. Cut off, it goes on where it was.
# usage: [MINUTES=10] [SEEDS="0 1 2 3 4"] [ARMS="paper fast"|all] [SPLIT=test] bench/convergence.sh cifar10-jpeg.tar [OUTPUT-FOLDER]
# With PYTHON (torch, torchvision) and REFERENCE=cifar_reference.py, the tuned PyTorch reference (ResNet-18 of a quarter of the width)
# trains on the same images for REFERENCE_EPOCHS (25 s each on 2 cores) as well.
set -eu
archive=$(realpath "$1")
cd "$(dirname "$0")/.."
minutes=${MINUTES:-10} seeds=${SEEDS:-0 1 2 3 4} arms=${ARMS:-paper fast} split=${SPLIT:-test}
out=${2:-bench/results/convergence}
simclr=${SIMCLR:-target/release/simclr}
. bench/cifar10_subset.sh
data=datasets/cifar10-1000
cifar10_subset "$archive" 1000 "$data"
evaluated=$data
if [ "$split" = validation ]; then
    # Images 1001 to 1500 of every class of the training part.
    evaluated=datasets/cifar10-1000-validation
    cifar10_subset "$archive" 1500 datasets/cifar10-1500
    if [ ! -d "$evaluated" ]; then
        mkdir -p "$evaluated.partial/test" && ln -s "$(realpath "$data/train")" "$evaluated.partial/train"
        for folder in datasets/cifar10-1500/train/*; do
            class=$evaluated.partial/test/${folder##*/}
            mkdir "$class"
            ls "$folder" | sort | tail -n +1001 | while read -r name; do ln "$folder/$name" "$class/$name"; done
        done
        mv "$evaluated.partial" "$evaluated"
    fi
fi
[ "$arms" = all ] && arms="paper fast fast-adamw fast-c3 fast-width fast-temperature fast-crop fast-sides fast-decay"

# What an arm changes in its recipe.
arm() {
    recipe=small_images_fast
    case $1 in
    paper) recipe=cifar10_conv_c3 sets="" ;;
    fast) sets="" ;;
    fast-adamw) sets="optim.kind=adamw optim.lr=3e-3 optim.weight_decay=1e-6" ;;
    fast-c3) sets="encoder.name=conv-c3" ;;
    fast-width) sets="encoder.width=1 train.batch=64" ;;
    fast-temperature) sets="loss.temperature=0.5" ;;
    fast-crop) sets="augment.crop_scale=[0.08,1.0] augment.gray=0.2" ;;
    fast-sides) sets="train.view_sizes=[[0.0,24],[0.75,32]]" ;;
    fast-decay) sets="optim.weight_decay=1e-6" ;;
    *) echo "error: no arm $1" >&2 && exit 2 ;;
    esac
}

mkdir -p "$out"
for seed in $seeds; do
    for name in $arms; do
        run=runs/convergence-$name-$minutes-$seed
        arm "$name"
        set --
        for set in $sets; do set -- "$@" --set "$set"; done
        if [ -e "$run/config.toml" ]; then
            "$simclr" pretrain --resume --run "$run"
        else
            "$simclr" pretrain --config "configs/$recipe.toml" --data "$data/train" --run "$run" --seed "$seed" \
                --set "train.minutes=$minutes" --set train.knn_every=0 "$@"
        fi
        "$simclr" evaluate "$run" --data "$evaluated" --set eval.knn_k=200 --set eval.label_fractions=1.0 \
            --set eval.random_inits=0 --json >"$out/$name-$minutes-$seed-$split.json"
    done
done
if [ -n "${REFERENCE:-}" ]; then
    DATA=$(realpath "$data") LIMIT=1000 WIDTH=16 "${PYTHON:-python3}" "$REFERENCE" train "${REFERENCE_EPOCHS:-24}" |
        tee "$out/reference.txt"
fi
python3 bench/convergence.py "$out" "$minutes" "$split" | tee "$out/summary-$minutes-$split.txt"
