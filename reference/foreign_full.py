"""Do a peer's weights, read here, give the peer's features? torchvision's and timm's ResNets at their real size.

Run by hand with Python 3, torch, torchvision, timm, safetensors, numpy and pillow, from the root of the repository:
    python reference/foreign_full.py target/release/simclr
The weights are each library's own initialisation with other batch-norm statistics and scales (a fresh model's are 0 and
1, which would hide a swap); nothing is fetched. Images are 256 x 256 PNG, of which the evaluation view is the central
224 x 224, so both sides see the same pixels and only the networks are compared.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

MODELS = ["resnet18", "resnet34", "resnet50"]
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def lived_in(model):
    """Batch norm as after training: no statistic at its first value."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return model.eval()


def pictures(folder, generator):
    for part, count in [("train", 8), ("test", 4)]:
        for index in range(count):
            coarse = torch.rand(1, 3, 9, 9, generator=generator)
            smooth = torch.nn.functional.interpolate(coarse, 256, mode="bicubic").clamp(0, 1)[0]
            noisy = (smooth + 0.1 * torch.randn(3, 256, 256, generator=generator)).clamp(0, 1)
            path = folder / part / f"class-{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * noisy).byte().permute(1, 2, 0).numpy()).save(path)


def features(model, data, paths):
    images = [torch.from_numpy(np.array(Image.open(data / path)))[16:240, 16:240] for path in paths]
    batch = torch.stack(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return model((batch - MEAN) / STD).numpy()


def main():
    simclr, generator = sys.argv[1], torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    print("torch", torch.__version__, "torchvision", torchvision.__version__, "timm", timm.__version__)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        data = folder / "data"
        pictures(data, generator)
        for source in ["torchvision", "timm"]:
            for name in MODELS:
                model = torchvision.models.get_model(name) if source == "torchvision" else timm.create_model(name)
                model = lived_in(model)
                weights, run, out = (folder / f"{source}-{name}{end}" for end in [".safetensors", "", ".npy"])
                save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
                evaluate = [simclr, "evaluate", run, "--data", data, "--weights", weights, "--encoder", name]
                subprocess.run([*evaluate, "--image-size", "224"], check=True, capture_output=True)
                subprocess.run([simclr, "embed", run, "--data", data, "--out", out], check=True, capture_output=True)
                model.fc = torch.nn.Identity()
                paths = pathlib.Path(f"{out}.paths.txt").read_text().splitlines()
                theirs, ours = features(model, data, paths), np.load(out)
                difference = np.abs(theirs - ours).max()
                print(f"{source:<12} {name:<9} {ours.shape[1]:>5} features up to {theirs.max():.2f}, "
                      f"largest difference {difference:.1e} (bar: 1e-4)", flush=True)
                assert difference < 1e-4


if __name__ == "__main__":
    main()
