"""Goldens of the augmentation operators.

Run once with numpy, Pillow, torch 2.11.0 and torchvision 0.26.0: python reference/augment.py
Resizes are Pillow's; TensorFlow's colour operators are written out with Python's colorsys in f64, torchvision's are its own;
blur is a zero-padded convolution. Writes crates/simclr-data/tests/golden/augment.safetensors; the images follow from a
formula that the test repeats.
"""
import colorsys, pathlib, numpy as np, torch
from PIL import Image
from safetensors.numpy import save_file
from torchvision.transforms import functional as tv

OUT = pathlib.Path(__file__).parent.parent / "crates/simclr-data/tests/golden/augment.safetensors"
OUT.parent.mkdir(parents=True, exist_ok=True)


def picture(w, h, c):
    """Smooth colours with some texture, u8 [h, w, c]."""
    y, x, k = np.meshgrid(np.arange(h), np.arange(w), np.arange(c), indexing="ij")
    v = 127.5 + 90 * np.sin(0.21 * x * (k + 1) + 0.13 * y) + 37 * np.cos(0.9 * y - 0.5 * x * k)
    return np.floor(np.clip(v, 0, 255)).astype(np.uint8)


def resized(im, box, size, how):
    planes = [np.asarray(Image.fromarray(im[..., k]).resize((size, size), how, box=box)) for k in range(im.shape[2])]
    return np.stack(planes).astype(np.float64) / 255


LUMA = np.array([0.2989, 0.5870, 0.1140])
clip = lambda x: np.clip(x, 0, 1)
gray = lambda x: np.repeat((LUMA[:, None, None] * x).sum(0)[None], 3, 0)


def hsv(x, f):
    out = np.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            out[:, i, j] = colorsys.hsv_to_rgb(*f(*colorsys.rgb_to_hsv(*x[:, i, j])))
    return out


def blur(x, sigma, side):
    r = max(side // 10 // 2, 1)
    k = np.exp(-np.arange(-r, r + 1) ** 2 / (2 * sigma**2))
    k = torch.tensor(k / k.sum())
    t = torch.tensor(x)[:, None]
    t = torch.nn.functional.conv2d(t, k.view(1, 1, 1, -1), padding=(0, r))
    return torch.nn.functional.conv2d(t, k.view(1, 1, -1, 1), padding=(r, 0))[:, 0].numpy()


out = {}
im = picture(40, 30, 3)
crops = {"shrink": (3, 2, 33, 28), "grow": (10, 5, 19, 12), "whole": (0, 0, 40, 30), "pixel": (7, 7, 8, 8)}
for name, box in crops.items():
    out[f"bicubic.{name}"] = resized(im, box, 16, Image.BICUBIC)
    out[f"bilinear.{name}"] = resized(im, box, 16, Image.BILINEAR)
out["five"] = resized(picture(40, 30, 5), crops["shrink"], 16, Image.BICUBIC)
base = picture(16, 16, 3).transpose(2, 0, 1).astype(np.float64) / 255
mean = base.mean((1, 2), keepdims=True)
out["brightness"] = clip(base * 1.4)
out["brightness_shift"] = clip(base - 0.3)
out["contrast"] = clip((base - mean) * 1.6 + mean)
out["saturation"] = clip(hsv(base, lambda h, s, v: (h, min(max(s * 1.7, 0), 1), v)))
out["hue"] = clip(hsv(base, lambda h, s, v: ((h + 0.17) % 1.0, s, v)))
out["gray"] = clip(gray(base))
t = torch.tensor(base)
out["tv_contrast"] = tv.adjust_contrast(t, 1.6).numpy()
out["tv_saturation"] = tv.adjust_saturation(t, 0.4).numpy()
out["tv_hue"] = tv.adjust_hue(t, 0.17).numpy()
out["blur"] = clip(blur(base, 1.3, 16))
wide = picture(60, 60, 3).transpose(2, 0, 1).astype(np.float64) / 255
out["blur_wide"] = clip(blur(wide, 1.7, 60))
out["flip"] = base[:, :, ::-1]
out["rotate"] = np.rot90(base, 1, (1, 2))
out["solarize"] = np.where(base >= 0.5, 1 - base, base)
# A whole view: crop, flip, hue, brightness, saturation, contrast, gray left out, blur.
x = resized(im, crops["shrink"], 16, Image.BICUBIC)[:, :, ::-1]
x = clip(hsv(x, lambda h, s, v: ((h - 0.08) % 1.0, s, v)))
x = clip(x * 0.7)
x = clip(hsv(x, lambda h, s, v: (h, min(s * 1.3, 1), v)))
m = x.mean((1, 2), keepdims=True)
x = clip((x - m) * 0.5 + m)
out["view"] = clip(blur(x, 0.6, 16))
save_file({k: np.ascontiguousarray(v.astype(np.float32)) for k, v in out.items()}, OUT)
