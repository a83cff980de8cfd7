#!/bin/sh
# What needs a GPU, in one command, on a machine with one and a python that has torch 2.11 for CUDA, torchvision and lightly: first
# the tests that are ignored elsewhere (kernels, recorded steps, NCCL with one rank), then training steps and whole epochs against
# eager and compiled PyTorch, with the GPU's busy share. Our binaries may have been built elsewhere against a CPU libtorch of the
# same version: here they run on that python's libtorch, CUDA half included.
# usage: PEER_PYTHON=python PEERS=folder-of-peer-scripts bench/gpu.sh [SECTION ...]     about 12 minutes, 2 rounds
# Sections: tests, account (where the time of a step goes), and those of bench.py; all by default. Steps alone, about 6 minutes (estimated):
#   ROUNDS=1 bench/gpu.sh account gpu-step-resnet18 gpu-step-resnet50
# before, here or where the binaries come from: cargo build --release --workspace --examples && cargo test --release --workspace --no-run
# Figures of a run by hand on one H100: bench/results/gpu-h100.txt.
set -eu
cd "$(dirname "$0")/.."
: "${PEER_PYTHON:?set PEER_PYTHON to a python that has torch for CUDA, torchvision and lightly}"
lib=$("$PEER_PYTHON" -c 'import pathlib, torch; assert torch.cuda.is_available(), "no GPU answers"; print(pathlib.Path(torch.__file__).parent / "lib")')
# torch's own CUDA libraries lie in packages next to it.
LD_LIBRARY_PATH=$lib$(find "$lib/../../nvidia" -maxdepth 3 -type d -name lib -printf ':%p')${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH PEER_PYTHON

run_tests() {
    for suite in gpu batch_norm nccl golden_optim recorded device_views; do
        for check in target/release/deps/"$suite"-*; do
            case $check in *.d) ;; *) [ ! -x "$check" ] || "$check" --ignored --test-threads 1 ;; esac
        done
    done
}

# As bench/results/step-account.txt, measured.
account() {
    for work in "resnet18-cifar --views 1024" "resnet50 --views 256"; do
        # shellcheck disable=SC2086
        target/release/examples/step_bench bf16 --encoder $work --runs 20 --account
    done >bench/results/gpu-step-account.txt
}

[ $# -gt 0 ] || set -- tests account gpu-step-resnet18 gpu-step-resnet50 gpu-epoch-resnet18 gpu-epoch-resnet50
peers=
for section in "$@"; do
    case $section in
    tests) run_tests ;;
    account) account ;;
    *) peers="$peers $section" ;;
    esac
done
# shellcheck disable=SC2086
[ -z "$peers" ] || "$PEER_PYTHON" bench/bench.py $peers --rounds "${ROUNDS:-2}" --out bench/results/gpu.json
