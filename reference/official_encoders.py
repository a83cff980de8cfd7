"""h of the official TF2 ResNets with ResNet-D, selective kernels and both stems, and the numbers of their parameters: see
official.py for the set-up.

    python reference/official_encoders.py CHECKOUT

Writes crates/simclr/tests/golden/official_encoders.safetensors: `NAME.eval` and `NAME.train`, h [8, F] with running and with batch
statistics, of the networks of width 1/16 below with hashed weights; and official_counts.json: the trainable parameters of the
encoders of the SimCLR v2 table and of the other depths.
"""
import json, sys
import official

FLAGS = official.load(sys.argv[1])
import numpy as np, tensorflow as tf
import official_models as models, resnet
from safetensors.numpy import save_file

GOLDEN = official.CRATES / "simclr/tests/golden"
# Name, depth, sk_ratio, image size. 75 px have odd sides at most strides.
VARIANTS = [("r18", 18, 0.0, 75), ("r18-d", 18, 0.0625, 75), ("r18-d-cifar", 18, 0.0625, 32), ("r50", 50, 0.0, 75),
            ("r50-sk", 50, 0.0625, 75), ("r50-sk-cifar", 50, 0.0625, 32)]


def features():
    out = {}
    for name, depth, sk, size in VARIANTS:
        FLAGS.sk_ratio = sk
        model = resnet.resnet(resnet_depth=depth, width_multiplier=1 / 16, cifar_stem=size <= 32)
        pictures = tf.constant(models.images(8, size))
        model(pictures, training=False)
        models.assign(models.encoder_variables(model))
        out[f"{name}.eval"] = model(pictures, training=False).numpy()
        out[f"{name}.train"] = model(pictures, training=True).numpy()
        print(name, {key: value.std(0).mean() for key, value in out.items() if key.startswith(name + ".")})
    return out


def counts():
    """Trainable parameters; graphs allocate none."""
    found = {}
    for depth in (18, 34, 50, 101, 152, 200):
        for width in (1, 2, 3):
            for sk in (0.0, 0.0625):
                FLAGS.sk_ratio = sk
                with tf.Graph().as_default():
                    model = resnet.resnet(resnet_depth=depth, width_multiplier=width)
                    model(tf.zeros([1, 64, 64, 3]), training=False)
                    found[f"{depth} {width} {'sk' if sk else '-'}"] = int(sum(np.prod(v.shape) for v in model.trainable_variables))
    return found


save_file(features(), GOLDEN / "official_encoders.safetensors")
(GOLDEN / "official_counts.json").write_text(json.dumps(counts(), indent=0) + "\n")
