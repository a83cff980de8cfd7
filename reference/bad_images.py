"""Small images of kinds that the Rust image crates do not write, and what PIL makes of them.

Writes crates/simclr-data/tests/images/: NAME.jpg/.png/.tif and NAME.rgb (PIL's `convert("RGB")`, 12 rows of 16 pixels).
Run from the repository root: python reference/bad_images.py (made with Python 3.11+, pillow, numpy; versions printed).
"""
import io
import pathlib

import numpy as np
import PIL
from PIL import Image

OUT = pathlib.Path("crates/simclr-data/tests/images")
OUT.mkdir(parents=True, exist_ok=True)
HEIGHT, WIDTH = 12, 16
y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
rgb = np.stack([x * 16, y * 20, 255 - x * 8 - y * 8], axis=2).clip(0, 255).astype(np.uint8)


def keep(name: str, data: bytes) -> None:
    (OUT / name).write_bytes(data)
    golden = Image.open(io.BytesIO(data)).convert("RGB")
    assert golden.size == (WIDTH, HEIGHT)
    (OUT / name).with_suffix(".rgb").write_bytes(golden.tobytes())


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


smooth = Image.fromarray(rgb)
cyan, magenta, yellow = (255 - rgb[..., c] for c in range(3))
black = (x * 5 + y * 3).astype(np.uint8)
cmyk = Image.merge("CMYK", [Image.fromarray(plane) for plane in (cyan, magenta, yellow, black)])
jpeg = saved(cmyk, "JPEG", quality=95)
keep("cmyk.jpg", jpeg)
# YCCK: the same file kind; its first three planes are read as YCbCr when the Adobe segment's transform byte says 2.
# PIL stores CMYK inverted; Adobe's YCCK holds YCbCr of the inverted (that is, RGB-like) values.
ycc = np.asarray(smooth.convert("YCbCr"))
planes = [255 - ycc[..., c] for c in range(3)] + [black]
ycck = bytearray(saved(Image.merge("CMYK", [Image.fromarray(p.astype(np.uint8)) for p in planes]), "JPEG", quality=95))
adobe = ycck.index(b"Adobe")
assert ycck[adobe + 11] == 0
ycck[adobe + 11] = 2
keep("ycck.jpg", bytes(ycck))
keep("progressive.jpg", saved(smooth, "JPEG", quality=95, progressive=True))
keep("grey.jpg", saved(smooth.convert("L"), "JPEG", quality=95))
palette = smooth.quantize(32)
keep("palette.png", saved(palette, "PNG", transparency=3))
keep("palette8.bmp", saved(palette, "BMP"))
keep("lossy.webp", saved(smooth, "WEBP", quality=95))
keep("cmyk8.tif", saved(cmyk, "TIFF"))
print("pillow", PIL.__version__, "numpy", np.__version__)
