#!/bin/sh
# Seconds per SimCLR step: ours in bf16 against PyTorch, tuned (bf16, channels-last) and default (f32), alternately, so
# that whatever else the machine does falls on all three alike. Prints every figure, then the ratios of the medians.
# usage: PEER_PYTHON=python-with-torch PEERS=folder-of-peer-scripts bench/step.sh [OUTPUT]     about 6 minutes on 2 cores
#        ENCODER=resnet50 VIEWS=32 ROUNDS=3 for another network, batch or number of rounds
set -eu
cd "$(dirname "$0")/.."
: "${PEER_PYTHON:?set PEER_PYTHON to a python that has torch and torchvision}"
: "${PEERS:?set PEERS to the folder that holds the peer script step.py}"
out=${1:-bench/results/step.txt}
set -- --encoder "${ENCODER:-resnet18-cifar}" --views "${VIEWS:-256}"
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
export OMP_NUM_THREADS
cargo build --release --locked -p simclr --example step_bench
mkdir -p "$(dirname "$out")"
{
    date -u '+%F %T UTC'; lscpu | grep 'Model name'; echo "threads: $OMP_NUM_THREADS"; echo "load:$(uptime | sed 's/.*load average//')"
    for round in $(seq "${ROUNDS:-5}"); do
        target/release/examples/step_bench bf16 "$@"
        "$PEER_PYTHON" "$PEERS/step.py" tuned "$@"
        "$PEER_PYTHON" "$PEERS/step.py" default "$@"
    done
} >"$out.partial"

# The field before `s/step` is the median of one process; `$1` its kind.
median() {
    awk -v kind="$1" '$1 == kind { for (i = 2; i <= NF; i++) if ($i == "s/step") print $(i - 1) }' "$out.partial" | sort -n |
        awk '{ s[NR] = $1 } END { if (NR == 0) exit 1; print (s[int((NR + 1) / 2)] + s[int(NR / 2) + 1]) / 2 }'
}
ours=$(median ours-bf16) && tuned=$(median tuned) && default=$(median default)
awk -v o="$ours" -v t="$tuned" -v d="$default" 'BEGIN {
    printf "medians: ours-bf16 %.3f s, tuned %.3f s, default %.3f s\n", o, t, d
    printf "ours / tuned %.3f (bar: at most 1.05), ours / default %.3f (bar: below 0.5)\n", o / t, o / d
}' >>"$out.partial"
mv "$out.partial" "$out"
cat "$out"
