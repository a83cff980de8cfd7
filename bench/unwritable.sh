#!/bin/bash
# Trains COUNT times with a stdout or stderr that cannot be written, each in another way; every run must end with exit code 0 and the
# weights of a run with working streams, byte for byte.
# usage: bench/unwritable.sh DATA [COUNT]   (20)
set -eu
data=$(realpath "$1") count=${2:-20}
cd "$(dirname "$0")/.."
simclr=$(realpath "${SIMCLR:-target/release/simclr}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
settings=(--set encoder.name=conv-c3 encoder.width=0.25 train.image_size=16 train.batch=16 train.knn_every=0 train.threads=1 data.threads=1)
weights() { find "$1/checkpoints" -name 'step-*.safetensors' | sort | tail -n 1; }
pretrain() { "$simclr" pretrain --data "$data" --run "$work/$1" --epochs 2 "${settings[@]}"; }

pretrain whole >/dev/null 2>&1
for ((i = 0; i < count; i++)); do
    run=run-$i status=0
    case $((i % 5)) in
    0) kind="stderr closed"; pretrain "$run" >/dev/null 2>&- || status=$? ;;
    1) kind="both closed"; pretrain "$run" >&- 2>&- || status=$? ;;
    2) kind="disk full"; pretrain "$run" >/dev/full 2>/dev/full || status=$? ;;
    3) kind="reader leaves after $i lines"; { pretrain "$run" 2>&1 >/dev/null || echo "$?" >"$work/status"; } | head -n "$i" >/dev/null ;;
    4) kind="reader of both leaves at once"; { pretrain "$run" 2>&1 || echo "$?" >"$work/status"; } | true ;;
    esac
    [ ! -e "$work/status" ] || status=$(cat "$work/status")
    [ "$status" = 0 ] || { echo "$kind: exit code $status"; exit 1; }
    cmp "$(weights "$work/whole")" "$(weights "$work/$run")" || { echo "$kind: other weights"; exit 1; }
    rm -rf "${work:?}/$run"
done
echo "$count runs with unwritable streams: exit code 0, weights as with working streams"
