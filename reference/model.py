"""Goldens of encoders, head and one training curve, from PyTorch and torchvision.

Run once with torch 2.11.0 and torchvision 0.26.0: python reference/model.py
Writes crates/simclr/tests/golden/model.safetensors and script.pt. Weights and images follow from a formula that
crates/simclr/tests/golden_model.rs repeats, so only results are stored: h (its first 256 columns), z, loss, and for every gradient its norm and
its product with a fixed vector.
"""
import pathlib, torch, torchvision
from torch import nn
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
OUT = pathlib.Path(__file__).parent.parent / "crates/simclr/tests/golden"


def wave(shape, phase, scale=1.0):
    """Reproducible numbers without a generator: scale * sin(phase + 0.7 i + 0.013 i^2 mod 17)."""
    i = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64)
    return (scale * torch.sin(phase + 0.7 * i + torch.remainder(0.013 * i * i, 17.0))).reshape(shape)


def fill(module):
    """Kernels scaled by fan-in, batch-norm scales near 1, shifts near 0, in the order of named_parameters."""
    for number, (name, p) in enumerate(module.named_parameters()):
        phase = 0.1 * number
        if p.dim() >= 2:
            value = wave(p.shape, phase, (2.0 / p[0].numel()) ** 0.5)
        elif name.endswith("weight"):
            value = 1.0 + wave(p.shape, phase, 0.2)
        else:
            value = wave(p.shape, phase, 0.1)
        p.data.copy_(value)


def nt_xent(z, t):
    n = z.shape[0] // 2
    z = nn.functional.normalize(z, dim=1)
    s = (z @ z.T / t).masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
    return nn.functional.cross_entropy(s, torch.arange(2 * n).roll(n))


class Small(nn.Module):
    def __init__(self, kind, channels):
        super().__init__()
        widths = [32, 64, 128] if kind == "conv-c3" else [16, 32, 64, 128]
        self.kind, self.count, last = kind, len(widths), channels
        for i, width in enumerate(widths, 1):
            setattr(self, f"conv{i}", nn.Conv2d(last, width, 3, 2 if kind == "conv-c3" else 1, 1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(width))
            if kind == "conv-c7" and i < self.count:
                setattr(self, f"residual_conv{i}", nn.Conv2d(width, width, 3, 1, 1, bias=False))
                setattr(self, f"residual_bn{i}", nn.BatchNorm2d(width))
            last = width

    def forward(self, x):
        for i in range(1, self.count + 1):
            x = torch.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
            if self.kind != "conv-c3" and i < self.count:
                x = nn.functional.max_pool2d(x, 2)
            if self.kind == "conv-c7" and i < self.count:
                x = torch.relu(x + getattr(self, f"residual_bn{i}")(getattr(self, f"residual_conv{i}")(x)))
        return x.mean((2, 3))


def resnet(name, cifar):
    net = getattr(torchvision.models, name)()
    if cifar:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    net.fc = nn.Identity()
    return net


def head(features):
    last = nn.BatchNorm1d(16)
    last.bias = None  # the official last batch norm has no shift
    net = nn.Sequential(nn.Linear(features, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16, bias=False), last)
    return net


class Both(nn.Module):
    def __init__(self, encoder, features):
        super().__init__()
        self.encoder, self.head = encoder, head(features)

    def forward(self, x):
        h = self.encoder(x)
        return h, self.head(h)


result = {}
cases = [
    ("conv-c3", Small("conv-c3", 3), 128, 3, 16, 6), ("conv-c4", Small("conv-c4", 1), 128, 1, 16, 6),
    ("conv-c7", Small("conv-c7", 3), 128, 3, 18, 6),
    ("resnet18", resnet("resnet18", True), 512, 3, 16, 4), ("resnet50", resnet("resnet50", False), 2048, 3, 64, 12),
    ("resnet50-same", resnet("resnet50", False), 2048, 3, 64, 12),
]
for name, encoder, features, channels, size, images in cases:
    net = Both(encoder, features)
    fill(net)
    if name.endswith("same"):
        # TensorFlow's SAME on an even side: nothing before, one after. Its strided convolutions use a "fixed" padding,
        # which for odd kernels is the symmetric one.
        net.encoder.maxpool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2))
    net = net.double().train()
    x = 0.5 + 0.5 * wave((images, channels, size, size), 0.3)
    h, z = net(x)
    loss = nt_xent(z, 0.5)
    loss.backward()
    result[f"{name}.h"], result[f"{name}.z"], result[f"{name}.loss"] = h.detach().float()[:, :256], z.detach().float(), loss.detach().reshape(1)
    norms, products = [], []
    for p in net.parameters():
        norms.append(p.grad.norm())
        products.append((p.grad.flatten() * wave((p.numel(),), 0.5)).sum())
    result[f"{name}.gradient_norms"], result[f"{name}.gradient_products"] = torch.stack(norms).detach(), torch.stack(products).detach()
    buffers = [b for n, b in net.named_buffers() if "running" in n]
    result[f"{name}.buffer_sums"] = torch.stack([b.sum() for b in buffers])
    net.eval()
    with torch.no_grad():
        result[f"{name}.h_eval"] = net.encoder(x).float()[:, :256]

# Ten steps of SGD with momentum on one network: the whole update, compared as a curve.
net = Both(Small("conv-c3", 3), 128)
fill(net)
net = net.double().train()
kernels = [p for p in net.parameters() if p.dim() >= 2]
others = [p for p in net.parameters() if p.dim() < 2]
opt = torch.optim.SGD([{"params": kernels, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}], lr=0.05, momentum=0.9)
curve = []
for step in range(10):
    x = 0.5 + 0.5 * wave((16, 3, 16, 16), 0.3 + step)
    loss = nt_xent(net(x)[1], 0.5)
    opt.zero_grad()
    loss.backward()
    opt.step()
    curve.append(loss.detach())
result["curve"] = torch.stack(curve)
save_file({k: v.contiguous() for k, v in result.items()}, OUT / "model.safetensors")


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


tiny = Tiny()
fill(tiny)
torch.jit.script(tiny).save(str(OUT / "script.pt"))
x = (0.5 + 0.5 * wave((4, 3, 16, 16), 0.3)).float()
tiny.eval()
with torch.no_grad():
    save_file({"h_eval": tiny(x).mean((2, 3))}, OUT / "script.safetensors")
