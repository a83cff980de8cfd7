#!/bin/bash
# A long run with images that cannot be decoded, a checkpoint every minute and online kNN; memory, threads and open files are sampled every
# ten seconds. Fails if one of them grows between the second and the last quarter of the time by more than 2 % (memory) or at all.
# usage: bench/soak.sh DATA [SECONDS]   (labelled images; 3600 seconds)
set -eu
data=$(realpath "$1") seconds=${2:-3600}
cd "$(dirname "$0")/.."
simclr=${SIMCLR:-target/release/simclr}
work=$(mktemp -d)
trap 'kill "$run" 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir -p "$work/images/damaged"
cp -rs "$data"/. "$work/images/"
for number in $(seq 50); do head -c 300 "/bin/sh" >"$work/images/damaged/$number.jpg"; done
"$simclr" pretrain --data "$work/images" --run "$work/run" --set encoder.name=conv-c3 train.batch=64 train.checkpoint_minutes=1 \
    train.knn_every=1 train.epochs=1000000 data.max_bad_share=0.5 >"$work/log" 2>&1 &
run=$!
began=$(date +%s)
while [ $(($(date +%s) - began)) -lt "$seconds" ]; do
    sleep 10
    kill -0 "$run" || { tail -n 5 "$work/log"; exit 1; }
    memory=$(awk '/^VmRSS/ {print $2}' "/proc/$run/status")
    threads=$(awk '/^Threads/ {print $2}' "/proc/$run/status")
    echo "$(($(date +%s) - began)) $memory $threads $(ls "/proc/$run/fd" | wc -l)" >>"$work/samples"
done
steps=$(tail -n 1 "$work/run/metrics.jsonl" | sed 's/.*"step":\([0-9]*\).*/\1/')
kill "$run"
code=0; wait "$run" || code=$?
[ "$code" = 143 ] || { echo "exit code $code, expected 143"; exit 1; }
awk -v all="$seconds" -v steps="$steps" '
    $1 > all / 4 && $1 <= all / 2 { early[1] += $2; n++; if ($3 > early[2]) early[2] = $3; if ($4 > early[3]) early[3] = $4 }
    $1 > all * 3 / 4 { late[1] += $2; m++; if ($3 > late[2]) late[2] = $3; if ($4 > late[3]) late[3] = $4 }
    END {
        early[1] /= n; late[1] /= m
        printf "%d s, %d steps: memory %.1f -> %.1f MiB, threads at most %d -> %d, open files at most %d -> %d (second -> last quarter)\n",
            all, steps, early[1] / 1024, late[1] / 1024, early[2], late[2], early[3], late[3]
        exit late[1] > 1.02 * early[1] || late[2] > early[2] || late[3] > early[3]
    }' "$work/samples"
