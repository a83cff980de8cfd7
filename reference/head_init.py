"""Golden of the head's initialisation: the first ten losses of a head without batch norm, in PyTorch, over 20 seeds.

Run once with torch 2.11.0: python reference/head_init.py
A head 64-128-32 (nn.Linear, ReLU, nn.Linear) is trained alone on fixed features of 32 images in two views: SGD, learning rate 0.02,
momentum 0.9, NT-Xent at temperature 0.5. `linear`: nn.Linear's own initialisation; `official`: N(0, 0.01^2), biases 0, as
google-research/simclr draws it (there with batch norm behind every layer). Writes mean and standard deviation over the seeds of the
loss at each step to crates/simclr/tests/golden/head_init.json.
"""
import json, pathlib, numpy as np, torch
from torch import nn
import torch.nn.functional as F

OUT = pathlib.Path(__file__).parent.parent / "crates/simclr/tests/golden/head_init.json"
IMAGES, FEATURES, HIDDEN, OUTPUT, STEPS, SEEDS = 32, 64, 128, 32, 10, 20


def features():
    """[2 * IMAGES, FEATURES]; rows i and i + IMAGES are two views of image i."""
    i, j = np.arange(IMAGES)[:, None], np.arange(FEATURES)[None, :]
    view = lambda v: np.sin(1.3 * i + 0.7 * j + 0.1 * i * j) + 0.5 * np.sin(2.1 * i + 1.7 * j + 0.9 * v + 0.3 * i * j)
    return torch.tensor(np.concatenate([view(0), view(1)]), dtype=torch.float32)


def nt_xent(z, temperature=0.5):
    n = len(z) // 2
    z = F.normalize(z)
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(2 * n).roll(n))


def losses(init, seed):
    torch.manual_seed(seed)
    head = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUTPUT))
    if init == "official":
        for layer in head[0], head[2]:
            nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.02, momentum=0.9)
    h, found = features(), []
    for _ in range(STEPS):
        loss = nt_xent(head(h))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


golden = {"about": f"reference/head_init.py: PyTorch {torch.__version__.split('+')[0]}, {SEEDS} seeds"}
for init in ("linear", "official"):
    curves = np.array([losses(init, seed) for seed in range(SEEDS)])
    golden[init] = {"mean": curves.mean(0).tolist(), "std": curves.std(0, ddof=1).tolist()}
OUT.write_text(json.dumps(golden, indent=1) + "\n")
