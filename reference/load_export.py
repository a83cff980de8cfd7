"""Loads an encoder exported by `simclr export` into torchvision and computes features.

    python reference/load_export.py encoder.safetensors
Needs torch, torchvision and safetensors. ResNets of width 1 with symmetric padding only; pixels in [0, 1], no
normalisation (the file's metadata says so).
"""

import sys

import torch
import torchvision
from safetensors import safe_open


def load(path):
    """The encoder as a torchvision model that returns h, and the file's metadata."""
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}
    if meta["simclr.width"] != "1" or meta["simclr.padding"] != "symmetric":
        raise SystemExit("torchvision has no such model: width or padding differ")
    model = getattr(torchvision.models, meta["simclr.architecture"])()
    channels = int(meta["simclr.channels"])
    if meta["simclr.stem"] == "cifar":
        model.conv1 = torch.nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        model.maxpool = torch.nn.Identity()
    elif channels != 3:
        model.conv1 = torch.nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"} and not unexpected, (missing, unexpected)
    model.fc = torch.nn.Identity()
    return model.eval(), meta


if __name__ == "__main__":
    model, meta = load(sys.argv[1])
    channels, size = int(meta["simclr.channels"]), int(meta["simclr.image_size"])
    with torch.no_grad():
        h = model(torch.rand(2, channels, size, size))
    print(f"{meta['simclr.description']}: h {tuple(h.shape)}")
