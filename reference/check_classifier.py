"""Compares a classifier of simclr with the same file in torchvision; run by hand, writes nothing.

    python reference/check_classifier.py BINARY CLASSIFIER.safetensors IMAGES
Needs torch, torchvision, pyarrow, pillow and safetensors. Prints, for both JPEG decoders, the largest difference of a probability of
`simclr predict` from that of `load_export.py` on what Pillow decodes and resizes, and on how many images the class is the same.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy
import PIL.Image
import pyarrow.parquet
import torch

from load_export import load, normalised, pixels

binary, classifier, images = sys.argv[1:]
model, meta = load(classifier)
for decoder in ("libjpeg", "zune"):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "p.parquet")
        command = [binary, "predict", classifier, "--data", images, "--labels-from", "none", "--jpeg", decoder, "--out", out]
        subprocess.run(command, check=True, capture_output=True)
        table = pyarrow.parquet.read_table(out)
    found = numpy.array(table["probabilities"].to_pylist())
    with torch.no_grad():
        each = (pixels(PIL.Image.open(pathlib.Path(images, path)), meta) for path in table["path"].to_pylist())
        expected = numpy.concatenate([model(normalised(image, meta)).numpy() for image in each])
    same = (found.argmax(1) == expected.argmax(1)).sum()
    print(f"{decoder}: {abs(found - expected).max():.1e}, class equal on {same} of {len(found)} images")
