"""h of the official ResNet-50 on JPEGs by the official code itself: see official.py for the set-up.

    python reference/official_features.py CHECKOUT           (writes the JPEGs, where there are none, and stops)
    simclr pack --data crates/simclr/tests/golden/jpeg --out images.pack
    python reference/official_features.py CHECKOUT images.pack

Twenty small JPEGs of odd sizes lie in crates/simclr/tests/golden/jpeg. official_features.safetensors next to them holds every
eighth column of h [20, 2048] for the ImageNet stem at 64 px and the CIFAR stem at 32 px, by `data_util.preprocess_image` and
`resnet.resnet` in inference mode, of three decodings of the same files:

- `default`: TensorFlow's, as the official code has it through tfds. It takes the fast, inexact transform (IFAST);
  `transform.jpeg = "libjpeg-fast"` here.
- `accurate`: TensorFlow's with dct_method="INTEGER_ACCURATE", which is libjpeg's and Pillow's.
- `own`: this project's, from the packed set, so that all that follows the decoder is compared without its levels.

`pixels.NN` is every 97th byte of the accurate decoding.

Weights: value i (row-major in PyTorch's layout) of parameter number k follows from a hash of (k, i), so that none need be
stored; k counts what `names` lists. The Rust test (tests/official_features.rs) makes the same.
"""
import pathlib, sys
import official

FLAGS = official.load(sys.argv[1])
import numpy as np, tensorflow as tf
import data_util, resnet
from PIL import Image
from safetensors.numpy import save_file

GOLDEN = official.CRATES / "simclr/tests/golden"
JPEGS = GOLDEN / "jpeg"
SIZES = [(61, 47), (97, 64), (75, 100), (33, 41), (120, 90), (83, 83), (101, 67), (64, 64), (49, 131), (90, 121),
         (57, 73), (111, 77), (65, 87), (39, 59), (99, 127), (71, 53), (85, 113), (45, 45), (103, 81), (69, 95)]  # height, width
LAYERS, WIDTHS = [3, 4, 6, 3], [64, 128, 256, 512]
EVERY = 8


