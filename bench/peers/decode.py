"""JPEG files to RGB arrays by PIL on one thread, files per second.   usage: decode.py FILE.jpg ...   needs: pillow, numpy"""
import io, sys, time

import numpy as np
from PIL import Image

files = [open(name, "rb").read() for name in sys.argv[1:]]
for data in files[:20]:
    np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
done, start = 0, time.perf_counter()
while time.perf_counter() - start < 2:
    for data in files:
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    done += len(files)
print(f"pillow: {done / (time.perf_counter() - start):.0f} files/s")
