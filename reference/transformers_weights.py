"""Names, shapes and features of models of Hugging Face's transformers (5.24.0, torch 2.11.0), from the root of the repository:
    python reference/transformers_weights.py
Writes crates/simclr/tests/golden/transformers.json: of each network [[name, shape], ...] as `save_pretrained` writes them, and h of two
images (tests/fixtures/hashed.rs, 32 px, normalised with ImageNet's statistics) with hashed weights.
"""

import json
import pathlib
import tempfile

import torch
from official_models import hashed, images
from safetensors.torch import load_file
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

OUT = pathlib.Path("crates/simclr/tests/golden/transformers.json")
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def saved(model):
    """The tensors in the file of `save_pretrained`."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


def with_hashed_weights(model):
    """Hashed by the names in the file, as a user would load them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = f"{folder}/model.safetensors"
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if not name.endswith("num_batches_tracked"):
                tensor.copy_(torch.from_numpy(hashed(name, tuple(tensor.shape))))
        from safetensors.torch import save_file

        save_file(tensors, path, metadata={"format": "pt"})
        return type(model).from_pretrained(folder).eval()


def main():
    pictures = (torch.from_numpy(images(2, 32).transpose(0, 3, 1, 2).copy()) - MEAN) / STD
    found = {}
    resnet = lambda kind, depths, sizes: ResNetForImageClassification(
        ResNetConfig(layer_type=kind, depths=depths, hidden_sizes=sizes, embedding_size=sizes[0] if kind == "basic" else sizes[0] // 4)
    )
    nets = {
        "resnet18": resnet("basic", [2, 2, 2, 2], [16, 32, 64, 128]),
        "resnet50": resnet("bottleneck", [3, 4, 6, 3], [64, 128, 256, 512]),
        "vit-tiny": ViTForImageClassification(
            ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, image_size=32, patch_size=8)
        ),
    }
    for name, net in nets.items():
        net = with_hashed_weights(net)
        with torch.no_grad():
            if name.startswith("vit"):
                h = net.vit(pictures).last_hidden_state[:, 0]
            else:
                h = net.resnet(pictures).pooler_output.flatten(1)
        tensors = [[key, list(tensor.shape)] for key, tensor in sorted(saved(net).items()) if "num_batches" not in key]
        found[name] = {"tensors": tensors, "h": [[round(x, 6) for x in row] for row in h.tolist()]}
        print(name, h.std(), tensors[:8])
    OUT.write_text(json.dumps(found, separators=(",", ":")) + "\n")


main()