def photograph(height, width, rng):
    """1/f noise in three correlated channels, with a few hard edges: bytes [H, W, 3]."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    field = lambda: np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random((height, fx.shape[1]))), s=(height, width))
    unit = lambda x: (x - x.mean()) / x.std()
    grey = unit(field())
    picture = np.stack([grey + 0.4 * unit(field()) for _ in range(3)], -1)
    for _ in range(3):
        y, x, r = rng.integers(height), rng.integers(width), rng.integers(4, 20)
        yy, xx = np.ogrid[:height, :width]
        picture[(yy - y) ** 2 + (xx - x) ** 2 < r * r] = rng.normal(0, 1.2, 3)
    return np.clip(127 + 55 * picture, 0, 255).astype(np.uint8)


def write_jpegs():
    JPEGS.mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    for at, (height, width) in enumerate(SIZES):
        # Chroma at full, half and quarter resolution; every fifth image progressive.
        Image.fromarray(photograph(height, width, rng)).save(JPEGS / f"{at:02}.jpg", quality=88, subsampling=at % 3, progressive=at % 5 == 4)


def names():
    """(official layer number, PyTorch's name of the convolution, of the batch norm), in the order of the official numbers."""
    found, number = [(0, "conv1", "bn1")], 1
    for group, blocks in enumerate(LAYERS):
        for block in range(blocks):
            place = f"layer{group + 1}.{block}."
            if block == 0:
                found.append((number, place + "downsample.0", place + "downsample.1"))
                number += 1
            for conv in (1, 2, 3):
                found.append((number, f"{place}conv{conv}", f"{place}bn{conv}"))
                number += 1
    return found


def uniform(k, count):
    """Numbers in [0, 1) that a hash of (k, i) decides."""
    with np.errstate(over="ignore"):
        h = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(k) * np.uint32(2246822519) + np.uint32(1)
        for shift, factor in ((16, 2146121005), (15, 2221713035)):
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        h ^= h >> np.uint32(16)
    return h.astype(np.float64) / 2**32


def weights(k, kind, shape):
    """Parameter number k in PyTorch's layout."""
    u = uniform(k, int(np.prod(shape)))
    if kind == "weight" and len(shape) == 4:  # uniform with the variance of He's initialisation
        u = (2 * u - 1) * np.sqrt(6 / np.prod(shape[1:]))
    else:
        low, high = {"weight": (0.5, 1.0), "bias": (-0.2, 0.2), "running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}[kind]
        u = low + (high - low) * u
    return u.astype(np.float32).reshape(shape)


def official_model(size):
    model = resnet.resnet(resnet_depth=50, width_multiplier=1, cifar_stem=size <= 32)
    model(tf.zeros([1, size, size, 3]), training=False)
    convs, norms = {}, {}
    for v in model.variables:
        layer, what = v.name.removesuffix(":0").split("/")[-2:]
        number = int(layer.rsplit("_", 1)[-1]) if layer.rsplit("_", 1)[-1].isdigit() else 0
        (convs if layer.startswith("conv2d") else norms).setdefault(number, {})[what] = v
    # Keras goes on counting over both models.
    first = min(convs), min(norms)
    k = 0
    for number, _, _ in names():
        kernel, norm = convs[first[0] + number]["kernel"], norms[first[1] + number]
        kh, kw, i, o = kernel.shape
        kernel.assign(weights(k, "weight", (o, i, kh, kw)).transpose(2, 3, 1, 0))
        for offset, (kind, there) in enumerate([("weight", "gamma"), ("bias", "beta"), ("running_mean", "moving_mean"), ("running_var", "moving_variance")]):
            norm[there].assign(weights(k + 1 + offset, kind, norm[there].shape))
        k += 5
    return model


def decoded(file, method):
    return tf.io.decode_jpeg(file.read_bytes(), channels=3, dct_method=method)


def packed(path, files):
    """The images of a packed set: 16 bytes, then pixels without gaps."""
    data, at, pictures = pathlib.Path(path).read_bytes(), 16, []
    for file in files:
        width, height = Image.open(file).size
        pictures.append(np.frombuffer(data, np.uint8, 3 * width * height, at).reshape(height, width, 3))
        at += 3 * width * height
    return pictures


def features(model, size, pictures):
    """At 32 px, too, with the official crop: `data.py` skips it there, since CIFAR's images are 32 px."""
    views = [data_util.preprocess_image(tf.constant(picture), size, size, is_training=False, test_crop=True) for picture in pictures]
    return np.concatenate([model(view[None], training=False).numpy() for view in views])


def main(pack):
    files = sorted(JPEGS.glob("*.jpg"))
    pictures = {
        "default": [decoded(file, "").numpy() for file in files],
        "accurate": [decoded(file, "INTEGER_ACCURATE").numpy() for file in files],
        "own": packed(pack, files),
    }
    out = {f"pixels.{at:02}": picture.reshape(-1)[::97].copy() for at, picture in enumerate(pictures["accurate"])}
    for name, size in [("imagenet_stem", 64), ("cifar_stem", 32)]:
        model = official_model(size)
        h = {how: features(model, size, images) for how, images in pictures.items()}
        for how, values in h.items():
            off = np.abs(values - h["default"]).max() / np.abs(h["default"]).max()
            print(f"{name}, decoding {how}: {off:.2e} of the largest value from the default's")
            out[f"{name}.{how}"] = np.ascontiguousarray(values[:, ::EVERY])
    for how in ("default", "own"):
        levels = [np.abs(a.astype(int) - b) for a, b in zip(pictures[how], pictures["accurate"])]
        print(f"decoding {how}: up to {max(d.max() for d in levels)} levels from the accurate one, mean {np.mean([d.mean() for d in levels]):.3f}")
    save_file(out, GOLDEN / "official_features.safetensors")


if not JPEGS.exists():
    write_jpegs()
if sys.argv[2:]:
    main(sys.argv[2])
