"""Goldens of the optimizers: ten steps on small tensors.

Run once with torch 2.11.0 and numpy: python reference/optim.py
SGD and AdamW are PyTorch's; LARS and LAMB are written out in numpy from their formulas (SimCLR's official LARS; the LARS
paper's denominator; LAMB with bias correction), and Muon from its authors' iteration in f64, which is compared with
torch.optim.Muon (bf16). Writes crates/simclr/tests/golden/optim.safetensors.
"""
import pathlib, numpy as np, torch
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).parent.parent / "crates/simclr/tests/golden/optim.safetensors"
STEPS, LR = 10, 0.3


def wave(n, phase, scale=1.0):
    i = np.arange(n, dtype=np.float64)
    return scale * np.sin(phase + 0.7 * i)


# name, shape, is a kernel
PARAMS = [("kernel", (4, 3), True), ("zero_kernel", (2, 2), True), ("bias", (5,), False), ("scale", (6,), False)]
start = {n: (np.zeros(s) if n == "zero_kernel" else wave(np.prod(s), 0.2).reshape(s)) for n, s, _ in PARAMS}
gradient = lambda name, shape, step: wave(np.prod(shape), 0.5 + step + len(name), 0.4).reshape(shape)
lr_at = lambda step: LR * (1 + step) / STEPS  # changes, so that its place in the momentum matters
norm = lambda x: np.sqrt((x * x).sum())


def lars(wd, separate, inside, nesterov, mu=0.9, eeta=1e-3):
    w, v = {n: start[n].copy() for n in start}, {n: np.zeros_like(start[n]) for n in start}
    for step in range(STEPS):
        lr = lr_at(step)
        for n, shape, kernel in PARAMS:
            raw = gradient(n, shape, step)
            g = raw + wd * w[n] if kernel else raw
            ratio = 1.0
            if kernel:
                wn, gn = norm(w[n]), (norm(raw) + wd * norm(w[n]) if separate else norm(g))
                ratio = eeta * wn / gn if wn > 0 and gn > 0 else 1.0
            if inside:
                s = lr * ratio
                v[n] = mu * v[n] + s * g
                w[n] = w[n] - (mu * v[n] + s * g if nesterov else v[n])
            else:
                v[n] = mu * v[n] + ratio * g
                w[n] = w[n] - lr * (mu * v[n] + ratio * g if nesterov else v[n])
    return w


def lamb(wd, correct=True, b1=0.9, b2=0.999, eps=1e-6):
    """`correct`: arXiv 1904.00962 v5; without: v3 and its public ports (cybertronai/pytorch-lamb)."""
    w = {n: start[n].copy() for n in start}
    m, s = {n: 0 * w[n] for n in w}, {n: 0 * w[n] for n in w}
    for step in range(STEPS):
        for n, shape, kernel in PARAMS:
            g = gradient(n, shape, step)
            m[n], s[n] = b1 * m[n] + (1 - b1) * g, b2 * s[n] + (1 - b2) * g * g
            c1, c2 = (1 - b1 ** (step + 1), 1 - b2 ** (step + 1)) if correct else (1.0, 1.0)
            u = m[n] / c1 / (np.sqrt(s[n] / c2) + eps)
            u = u + wd * w[n] if kernel else u
            wn, un = min(norm(w[n]), 10.0), norm(u)
            ratio = wn / un if kernel and wn > 0 and un > 0 else 1.0
            w[n] = w[n] - lr_at(step) * ratio * u
    return w


def newton_schulz(x):
    x = x / (norm(x) + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def muon(wd, nesterov, mu=0.95):
    w, v = {n: start[n].copy() for n in start}, {n: np.zeros_like(start[n]) for n in start}
    others = adamw(0.0)
    for step in range(STEPS):
        for n, shape, kernel in PARAMS:
            if kernel:
                g = gradient(n, shape, step)
                v[n] = mu * v[n] + (1 - mu) * g
                update = mu * v[n] + (1 - mu) * g if nesterov else v[n]
                update = newton_schulz(update) * 0.2 * np.sqrt(max(shape))
                w[n] = w[n] * (1 - lr_at(step) * wd) - lr_at(step) * update
    theirs = by_torch(lambda k, o: torch.optim.Muon(k, lr=LR, weight_decay=wd, momentum=mu, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"))
    for n, _, kernel in PARAMS:
        # bf16 rounding in the null space of these gradients of rank 2 is amplified by 3.4445^5; the weights move by 0.5.
        assert not kernel or np.abs(theirs[n] - w[n]).max() < 0.1, (n, theirs[n] - w[n])
    return {n: w[n] if kernel else others[n] for n, _, kernel in PARAMS}


def by_torch(make):
    w = {n: torch.tensor(start[n], dtype=torch.float64, requires_grad=True) for n in start}
    kernels, others = [w[n] for n, _, k in PARAMS if k], [w[n] for n, _, k in PARAMS if not k]
    opt = make(kernels, others)
    for step in range(STEPS):
        for n, shape, _ in PARAMS:
            w[n].grad = torch.tensor(gradient(n, shape, step))
        for group in opt.param_groups:
            group["lr"] = lr_at(step)
        opt.step()
    return {n: w[n].detach().numpy() for n in w}


def sgd(wd, nesterov, decay_all=False):
    groups = lambda k, o: [{"params": k, "weight_decay": wd}, {"params": o, "weight_decay": wd if decay_all else 0.0}]
    return by_torch(lambda k, o: torch.optim.SGD(groups(k, o), lr=LR, momentum=0.9, nesterov=nesterov))


def adamw(wd):
    groups = lambda k, o: [{"params": k, "weight_decay": wd}, {"params": o, "weight_decay": 0.0}]
    return by_torch(lambda k, o: torch.optim.AdamW(groups(k, o), lr=LR, betas=(0.9, 0.999), eps=1e-8))


runs = {
    "lars": lars(1e-2, False, True, False), "lars_separate": lars(1e-2, True, True, False),
    "lars_outside": lars(1e-2, False, False, False), "lars_nesterov": lars(1e-2, False, True, True),
    "lars_no_decay": lars(0.0, False, True, False),
    "sgd": sgd(1e-2, False), "sgd_nesterov": sgd(1e-2, True), "adamw": adamw(1e-2), "lamb": lamb(1e-2), "lamb_uncorrected": lamb(1e-2, correct=False),
    "sgd_decay_all": sgd(1e-2, False, decay_all=True),
    "muon": muon(1e-2, True), "muon_plain": muon(1e-2, False),
}
save_file({f"{run}.{n}": np.ascontiguousarray(w.reshape(start[n].shape)) for run, ws in runs.items() for n, w in ws.items()}, OUT)
