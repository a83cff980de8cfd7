"""Golden features of a small vision transformer of timm (1.0.31, PyTorch 2.11): python reference/vit.py

Writes crates/simclr/tests/golden/vit.safetensors: weights under timm's names, input [2, 3, 32, 32], h [2, 48] in evaluation mode, and
the fixed position embedding of MoCo v3 (arXiv 2104.02057) for 4 x 4 patches and width 48.
"""

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

WIDTH, SIDE, PATCH = 48, 32, 8


def sines(side, width, temperature=10_000.0):
    """The formula of MoCo v3's `build_2d_sincos_position_embedding`."""
    column, row = torch.meshgrid(torch.arange(side, dtype=torch.float64), torch.arange(side, dtype=torch.float64), indexing="ij")
    omega = temperature ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    x = column.flatten()[:, None] * omega
    y = row.flatten()[:, None] * omega
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table])[None].float()


def main():
    torch.manual_seed(0)
    # timm's vit_tiny with a quarter of its width, so that the file stays small.
    model = VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=12, num_heads=3, num_classes=0
    ).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            scale = 0.3 if "norm" in name else 0.15
            value.add_(torch.randn(value.shape) * scale)
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        h = model(images)
    tensors = {f"weights.{name}": value.half() for name, value in model.state_dict().items()}
    # Rounded weights, so that the file holds exactly what h was computed from.
    model.load_state_dict({name: tensors[f"weights.{name}"].float() for name in model.state_dict()})
    with torch.no_grad():
        h = model(images)
    save_file(
        {**tensors, "images": images, "h": h.contiguous(), "sines": sines(SIDE // PATCH, WIDTH)},
        "crates/simclr/tests/golden/vit.safetensors",
    )
    print(h[0, :4], sum(value.numel() for value in model.parameters()))


main()
