"""Goldens of initial weights: features of torchvision's and timm's models, and files of torch.save.

Run once with torch 2.11.0, torchvision 0.26.0, timm 1.0.31, safetensors, from the root of the repository:
    python reference/initial_weights.py
Writes, in crates/simclr/tests/golden:
- initial_weights.safetensors: h [2, F] of `images` (tests/fixtures/hashed.rs), normalised with ImageNet's statistics, by networks with
  hashed weights; the ViT at 64 px, and at 96 px with positions that timm resizes;
- classifier.safetensors: probabilities [4, 5] of a ResNet-18 with a linear classifier, all weights hashed;
- torch/zip.pth, torch/sequence.pth: what occurs in such files, in both formats; torch/tensors.safetensors: the tensors in them;
- torch/namespace.pth, torch/system.pth: files with an object and with a call, which must be refused.
"""

import argparse
import collections
import os
import pathlib

import timm
import torch
import torchvision
from official_models import hashed, images
from safetensors.torch import save_file

OUT = pathlib.Path("crates/simclr/tests/golden")
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def with_hashed_weights(model):
    state = model.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(torch.from_numpy(hashed(name, tuple(tensor.shape))))
    return model.eval()


def features(model, size):
    pictures = torch.from_numpy(images(2, size).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return model((pictures - MEAN) / STD).contiguous()


def networks():
    found = {}
    for name in ("resnet18", "resnet50"):
        model = getattr(torchvision.models, name)(weights=None)
        model.fc = torch.nn.Identity()
        found[name] = features(with_hashed_weights(model), 64)
    vit = lambda size: timm.create_model("vit_small_patch16_224", img_size=size, num_classes=0)
    small = with_hashed_weights(vit(64))
    found["vit-small"] = features(small, 64)
    large = vit(96).eval()
    # timm's filter resizes the positions.
    from timm.models.vision_transformer import checkpoint_filter_fn

    large.load_state_dict(checkpoint_filter_fn(small.state_dict(), large, antialias=True))
    found["vit-small 96 px"] = features(large, 96)
    return found


def classifier():
    model = torchvision.models.resnet18(weights=None)
    model.fc = torch.nn.Identity()
    h = torch.nn.Linear(512, 5)
    for name, tensor in h.named_parameters():
        tensor.data.copy_(torch.from_numpy(hashed(f"classifier.{name}", tuple(tensor.shape))) * 3)
    pictures = torch.from_numpy(images(4, 64).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return h(with_hashed_weights(model)((pictures - MEAN) / STD)).softmax(1)


def contents():
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    state = collections.OrderedDict()
    state["module.encoder_q.conv1.weight"] = torch.randn(2, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    state["module.encoder_q.bn1.weight"] = torch.nn.Parameter(torch.randn(5))
    state["module.encoder_q.bn1.num_batches_tracked"] = torch.tensor(7)
    state["module.view"] = base[1:3, 2:5]
    state["module.transposed"] = base.t()
    state["module.half"] = torch.randn(3).half()
    state["module.bfloat16"] = torch.randn(3).bfloat16()
    state["module.double"] = torch.randn(3).double()
    state["module.bytes"] = torch.arange(5, dtype=torch.uint8)
    state["module.flags"] = torch.tensor([True, False])
    state["module.empty"] = torch.zeros(0, 3)
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    optimizer = {"state": {0: {"momentum_buffer": torch.randn(2), "step": 3}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    return {"epoch": 3, "arch": "resnet50", "best": None, "big": 2**70, "loss": 0.5, "state_dict": state, "optimizer": optimizer}


def flattened(value, name=""):
    if isinstance(value, torch.Tensor):
        return {name: value.detach().contiguous().clone()}
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {key: tensor for k, v in entries for key, tensor in flattened(v, f"{name}.{k}" if name else str(k)).items()}


class System:
    def __reduce__(self):
        return os.system, ("true",)


def main():
    save_file(networks(), OUT / "initial_weights.safetensors")
    save_file({"probabilities": classifier()}, OUT / "classifier.safetensors")
    folder = OUT / "torch"
    folder.mkdir(exist_ok=True)
    saved = contents()
    torch.save(saved, folder / "zip.pth")
    torch.save(saved, folder / "sequence.pth", _use_new_zipfile_serialization=False)
    save_file(flattened(saved), folder / "tensors.safetensors")
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, folder / "namespace.pth")
    torch.save({"state_dict": System()}, folder / "system.pth")


main()
