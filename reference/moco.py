"""Goldens of MoCo: seven steps of SGD on a small network, asymmetric with a linear and a nonlinear head, and symmetric.

Run once with torch 2.11.0: python reference/moco.py
The algorithm is that of facebookresearch/moco (moco/builder.py; the symmetric loss that of its CIFAR-10 notebook), on one device and
without shuffling, in f64: the key encoder is updated at the start of a step, keys enter the queue after the loss. Writes
crates/simclr/tests/golden/moco.safetensors.
"""
import copy, pathlib, torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent.parent / "crates/simclr/tests/golden/moco.safetensors"
STEPS, IMAGES, KEYS, WIDTH, SIDE = 7, 6, 24, 8, 16
MOMENTUM, TAU, LR = 0.9, 0.2, 0.05
torch.set_default_dtype(torch.float64)


def wave(shape, phase, scale):
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (scale * torch.sin(phase + 0.7 * i + (0.013 * i * i) % 17.0)).view(shape)


class Net(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.encoder = nn.ModuleDict()
        for n, (a, b) in enumerate([(3, 4), (4, 8), (8, 16)], 1):
            self.encoder[f"conv{n}"] = nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False)
            self.encoder[f"bn{n}"] = nn.BatchNorm2d(b)
        last = nn.Linear(16, WIDTH)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), last) if mlp else nn.Sequential(last)
        for number, (name, p) in enumerate(self.named_parameters()):
            norm = ".bn" in name
            if p.dim() > 1:
                p.data = wave(p.shape, 0.1 * number, (2.0 / (p.numel() / p.shape[0])) ** 0.5)
            else:
                p.data = wave(p.shape, 0.1 * number, 0.2) + 1 if norm and name.endswith("weight") else wave(p.shape, 0.1 * number, 0.1)

    def forward(self, x):
        for n in (1, 2, 3):
            x = torch.relu(self.encoder[f"bn{n}"](self.encoder[f"conv{n}"](x)))
        return normalize(self.head(x.mean(dim=(2, 3))), dim=1)


def contrast(q, k, queue):
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / TAU
    return cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def run(mlp, symmetric):
    query = Net(mlp)
    key = copy.deepcopy(query)
    queue = normalize(wave((KEYS, WIDTH), 3.0, 1.0), dim=1)
    pointer, losses = 0, []
    sgd = torch.optim.SGD(query.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4)
    for step in range(STEPS):
        first, second = (wave((IMAGES, 3, SIDE, SIDE), 0.3 + step + 0.05 * view, 0.5) + 0.5 for view in (0, 1))
        with torch.no_grad():
            for k, q in zip(key.parameters(), query.parameters()):
                k.mul_(MOMENTUM).add_(q, alpha=1 - MOMENTUM)
        views = [(first, second), (second, first)] if symmetric else [(first, second)]
        queries = [query(x) for x, _ in views]
        with torch.no_grad():
            # Networks encode first views before second views, so the keys of the second direction come first.
            encoded = {id(x): key(x) for x in ([first, second] if symmetric else [second])}
        loss = sum(contrast(q, encoded[id(x)], queue) for q, (_, x) in zip(queries, views))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
        for row in torch.cat(list(encoded.values())):
            queue[pointer] = row
            pointer = (pointer + 1) % KEYS
    with torch.no_grad():  # this project updates the key encoder at the end of a step
        for k, q in zip(key.parameters(), query.parameters()):
            k.mul_(MOMENTUM).add_(q, alpha=1 - MOMENTUM)
    result = {"losses": torch.tensor(losses), "moco.queue": queue, "moco.pointer": torch.tensor([pointer])}
    for prefix, net in ("", query), ("momentum.", key):
        result |= {prefix + n: t for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    return {n: t.detach().clone().contiguous() if t.dtype == torch.long or n == "losses" else t.detach().float().contiguous() for n, t in result.items()}


golden = {}
for case, mlp, symmetric in ("v1", False, False), ("v2", True, False), ("symmetric", False, True):
    result = run(mlp, symmetric)
    print(case, [f"{x:.4f}" for x in result["losses"].tolist()])
    golden |= {f"{case}.{n}": t for n, t in result.items()}
save_file(golden, OUT)
