#!/bin/sh
# Views per second on one core: ours against lightly's SimCLR transform, alternately, five times each. Both read one JPEG.
# usage: PEER_PYTHON=python-with-lightly PEERS=folder-of-peer-scripts bench/views.sh [OUTPUT]
set -eu
cd "$(dirname "$0")/.."
: "${PEER_PYTHON:?set PEER_PYTHON to a python that has torch, torchvision and lightly}"
: "${PEERS:?set PEERS to the folder that holds the peer script views.py}"
out=${1:-bench/results/views.txt}
cargo build --release --locked -p simclr-data --example views_bench
mkdir -p "$(dirname "$out")"
photo=$(mktemp)
trap 'rm -f "$photo"' EXIT
# The photo that views.py makes where it is given none, written once, so that both decode the same bytes.
"$PEER_PYTHON" - "$photo" <<'PYTHON'
import sys, torch
from PIL import Image
torch.manual_seed(0)
low = torch.nn.functional.interpolate(torch.rand(1, 3, 24, 32), size=(375, 500), mode="bicubic")[0].clamp(0, 1)
photo = (low * 255 + 6 * torch.randn(3, 375, 500)).clamp(0, 255).byte().permute(1, 2, 0).numpy()
Image.fromarray(photo).save(sys.argv[1], "JPEG", quality=92)
PYTHON
{
    date -u '+%F %T UTC'; lscpu | grep 'Model name'
    for run in 1 2 3 4 5; do
        taskset -c 0 target/release/examples/views_bench "$photo"
        taskset -c 0 "$PEER_PYTHON" "$PEERS/views.py" "$photo"
    done
} | tee "$out"
