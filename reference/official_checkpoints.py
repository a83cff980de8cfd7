"""Checkpoints of the official models as TensorFlow writes them, with h and z of fixed images: see official.py for the set-up.

    python reference/official_checkpoints.py CHECKOUT fixture     (writes crates/simclr/tests/golden/official_checkpoint*)
    python reference/official_checkpoints.py CHECKOUT OUT         (writes the six variants into the folder OUT)
    python reference/official_checkpoints.py CHECKOUT OUT tf1     (adds three TF1 checkpoints)

TF2: `Model` of tf2/model.py with weights of its own initialisation (batch norms and statistics with hashed values), saved by
`tf.train.Checkpoint` and by the official `run.save` as SavedModel. TF1: the graph of resnet.py and model_util.py, with an exponential
moving average and a momentum buffer of every trainable variable. `outputs.safetensors` next to them: h and z [4, .] of hashed images
with running statistics (`ema.h`, `ema.z`: of the moving averages), and the image size.

The fixture is a training checkpoint of a ResNet-50 of width 1/16 with selective kernels and two head layers.
    SIMCLR_OFFICIAL=OUT cargo test --release --workspace --test official_checkpoints -- --ignored
compares all of OUT.
"""
import pathlib, shutil, sys, types
import official

CHECKOUT, OUT = pathlib.Path(sys.argv[1]), sys.argv[2]
import numpy as np
from safetensors.numpy import save_file
import official_models as models

# Name, depth, width, sk_ratio, head layers, output of the head, image size.
VARIANTS = [("r18-cifar", 18, 1, 0.0, 2, 128, 32), ("r18-d", 18, 1, 0.0625, 3, 128, 96), ("r18-x2", 18, 2, 0.0, 3, 64, 64),
            ("r50", 50, 1, 0.0, 3, 128, 96), ("r50-sk", 50, 1, 0.0625, 3, 128, 96), ("r50-x2-sk", 50, 2, 0.0625, 2, 128, 64)]
FIXTURE = ("fixture", 50, 1 / 16, 0.0625, 2, 16, 64)
# Name, depth, sk_ratio, head layers: of width 1/8, at 64 px. TF1 cannot build basic blocks with sk_ratio (its bug).
TF1 = [("tf1-r18", 18, 0.0, 2), ("tf1-r50", 50, 0.0, 3), ("tf1-r50-sk", 50, 0.0625, 3)]


def statistics(variables):
    """Hashed values of all batch norms, so that none is its own default."""
    models.assign({name: v for name, v in variables.items() if len(v.shape) == 1})


def save_outputs(folder, pictures, **outputs):
    out = {name: np.ascontiguousarray(value) for name, value in outputs.items()} | {"size": np.array([pictures.shape[1]])}
    save_file(out, folder / "outputs.safetensors")
    print(folder, {name: value.shape for name, value in out.items()})


def tf2(variant, folder):
    import tensorflow as tf, model as model_lib, run

    name, depth, width, sk, layers, out, size = variant
    flags = run.FLAGS
    flags.resnet_depth, flags.sk_ratio, flags.num_proj_layers, flags.proj_out_dim, flags.image_size = depth, sk, layers, out, size
    flags.use_blur = False
    flags["width_multiplier"].value = width  # an integer flag; the model takes any number
    tf.keras.backend.clear_session()  # `run.save` looks for tensors by the names of a first model
    tf.random.set_seed(3)
    model = model_lib.Model(10)
    pictures = models.images(4, size)
    model(tf.constant(pictures), training=False)
    variables = models.encoder_variables(model.resnet_model) | models.head_variables(model._projection_head)
    statistics(variables)
    h = model.resnet_model(tf.constant(pictures), training=False).numpy()
    z, _ = model(tf.constant(pictures), training=False)
    folder.mkdir(parents=True)
    step = tf.Variable(7, dtype=tf.int64)
    tf.train.Checkpoint(model=model, global_step=step).save(str(folder / "ckpt"))
    flags.model_dir = str(folder)
    run.save(model, 7)
    save_outputs(folder, pictures, h=h, z=z.numpy())


def tf1(variant, folder):
    import tensorflow.compat.v1 as tf
    from absl import flags
    tf.disable_v2_behavior()
    sys.path.insert(0, str(CHECKOUT))
    for name in ("data_util", "objective"):
        sys.modules[name] = types.ModuleType(name)
    import resnet, model_util

    name, depth, sk, layers = variant
    values = dict(global_bn=True, batch_norm_decay=0.9, se_ratio=0.0, train_mode="pretrain", fine_tune_after_block=-1, proj_head_mode="nonlinear",
                  proj_out_dim=16, ft_proj_selector=0, sk_ratio=sk, num_proj_layers=layers)
    for key, value in values.items():
        if key not in flags.FLAGS:
            {bool: flags.DEFINE_bool, float: flags.DEFINE_float, int: flags.DEFINE_integer, str: flags.DEFINE_string}[type(value)](key, value, "")
    flags.FLAGS(["x"])
    flags.FLAGS.sk_ratio, flags.FLAGS.num_proj_layers = sk, layers
    tf.reset_default_graph()
    tf.set_random_seed(3)
    pictures = models.images(4, 64)
    with tf.variable_scope("base_model"):
        h = resnet.resnet_v1(depth, 1 / 8)(tf.constant(pictures), is_training=False)
    z = model_util.projection_head(h, False)
    model_util.supervised_head(h, 10, False)
    variables, trained = tf.global_variables(), tf.trainable_variables()
    kinds = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    folder.mkdir(parents=True)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for v in variables:
            kind = kinds.get(v.op.name.rsplit("/", 1)[1])
            if kind:
                v.load(models.hashed(f"{v.op.name}.{kind}", tuple(v.shape.as_list())), session)
        average = tf.train.ExponentialMovingAverage(0.9)
        update = average.apply(trained)
        shadows = [average.average(v) for v in trained]
        slots = [tf.Variable(tf.zeros_like(v.initialized_value()), name=f"{v.op.name}/Momentum") for v in trained]
        session.run(tf.variables_initializer(shadows + slots))
        before = session.run({"h": h, "z": z})
        kept = session.run(trained)
        for v, value in zip(trained, kept):
            v.load(value * 0.9, session)
        session.run(update)
        tf.train.Saver().save(session, str(folder / "model.ckpt"), global_step=7)
        after = session.run({"h": h, "z": z})
        for v, value in zip(trained, session.run(shadows)):
            v.load(value, session)
        averaged = session.run({"h": h, "z": z})
    assert all(np.abs(before[key] - after[key]).max() > 0 for key in "hz")
    save_outputs(folder, pictures, **after, **{f"ema.{key}": value for key, value in averaged.items()})


if sys.argv[3:] == ["tf1"]:
    import os
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    for variant in TF1:
        tf1(variant, pathlib.Path(OUT) / variant[0])
else:
    official.load(CHECKOUT)
    if OUT == "fixture":
        golden = official.CRATES / "simclr/tests/golden/official_checkpoint"
        shutil.rmtree(golden, ignore_errors=True)
        tf2(FIXTURE, golden)
        shutil.rmtree(golden / "saved_model")
    else:
        for variant in VARIANTS:
            tf2(variant, pathlib.Path(OUT) / variant[0])
