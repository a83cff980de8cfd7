"""SimCLR as lightly's own example trains it, from an image folder: data set, SimCLRTransform, DataLoader, encoder,
SimCLRProjectionHead, NTXentLoss, SGD. Prints one JSON line per epoch: {"seconds": wall time, "images": how many}.

usage: epoch.py default|amp|tuned FOLDER --encoder resnet18|conv-c3|resnet50 --size 32 --batch 256 --epochs 4 --workers 2
needs: torch, torchvision, lightly

default: float32, NCHW, eager.   amp: bfloat16 autocast, channels-last, eager.   tuned: amp with torch.compile, persistent workers
that pin memory, and cuDNN's choice by timing.
"""
import argparse, json, os, sys, time

import torch, torchvision
from torch import nn
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform

p = argparse.ArgumentParser()
p.add_argument("kind", choices=["default", "amp", "tuned"])
p.add_argument("folder")
p.add_argument("--encoder", choices=["resnet18", "conv-c3", "resnet50"], default="resnet18")
p.add_argument("--size", type=int, default=32)
p.add_argument("--batch", type=int, default=256)
p.add_argument("--epochs", type=int, default=4)
p.add_argument("--workers", type=int, default=os.cpu_count())
a = p.parse_args()
tuned, fast = a.kind == "tuned", a.kind != "default"
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)


def conv_c3():
    layers, before = [], 3
    for width in (32, 64, 128):
        layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))


def encoder():
    if a.encoder == "conv-c3":
        return conv_c3(), 128
    net = getattr(torchvision.models, a.encoder)()
    if a.size <= 32:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return nn.Sequential(*list(net.children())[:-1]), net.fc.in_features


class SimCLR(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, width = encoder()
        self.head = SimCLRProjectionHead(width, width, 128)

    def forward(self, x):
        return self.head(self.backbone(x).flatten(start_dim=1))


small = a.size <= 32
transform = SimCLRTransform(input_size=a.size, cj_strength=0.5 if small else 1.0, gaussian_blur=0.0 if small else 0.5)
loader = torch.utils.data.DataLoader(
    LightlyDataset(a.folder, transform=transform), batch_size=a.batch, shuffle=True, drop_last=True,
    num_workers=a.workers, persistent_workers=tuned and a.workers > 0, pin_memory=tuned and device == "cuda")
torch.backends.cudnn.benchmark = tuned
model = SimCLR().to(device)
if fast:
    model = model.to(memory_format=torch.channels_last)
run = torch.compile(model) if tuned else model
criterion = NTXentLoss(temperature=0.5)
optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
for _ in range(a.epochs):
    start, images = time.perf_counter(), 0
    for batch in loader:
        views = torch.cat(batch[0]).to(device, non_blocking=True)
        if fast:
            views = views.to(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=fast):
            z = run(views)
        z0, z1 = z.float().chunk(2)
        loss = criterion(z0, z1)
        loss.backward()
        optimizer.step()
        images += len(views) // 2
        float(loss.detach())
    print(json.dumps({"seconds": time.perf_counter() - start, "images": images}), flush=True)
