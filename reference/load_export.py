"""Loads an encoder exported by `simclr export`, or a classifier of `simclr classify`, into torchvision and computes features, or
probabilities.

    python reference/load_export.py encoder.safetensors [IMAGE ...]
Needs torch, torchvision, pillow and safetensors. ResNets of width 1 with symmetric padding only; pixels in [0, 1], normalised by the
statistics of the file's metadata.
"""

import json
import sys

import numpy
import PIL.Image
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
    if meta.get("simclr.sk_ratio", "0") != "0" or meta.get("simclr.resnet_d", "off") != "off":
        raise SystemExit("torchvision has no such model: it has neither selective kernels nor ResNet-D")
    model = getattr(torchvision.models, meta["simclr.architecture"])()
    channels = int(meta["simclr.channels"])
    if meta["simclr.stem"] == "cifar":
        model.conv1 = torch.nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        model.maxpool = torch.nn.Identity()
    elif channels != 3:
        model.conv1 = torch.nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    classifier = {name: weights.pop(f"classifier.{name}") for name in ("weight", "bias") if f"classifier.{name}" in weights}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"} and not unexpected, (missing, unexpected)
    model.fc = torch.nn.Identity()
    if classifier:
        # The temperature is part of the weights, so that softmax gives calibrated probabilities.
        model.fc = torch.nn.Linear(*classifier["weight"].shape[::-1])
        model.fc.load_state_dict(classifier)
        model = torch.nn.Sequential(model, torch.nn.Softmax(dim=1))
    return model.eval(), meta


def normalised(images, meta):
    mean, std = (torch.tensor([float(x) for x in meta[f"simclr.input_{key}"].split(",")]).view(-1, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std


def pixels(image, meta):
    """A PIL image to [1, 3, S, S], as the metadata's `simclr.transform` declares it."""
    how = json.loads(meta["simclr.transform"])
    if not how["antialias"]:
        raise SystemExit("resized without antialiasing: use tf.image.resize; PyTorch's bicubic has another kernel")
    image, (width, height) = image.convert("RGB"), image.size
    if how["crop"] != "whole":
        side = min(max(round(how["crop"] * min(width, height)), 1), width, height)
        left, top = (width - side + 1) // 2, (height - side + 1) // 2
        image = image.crop((left, top, left + side, top + side))
    image = image.resize((how["size"],) * 2, PIL.Image.Resampling[how["interpolation"].upper()])
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None] / 255


if __name__ == "__main__":
    model, meta = load(sys.argv[1])
    channels, size = int(meta["simclr.channels"]), int(meta["simclr.image_size"])
    images = [pixels(PIL.Image.open(path), meta) for path in sys.argv[2:]] or [torch.rand(2, channels, size, size)]
    with torch.no_grad():
        found = model(normalised(torch.cat(images), meta))
    if "simclr.classes" not in meta:
        print(f"{meta['simclr.description']}: h {tuple(found.shape)}")
    else:
        classes = json.loads(meta["simclr.classes"])
        for path, row in zip(sys.argv[2:], found.tolist()):
            print(path, classes[row.index(max(row))], *(f"{p:.6f}" for p in row), sep="\t")
