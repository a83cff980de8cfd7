#!/bin/sh
# Views per second on one core: ours against lightly's SimCLR transform, alternately, five times each.
# usage: PEER_PYTHON=python-with-lightly PEERS=folder-of-peer-scripts bench/views.sh [OUTPUT]
set -eu
cd "$(dirname "$0")/.."
: "${PEER_PYTHON:?set PEER_PYTHON to a python that has torch, torchvision and lightly}"
: "${PEERS:?set PEERS to the folder that holds the peer script views.py}"
out=${1:-bench/results/views.txt}
cargo build --release --locked -p simclr-data --example views_bench
mkdir -p "$(dirname "$out")"
{
    date -u '+%F %T UTC'; lscpu | grep 'Model name'
    for run in 1 2 3 4 5; do
        taskset -c 0 target/release/examples/views_bench
        taskset -c 0 "$PEER_PYTHON" "$PEERS/views.py"
    done
} | tee "$out"
