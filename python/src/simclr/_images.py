"""Images in memory as files that the program reads without a loss."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from ._program import SimclrError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

    Image = Union[str, os.PathLike[str], np.ndarray[Any, Any], PilImage]
    Images = Union[Image, Sequence[Image]]
else:
    Image = Images = Any

# TIFF sample formats of the kinds of numpy.
SAMPLE_FORMATS = {"u": 1, "i": 2, "f": 3}
# Modes of PIL that PNG holds exactly.
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
# More channels in the second axis than in the last suggest [N, C, H, W].
MOST_CHANNELS = 16


def is_path(images: object) -> bool:
    return isinstance(images, (str, os.PathLike))


def write(images: Images, folder: Path) -> list[Path]:
    """Writes images, or links image files, into ``folder``, named so that their order is that of ``images``."""
    files = [_write(image, folder / f"{index:08d}") for index, image in enumerate(_each(images))]
    if not files:
        raise SimclrError("no images")
    return files


def names(images: Images, count: int) -> list[str]:
    """Paths as given; the index of an image in memory."""
    each = list(images) if isinstance(images, Sequence) else [None] * count
    return [os.fspath(image) if isinstance(image, (str, os.PathLike)) else str(index) for index, image in enumerate(each)]


def _each(images: Images) -> Iterable[Image]:
    if isinstance(images, np.ndarray):
        if images.ndim not in (3, 4):
            raise SimclrError(f"an array of shape {images.shape}", "expected [N, H, W] or [N, H, W, C]; one image is [image]")
        return iter(images)
    if _is_pil(images):
        return [images]  # type: ignore[list-item]
    return iter(images)  # type: ignore[arg-type]


def _is_pil(image: object) -> bool:
    return hasattr(image, "mode") and hasattr(image, "convert")


def _write(image: Image, stem: Path) -> Path:
    if isinstance(image, (str, os.PathLike)):
        source = Path(image).absolute()
        if not source.is_file():
            raise SimclrError(f"not a file: {image}")
        link = stem.with_suffix(source.suffix)
        link.symlink_to(source)
        return link
    if isinstance(image, np.ndarray):
        return _write_array(image, stem)
    if _is_pil(image):
        return _write_pil(image, stem)
    raise SimclrError(f"an image of type {type(image).__name__}", "expected a path, an array or a PIL image")


def _write_pil(image: PilImage, stem: Path) -> Path:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)  # as the program does with the file
    if upright.mode in ("I", "F"):
        return _write_array(np.asarray(upright), stem)
    if upright.mode not in PNG_MODES:
        raise SimclrError(f"a PIL image of mode {upright.mode}", "convert it first: image.convert('RGB')")
    path = stem.with_suffix(".png")
    upright.save(path, compress_level=1)
    return path


def _write_array(image: np.ndarray[Any, Any], stem: Path) -> Path:
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise SimclrError(f"an image of shape {image.shape}", "expected [H, W] or [H, W, C]")
    if image.ndim == 3 and image.shape[2] > MOST_CHANNELS >= image.shape[0]:
        raise SimclrError(f"an image of shape {image.shape}", "channels are the last axis: [H, W, C], not [C, H, W]")
    values = image.astype(np.float32) if image.dtype == np.float16 else image
    if values.dtype.kind not in SAMPLE_FORMATS or values.dtype.itemsize > (8 if values.dtype.kind == "f" else 4):
        raise SimclrError(f"an image of {image.dtype}", "expected integers of 8, 16 or 32 bits, or floats")
    path = stem.with_suffix(".tif")
    path.write_bytes(_tiff(values if values.ndim == 3 else values[:, :, None]))
    return path


def _tiff(values: np.ndarray[Any, Any]) -> bytes:
    """A baseline TIFF (little endian, one strip, interleaved) of ``[H, W, C]``."""
    height, width, channels = values.shape
    data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    colors = 3 if channels == 3 else 1
    fields = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [8 * values.dtype.itemsize] * channels),
        (259, "H", [1]),  # not compressed
        (262, "H", [2 if colors == 3 else 1]),  # RGB, or 0 is black
        (273, "I", [8]),  # offset of the strip
        (277, "H", [channels]),
        (278, "I", [height]),
        (279, "I", [len(data)]),
        (284, "H", [1]),  # interleaved
        (338, "H", [0] * (channels - colors)),  # unspecified, not alpha
        (339, "H", [SAMPLE_FORMATS[values.dtype.kind]] * channels),
    ]
    fields = [field for field in fields if field[2]]
    data += b"\0" * (len(data) % 2)
    directory = 8 + len(data)
    overflow = directory + 2 + 12 * len(fields) + 4
    entries, long_values = b"", b""
    for tag, kind, numbers in fields:
        packed = struct.pack(f"<{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            offset = struct.pack("<I", overflow + len(long_values))
            long_values += packed + b"\0" * (len(packed) % 2)
            packed = offset
        entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(numbers)) + packed.ljust(4, b"\0")
    header = struct.pack("<2sHI", b"II", 42, directory)
    return header + data + struct.pack("<H", len(fields)) + entries + b"\0" * 4 + long_values
