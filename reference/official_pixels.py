"""Evaluation crops, resizing and random crops by the official code itself: see official.py for the set-up.

Writes crates/simclr-data/tests/golden/official_pixels.safetensors (resized images) and official_crops.json: the crop of
`data_util.center_crop` for a table of image sizes, and quantiles of what `data_util.distorted_bounding_box_crop` draws with the
arguments of `crop_and_resize`. Boxes are read off the arguments of `tf.image.crop_to_bounding_box`.
"""
import json, sys
import official

FLAGS = official.load(sys.argv[1])
import data_util, numpy as np, tensorflow as tf
from safetensors.numpy import save_file

GOLDEN = official.CRATES / "simclr-data/tests/golden"
DRAWS = 100_000
crop_to_bounding_box = data_util.tf.image.crop_to_bounding_box


def image(height, width, channels=3):
    """Bytes that a hash of their place decides; the Rust test makes the same."""
    y, x, c = np.meshgrid(*(np.arange(n, dtype=np.uint32) for n in (height, width, channels)), indexing="ij")
    return (((y * np.uint32(7919) + x * np.uint32(104729) + c * np.uint32(1299709)) * np.uint32(2654435761)) >> 24).astype(np.uint8)


def evaluation_box(height, width, proportion):
    """Side, top and left of the crop."""
    seen = {}

    def record(picture, y, x, h, w):
        seen.update(y=int(y), x=int(x), h=int(h), w=int(w))
        return crop_to_bounding_box(picture, y, x, h, w)

    data_util.tf.image.crop_to_bounding_box = record
    data_util.center_crop(tf.zeros([height, width, 1]), 8, 8, proportion)
    data_util.tf.image.crop_to_bounding_box = crop_to_bounding_box
    assert seen["h"] == seen["w"]
    return [height, width, proportion, seen["h"], seen["y"], seen["x"]]


def drawn(height, width):
    """Rows y, x, h, w of random crops."""
    tf.random.set_seed(11)
    data_util.tf.image.crop_to_bounding_box = lambda _, y, x, h, w: tf.stack([y, x, h, w])
    picture, bbox = tf.zeros([height, width, 3]), tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    arguments = dict(min_object_covered=0.1, aspect_ratio_range=(3.0 / 4, 4.0 / 3.0), area_range=(0.08, 1.0), max_attempts=100)

    @tf.function
    def all_of_them():
        return tf.map_fn(lambda _: data_util.distorted_bounding_box_crop(picture, bbox, **arguments), tf.range(DRAWS), fn_output_signature=tf.int32)

    boxes = all_of_them().numpy().astype(np.float64)
    data_util.tf.image.crop_to_bounding_box = crop_to_bounding_box
    y, x, h, w = boxes.T
    figures = {"area": w * h / (width * height), "log_aspect": np.log(w / h), "centre_x": (x + w / 2) / width, "centre_y": (y + h / 2) / height}
    shares = np.arange(1, 100) / 100
    quantiles = {name: [round(float(q), 7) for q in np.quantile(values, shares, method="inverted_cdf")] for name, values in figures.items()}
    return {"height": height, "width": width, "draws": DRAWS, "smallest_area": float(figures["area"].min()), "quantiles": quantiles}


def resized():
    """Evaluation views `[size, size, 3]` of `image(height, width)`: the official crop, and the whole image squeezed."""
    cases = {}
    for height, width, size in [(61, 47, 23), (40, 100, 24), (13, 11, 30), (300, 277, 17), (9, 9, 9)]:
        picture = tf.image.convert_image_dtype(image(height, width), tf.float32)
        views = {"crop": data_util.preprocess_for_eval(picture, size, size, crop=True)}
        for method in ["bicubic", "bilinear"]:
            views[f"whole.{method}"] = tf.image.resize([picture], [size, size], method)[0]  # not clipped
        for name, view in views.items():
            cases[f"{name}.{height}x{width}.{size}"] = np.ascontiguousarray(view.numpy().astype(np.float32))
    return cases


sizes = [(300, 500), (375, 500), (333, 500), (256, 256), (1000, 1500), (250, 250), (500, 375), (255, 340), (97, 101), (100, 100), (36, 37), (4, 9), (1, 1), (64, 80), (2000, 1333)]
table = [evaluation_box(h, w, 0.875) for h, w in sizes] + [evaluation_box(h, w, p) for h, w in [(300, 500), (97, 101)] for p in (0.9, 0.65, 1.0)]
rows = ",\n  ".join(map(json.dumps, table))
draws = ",\n  ".join(map(json.dumps, [drawn(256, 256), drawn(300, 500)]))
(GOLDEN / "official_crops.json").write_text(f'{{\n "about": "reference/official_pixels.py: height, width, proportion -> side, top, left; quantiles at 1 to 99 %",\n "evaluation": [\n  {rows}\n ],\n "random": [\n  {draws}\n ]\n}}\n')
save_file(resized(), GOLDEN / "official_pixels.safetensors")
