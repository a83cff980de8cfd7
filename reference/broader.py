"""Goldens of the broader augmentation and of AutoAugment's operations and tables.

Run once with numpy, Pillow 13.0.0, torch 2.11.0 and torchvision 0.26.0: python reference/broader.py
Equalize is Pillow's, every operation of AutoAugment is torchvision's `_apply_op` on a PIL image, so that Pillow computes it; motion
blur samples a line in f64. Writes to crates/simclr-data/tests/golden: broader.safetensors (bytes `[C, S, S]`, of motion blur, flip and
Sobel f32) and autoaugment.json (sub-policies with magnitudes). The images follow from a formula that the test repeats.
"""
import json, math, pathlib, numpy as np, torch
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from torchvision.transforms import InterpolationMode, autoaugment

OUT = pathlib.Path(__file__).parent.parent / "crates/simclr-data/tests/golden"
SIDE = 28


def picture(w, h, c):
    """As in reference/augment.py."""
    y, x, k = np.meshgrid(np.arange(h), np.arange(w), np.arange(c), indexing="ij")
    v = 127.5 + 90 * np.sin(0.21 * x * (k + 1) + 0.13 * y) + 37 * np.cos(0.9 * y - 0.5 * x * k)
    return np.floor(np.clip(v, 0, 255)).astype(np.uint8)


def as_image(array):
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def planes(image):
    array = np.asarray(image)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def motion_blurred(plane, length, degrees):
    """Mean of ceil(length) bilinear samples at equal distances along a centred line of length - 1; edge pixels replicated."""
    count = max(math.ceil(length), 1)
    reach = (length - 1) / 2
    steps = np.linspace(-reach, reach, count) if count > 1 else [0.0]
    rim = math.ceil(reach) + 1
    wide, (h, w) = np.pad(plane, rim, mode="edge"), plane.shape
    total = np.zeros_like(plane)
    for t in steps:
        x, y = t * math.cos(math.radians(degrees)), -t * math.sin(math.radians(degrees))
        left, top = math.floor(x), math.floor(y)
        at = lambda dy, dx: wide[rim + top + dy :, rim + left + dx :][:h, :w]
        upper = at(0, 0) * (1 - (x - left)) + at(0, 1) * (x - left)
        lower = at(1, 0) * (1 - (x - left)) + at(1, 1) * (x - left)
        total += upper * (1 - (y - top)) + lower * (y - top)
    return total / count


def sobel(planes):
    gray = np.array([0.2989, 0.5870, 0.1140]) @ planes.reshape(3, -1)
    wide = np.pad(gray.reshape(planes.shape[1:]), 1, mode="edge")
    column = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    row = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    magnitude = np.hypot(column[:, 2:] - column[:, :-2], row[2:] - row[:-2])
    return np.repeat(np.minimum(magnitude, 1)[None], 3, 0)


# Magnitudes with both signs, one from each end of the ranges of AutoAugment.
OPERATIONS = {
    "ShearX": [0.3, -1 / 6],
    "ShearY": [0.2, -0.3],
    "TranslateX": [12.0, -7.0],
    "TranslateY": [3.0, -12.0],
    "Rotate": [30.0, -80 / 3, 10.0],
    "Brightness": [0.7, -0.6],
    "Color": [0.8, -0.9],
    "Contrast": [0.8, -0.6],
    "Sharpness": [0.9, -0.7],
    "Posterize": [4, 6],
    "Solarize": [255 / 9 * 4, 170.0],
    "AutoContrast": [0.0],
    "Equalize": [0.0],
    "Invert": [0.0],
}

out = {}
images = {"rgb": picture(SIDE, SIDE, 3), "gray": picture(SIDE, SIDE, 1)}
# A quarter of the levels, so that AutoContrast has something to stretch.
images["dark"] = images["rgb"] // 4 + 20
for kind, array in images.items():
    out[f"equalize.{kind}"] = planes(ImageOps.equalize(as_image(array)))
    for name, magnitudes in OPERATIONS.items():
        for number, magnitude in enumerate(magnitudes):
            magnitude = float(np.float32(magnitude))  # as AutoAugment reads it from a tensor
            done = autoaugment._apply_op(as_image(array), name, magnitude, InterpolationMode.NEAREST, None)
            out[f"{name}.{number}.{kind}"] = planes(done)
base = picture(16, 16, 3).transpose(2, 0, 1).astype(np.float64) / 255
LINES = [(5.0, 0.0), (4.0, 90.0), (7.3, 33.0), (12.6, 140.0), (1.0, 20.0)]
for number, (length, degrees) in enumerate(LINES):
    blurred = np.stack([motion_blurred(plane, length, degrees) for plane in base])
    out[f"motion_blur.{number}"] = blurred.astype(np.float32)
out["vertical_flip"], out["nothing"] = base[:, ::-1].astype(np.float32), base.astype(np.float32)
out["sobel"] = sobel(base).astype(np.float32)
save_file({name: np.ascontiguousarray(value) for name, value in out.items()}, OUT / "broader.safetensors")

# name, probability, magnitude (None, or for views of 224 px); translations in whole pixels for several sizes.
tables, sizes = {}, [8, 32, 96, 224, 331, 512]
for name, policy in [("imagenet", autoaugment.AutoAugmentPolicy.IMAGENET), ("cifar10", autoaugment.AutoAugmentPolicy.CIFAR10)]:
    augment = autoaugment.AutoAugment(policy)
    spaces = {size: augment._augmentation_space(10, (size, size)) for size in sizes}

    def described(operation, probability, number):
        magnitude = lambda size: 0.0 if number is None else float(spaces[size][operation][0][number])
        pixels = [int(magnitude(size)) for size in sizes] if operation.startswith("Translate") else []
        return [operation, probability, magnitude(224), bool(spaces[224][operation][1]), pixels]

    tables[name] = [[described(*one) for one in pair] for pair in augment.policies]
lines = [f'"{name}": [\n' + ",\n".join(json.dumps(pair) for pair in pairs) + "\n]" for name, pairs in tables.items()]
(OUT / "autoaugment.json").write_text(f'{{"sizes": {sizes},\n' + ",\n".join(lines) + "\n}\n")
