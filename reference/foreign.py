"""Golden of a peer's weights: features of torchvision's ResNet-18 with made-up weights.

Run once with Python 3, torch, torchvision and safetensors, from the root of the repository:
    python reference/foreign.py
Writes crates/simclr/tests/golden/foreign.safetensors; the versions used are in its metadata.
"""

import math

import torch
import torchvision
from safetensors.torch import save_file

OUT = "crates/simclr/tests/golden/foreign.safetensors"


def made_up(name, tensor):
    """Every number from the tensor's name and its place: the same in tests/evaluation.rs."""
    salt = 0
    for byte in name.encode():
        salt = (salt * 31 + byte) % 1009
    wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 12.9898 + salt).view(tensor.shape)
    fan_in = math.prod(tensor.shape[1:])
    last = name.rsplit(".")[-1]
    if last == "running_var":
        wave = wave * 0.3 + 1.0
    elif last == "weight" and tensor.dim() == 1:
        wave = wave * 0.2 + 1.0
    elif last == "weight":
        wave = wave * math.sqrt(2.0 / fan_in)
    else:
        wave = wave * 0.1
    return wave.float()


def main():
    model = torchvision.models.resnet18(weights=None)
    model.fc = torch.nn.Identity()
    state = model.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(made_up(name, tensor))
    model.eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        features = model((images - mean) / std)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    save_file({"images": images, "features": features.contiguous()}, OUT, metadata=versions)


if __name__ == "__main__":
    main()
