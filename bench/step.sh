#!/bin/sh
# Seconds per SimCLR step: ours in bf16 against PyTorch, compiled (bf16, channels-last, torch.compile), tuned (the same,
# eager) and default (f32), alternately, so that whatever else the machine does falls on all alike. Prints every figure,
# then the ratios of the medians and of the peak memory.
# usage: PEER_PYTHON=python-with-torch PEERS=folder-of-peer-scripts bench/step.sh [OUTPUT]    about 10 minutes on 2 cores
#        ENCODER=resnet50 VIEWS=32 ROUNDS=3 RUNS=3 for another network, batch, number of rounds, steps per round;
#        ENCODER=conv-c3 brings its own peer script and needs no PEERS; KINDS="tuned" for fewer peers
set -eu
cd "$(dirname "$0")/.."
: "${PEER_PYTHON:?set PEER_PYTHON to a python that has torch and torchvision}"
encoder=${ENCODER:-resnet18-cifar}
if [ "$encoder" = conv-c3 ]; then
    peer=bench/step_conv_c3.py
else
    : "${PEERS:?set PEERS to the folder that holds the peer script step.py}"
    peer=$PEERS/step.py
fi
out=${1:-bench/results/step.txt}
kinds=${KINDS:-compiled tuned default}
set -- --encoder "$encoder" --views "${VIEWS:-256}" --runs "${RUNS:-5}"
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
export OMP_NUM_THREADS
cargo build --release --locked -p simclr --example step_bench
mkdir -p "$(dirname "$out")"
{
    date -u '+%F %T UTC'; lscpu | grep 'Model name'; echo "threads: $OMP_NUM_THREADS"; echo "load:$(uptime | sed 's/.*load average//')"
    for round in $(seq "${ROUNDS:-5}"); do
        target/release/examples/step_bench bf16 "$@"
        for kind in $kinds; do "$PEER_PYTHON" "$peer" "$kind" "$@"; done
    done
} >"$out.partial"

# `figure KIND BEFORE AFTER`: median over processes of the field that has the word BEFORE two fields ahead (`-` for any)
# and the word AFTER behind it.
figure() {
    awk -v kind="$1" -v before="$2" -v after="$3" '$1 == kind {
        for (i = 3; i < NF; i++) if ($(i + 1) == after && (before == "-" || $(i - 2) == before)) print $i
    }' "$out.partial" | sort -n | awk '{ s[NR] = $1 } END { if (NR == 0) exit 1; print (s[int((NR + 1) / 2)] + s[int(NR / 2) + 1]) / 2 }'
}
ours=$(figure ours-bf16 - s/step)
memory=$(figure ours-bf16 peak GiB)
for kind in $kinds; do
    seconds=$(figure "$kind" - s/step)
    gibibytes=$(figure "$kind" peak GiB)
    awk -v k="$kind" -v o="$ours" -v s="$seconds" -v m="$memory" -v g="$gibibytes" 'BEGIN {
        bar = k == "tuned" ? " (bars: at most 0.9 and 1)" : ""
        printf "ours / %s: %.4f s / %.4f s = %.3f, peak memory %.2f / %.2f GiB = %.2f%s\n", k, o, s, o / s, m, g, m / g, bar
    }'
done >"$out.ratios"
cat "$out.ratios" >>"$out.partial"
rm "$out.ratios"
mv "$out.partial" "$out"
cat "$out"
