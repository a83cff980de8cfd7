#!/bin/bash
# Kills a run that writes a checkpoint after every step at COUNT moments, uniform over its time, and resumes it each time; at the end the
# weights must equal those of a run without interruption, byte for byte.
# usage: bench/kills.sh DATA [COUNT]   (300)
set -eu
data=$(realpath "$1") count=${2:-300}
cd "$(dirname "$0")/.."
simclr=${SIMCLR:-target/release/simclr}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
settings=(--set encoder.name=conv-c3 encoder.width=0.25 train.image_size=16 train.batch=16 train.checkpoint_minutes=0 train.knn_every=0 train.threads=1 data.threads=1)
newest() { ls "$1"/checkpoints/step-*.safetensors 2>/dev/null | sort | tail -n 1; }
step() { basename "$(newest "$1")" .safetensors | sed 's/step-0*//'; }
pretrain() { "$simclr" pretrain --data "$data" --run "$work/$1" --epochs "$epochs" "${settings[@]}" --resume auto >"$work/log" 2>&1; }
# As many steps as COUNT interruptions of about half a second need.
images=$(find -L "$data" -type f | wc -l)
epochs=$((count * 120 * 16 / images + 1))
pretrain whole
RANDOM=1 kills=0
while [ "$kills" -lt "$count" ]; do
    before=$(step "$work/killed" 2>/dev/null || echo 0)
    pretrain killed & run=$!
    sleep "$(awk -v r=$RANDOM 'BEGIN { printf "%.3f", 0.15 + r / 32768 }')"
    if ! kill -KILL "$(pgrep -P "$run" || echo "$run")" 2>/dev/null; then wait "$run" || true; break; fi
    wait "$run" 2>/dev/null || true # the shell reports the kill
    kills=$((kills + 1))
    after=$(step "$work/killed" 2>/dev/null || echo 0)
    [ "${after:-0}" -ge "${before:-0}" ] || { echo "kill $kills: step $after after step $before"; exit 1; }
done
pretrain killed || { cat "$work/log"; exit 1; }
cmp "$(newest "$work/whole")" "$(newest "$work/killed")"
echo "$kills kills, $(step "$work/killed") steps: the weights equal those of the run without interruption"
