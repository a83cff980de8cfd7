"""Goldens of the input of an evaluation: images with hard edges, where the cubic overshoots, resized by Pillow.

Run once with numpy and Pillow 12 or later: python reference/eval_pixels.py
Writes crates/simclr-data/tests/golden/eval_pixels.json: levels in the order rows, columns, channels. The image follows from a formula
that the test repeats.
"""

import json
import pathlib

import numpy
from PIL import Image

SIDE = 16
# Width, height, and the box that is resized.
CASES = {"grow": (10, 7, None), "shrink": (40, 30, None), "share": (40, 30, (7, 2, 33, 28)), "narrow": (16, 30, None)}


def picture(width, height):
    y, x, channel = numpy.meshgrid(range(height), range(width), range(3), indexing="ij")
    return Image.fromarray((((3 * x + 5 * y + x * y + channel) % 7 < 3) * 255).astype(numpy.uint8))


def resized(width, height, box, how):
    return numpy.asarray(picture(width, height).resize((SIDE, SIDE), how, box=box)).flatten().tolist()


filters = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}
levels = {f"{how}.{name}": resized(*case, filters[how]) for how in filters for name, case in CASES.items()}
folder = pathlib.Path(__file__).parent.parent / "crates/simclr-data/tests/golden"
lines = [f'"{name}": {json.dumps(values, separators=(",", ":"))}' for name, values in levels.items()]
(folder / "eval_pixels.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
