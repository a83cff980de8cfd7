"""One SimCLR training step of the small encoder conv-c3 in PyTorch: 3x3 convolutions 32-64-128 with stride 2, batch norm,
ReLU, mean over positions, a head of two layers, NT-Xent, SGD with momentum, on random views that lie in memory already.

usage: step_conv_c3.py default|tuned|compiled [--encoder conv-c3] [--views 256] [--runs 5]
needs: torch 2.x. Prints one line as `step_bench` does (median, min, max).

default:  float32, NCHW, eager
tuned:    bfloat16 autocast, channels-last, eager
compiled: tuned + torch.compile
"""
import argparse
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

FEATURES, OUT, TEMPERATURE = 128, 128, 0.5


def network():
    layers, channels = [], 3
    for width in (32, 64, FEATURES):
        layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Sequential(
        nn.Linear(FEATURES, FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU(inplace=True),
        nn.Linear(FEATURES, OUT, bias=False), nn.BatchNorm1d(OUT),
    )
    return nn.Sequential(encoder, head)


def nt_xent(z):
    half = z.shape[0] // 2
    z = F.normalize(z.float(), dim=1)
    itself = torch.eye(2 * half, dtype=torch.bool)
    similarity = (z @ z.T / TEMPERATURE).masked_fill(itself, float("-inf"))
    return F.cross_entropy(similarity, torch.arange(2 * half).roll(half))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["default", "tuned", "compiled"])
    parser.add_argument("--encoder", default="conv-c3", choices=["conv-c3"])
    parser.add_argument("--views", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    net, views, fast = network(), torch.randn(arguments.views, 3, 32, 32), arguments.kind != "default"
    if fast:
        net, views = net.to(memory_format=torch.channels_last), views.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    forward = torch.compile(net) if arguments.kind == "compiled" else net

    def step():
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
            z = forward(views)
        nt_xent(z).backward()
        optimizer.step()
        return time.perf_counter() - start

    for _ in range(2):
        step()
    seconds = [step() for _ in range(arguments.runs)]
    median = statistics.median(seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{arguments.kind} conv-c3 cpu torch {torch.__version__}: {median:.4f} s/step (min {min(seconds):.4f} max "
          f"{max(seconds):.4f}), {arguments.views / median:.1f} views/s, peak RSS {peak:.2f} GiB")


main()
