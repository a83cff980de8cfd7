#!/bin/sh
# The figures that need a GPU, in one command, on a machine with one and a python that has torch 2.11 for CUDA, torchvision and
# lightly: training step and whole epochs against eager and compiled PyTorch, with the GPU's busy share. Our binaries may have
# been built elsewhere against a CPU libtorch of the same version: here they run on that python's libtorch, CUDA half included.
# usage: PEER_PYTHON=python PEERS=folder-of-peer-scripts bench/gpu.sh [SECTION ...]     about 25 minutes
# Not run so far: no GPU was at hand.
set -eu
cd "$(dirname "$0")/.."
: "${PEER_PYTHON:?set PEER_PYTHON to a python that has torch for CUDA, torchvision and lightly}"
lib=$("$PEER_PYTHON" -c 'import pathlib, torch; assert torch.cuda.is_available(), "no GPU answers"; print(pathlib.Path(torch.__file__).parent / "lib")')
# torch's own CUDA libraries lie in packages beside it.
LD_LIBRARY_PATH=$lib$(find "$lib/../../nvidia" -maxdepth 3 -type d -name lib -printf ':%p')${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH PEER_PYTHON
# NCCL with one rank: `cargo test --release --workspace --no-run` builds it, here or where the binaries come from.
for check in target/release/deps/nccl-*; do
    case $check in *.d) ;; *) [ ! -x "$check" ] || "$check" --ignored ;; esac
done
[ $# -gt 0 ] || set -- step epoch-resnet18 epoch-resnet50
nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used --format=csv -lms 500 >bench/results/gpu-busy.csv &
busy=$!
trap 'kill $busy' EXIT
"$PEER_PYTHON" bench/bench.py "$@" --out bench/results/gpu.json
awk -F'[ ,%]+' 'NR > 1 && $3 ~ /^[0-9]+$/ { s += $3; n++ } END { if (n) printf "GPU busy %.0f %% on average, start-up of processes included\n", s / n }' bench/results/gpu-busy.csv
