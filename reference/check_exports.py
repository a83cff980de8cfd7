"""Compares exports of simclr with timm and onnxruntime; run by hand, writes nothing.

    python reference/check_exports.py BINARY IMAGES RUN [RUN ...]
Needs torch, timm, onnxruntime, pyarrow, pillow. IMAGES is a folder of images of the runs' kind. For each run it exports ONNX and, where timm has
the network, the folder of timm, and prints the largest difference of h (absolute, and the smallest cosine)
- of onnxruntime from `simclr export`'s safetensors in timm, on random images (batches of 1 and 5), and
- of timm with its own transform, which decodes by Pillow, from `simclr embed` with Pillow's decoder and with ours, on the files of IMAGES.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
import onnxruntime
import PIL.Image
import pyarrow.parquet
import timm
import torch


def compare(found, expected):
    difference = numpy.abs(found - expected).max()
    cosine = (found * expected).sum(1) / numpy.linalg.norm(found, axis=1) / numpy.linalg.norm(expected, axis=1)
    return f"{difference:.2e}, cosine {cosine.min():.6f}, largest h {numpy.abs(expected).max():.2f}"


def small(path):
    """conv-c3, conv-c4 and conv-c7 in PyTorch."""
    from safetensors.torch import load_file

    weights = {name: tensor for name, tensor in load_file(path).items() if not name.endswith("num_batches_tracked")}
    count = sum(name.startswith("conv") for name in weights)

    def convolution(x, branch, layer, stride):
        x = torch.nn.functional.conv2d(x, weights[f"{branch}conv{layer}.weight"], stride=stride, padding=1)
        norm = [weights[f"{branch}bn{layer}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return torch.nn.functional.batch_norm(x, *norm)

    def h(x):
        for layer in range(1, count + 1):
            x = convolution(x, "", layer, 2 if count == 3 else 1).relu()
            if count == 4 and layer < count:
                x = torch.nn.functional.max_pool2d(x, 2)
            if f"residual_conv{layer}.weight" in weights:
                x = (x + convolution(x, "residual_", layer, 1)).relu()
        return x.mean((2, 3))

    return h


def check(binary, images, run):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        export = lambda *more: subprocess.run([binary, "export", run, *more], check=True, capture_output=True, text=True)
        export("--format", "onnx", "--out", folder / "encoder.onnx")
        session = onnxruntime.InferenceSession(folder / "encoder.onnx")
        _, channels, side, _ = session.get_inputs()[0].shape
        entries = session.get_modelmeta().custom_metadata_map
        mean, std = (
            torch.tensor([float(x) for x in entries[f"simclr.input_{key}"].split(",")]).view(-1, 1, 1) for key in ("mean", "std")
        )
        try:
            export("--format", "timm", "--out", folder / "timm")
            model = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
        except subprocess.CalledProcessError as error:
            print(run, error.stderr.strip().splitlines()[0])
            export("--out", folder / "encoder.safetensors")
            model = small(folder / "encoder.safetensors") if "conv" in entries["simclr.architecture"] else None
        if model is not None:
            for count in (1, 5):
                random = torch.rand(count, channels, side, side)
                with torch.no_grad():
                    expected = model((random - mean) / std).numpy()
                found = session.run(["h"], {"images": random.numpy()})[0]
                print(f"{run}: onnxruntime, {channels} channels, batch {count}: {compare(found, expected)}")
        if images == "-" or not (folder / "timm").exists():
            return
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        for decoder in ("libjpeg", "zune"):
            table = folder / f"{decoder}.parquet"
            command = [binary, "embed", run, "--data", images, "--jpeg", decoder, "--out", table]
            subprocess.run(command, check=True, capture_output=True)
            table = pyarrow.parquet.read_table(table)
            expected = numpy.array(table["h"].to_pylist(), dtype=numpy.float32)
            paths = [pathlib.Path(images) / path for path in table["path"].to_pylist()]
            with torch.no_grad():
                found = numpy.concatenate([model(transform(PIL.Image.open(path).convert("RGB"))[None]).numpy() for path in paths])
            print(f"{run}: timm's transform on {len(paths)} files, {decoder}: {compare(found, expected)}")


for run in sys.argv[3:]:
    check(sys.argv[1], sys.argv[2], run)
