"""Four low-contrast textures in 13 bands, as reflectance from 300 to 2800: what a fixed cut to 8 bits destroys.

    python bench/textures.py DIR      (numpy, tifffile; imagecodecs for ZSTD)

writes DIR/u16 (interleaved uint16), DIR/f32 (float32) and DIR/planar (planar uint16, ZSTD), the same 400 tiles in each.
Bands have means of their own and one offset per tile; a tile spans about 440 of 65536 values.
"""

import sys
from pathlib import Path

import numpy as np
import tifffile

TILES, SIDE, BANDS = 100, 64, 13


def texture(name, rng, x, y):
    frequency = rng.uniform(0.55, 0.75)
    p, q = rng.uniform(0, 2 * np.pi, 2)
    match name:
        case "horizontal":
            return np.sin(frequency * y + p)
        case "vertical":
            return np.sin(frequency * x + p)
        case "diagonal":
            return np.sin(frequency * (x + y) / np.sqrt(2) + p)
        case "checker":
            return 1.2 * np.sin(frequency * x + p) * np.sin(frequency * y + q)


def main(root):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    means, gains = rng.uniform(850, 2250, BANDS), rng.uniform(150, 220, BANDS)
    for name in ["horizontal", "vertical", "diagonal", "checker"]:
        for kind in ["u16", "f32", "planar"]:
            (root / kind / name).mkdir(parents=True, exist_ok=True)
        for tile in range(TILES):
            waves = texture(name, rng, x, y)[..., None]
            offset = rng.uniform(-300, 300)
            image = means + offset + gains * waves + rng.normal(0, 25, (SIDE, SIDE, BANDS))
            image = np.clip(np.round(image), 300, 2800).astype(np.uint16)
            common = dict(photometric="minisblack", metadata=None)
            tifffile.imwrite(root / "u16" / name / f"{tile:03}.tif", image, planarconfig="contig", **common)
            tifffile.imwrite(
                root / "f32" / name / f"{tile:03}.tif", image.astype(np.float32), planarconfig="contig", **common
            )
            planes = np.moveaxis(image, -1, 0)
            tifffile.imwrite(
                root / "planar" / name / f"{tile:03}.tif", planes, planarconfig="separate", compression="zstd", **common
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
