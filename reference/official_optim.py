"""LARS with a supervised classifier, and the schedule, by the official code itself: see official.py for the set-up.

Writes crates/simclr/tests/golden/official_lars.json and official_schedule.json.

LARS: `model.build_optimizer` and `model.add_weight_decay` on variables that carry the official names, for ten steps of a
changing learning rate. The optimizer leaves batch norm, biases and `head_supervised` out of decay and adaptation, and
`add_weight_decay` puts the L2 term of the classifier's kernel (not of its bias) into the loss. So `with_loss_decay` are the
weights of the whole official step, `optimizer_only` those of the same gradients without that term. Parameters are float64;
gradients and starting values follow the formula of optim.py: value i of a tensor is scale * sin(phase + 0.7 i).
"""
import json, sys
import official

FLAGS = official.load(sys.argv[1])
import model, numpy as np, tensorflow as tf

STEPS, PEAK, DECAY = 10, 0.3, 1e-4
GOLDEN = official.CRATES / "simclr/tests/golden"
HEAD = "head_supervised/linear_layer/dense_3/"
PARAMS = {  # official name: (shape, role in this project, phase of the start or None for zeros)
    "resnet/conv2d_fixed_padding/conv2d/kernel": ((2, 2, 3, 2), "kernel", 0.2),
    "resnet/batch_norm_relu/sync_batch_normalization/gamma": ((4,), "norm_scale", 1.1),
    "resnet/batch_norm_relu/sync_batch_normalization/beta": ((4,), "norm_shift", None),
    "projection_head/nl_0/dense/kernel": ((4, 3), "kernel", 0.7),
    HEAD + "kernel": ((4, 3), "kernel", None),
    HEAD + "bias": ((3,), "bias", None),
}


def wave(shape, phase, scale=1.0):
    return (scale * np.sin(phase + 0.7 * np.arange(np.prod(shape), dtype=np.float64))).reshape(shape)


def lr_at(step):
    return PEAK * (1 + step) / STEPS


def gradient(at, step):
    shape = list(PARAMS.values())[at][0]
    return wave(shape, 0.5 + step + at, 0.4)


def lars(loss_decay):
    FLAGS.optimizer, FLAGS.weight_decay, FLAGS.momentum = "lars", DECAY, 0.9
    start = lambda shape, phase: np.zeros(shape) if phase is None else wave(shape, phase)
    variables = [tf.Variable(start(shape, phase), name=name) for name, (shape, _, phase) in PARAMS.items()]
    holder = type("Holder", (), {"trainable_variables": variables})()
    lr = tf.Variable(0.0, dtype=tf.float64)
    optimizer, after = model.build_optimizer(lr), []
    for step in range(STEPS):
        lr.assign(lr_at(step))
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(v * gradient(at, step)) for at, v in enumerate(variables)])
            if loss_decay:
                loss += model.add_weight_decay(holder, adjust_per_optimizer=True)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        after.append({v.name.removesuffix(":0"): v.numpy().ravel().tolist() for v in variables})
    return after


def schedule(examples, batch, epochs, warmup_epochs, scaling, base):
    FLAGS.train_batch_size, FLAGS.train_epochs, FLAGS.train_steps = batch, epochs, 0
    FLAGS.warmup_epochs, FLAGS.learning_rate_scaling = warmup_epochs, scaling
    steps = model.get_train_steps(examples)
    warmup = int(round(warmup_epochs * examples // batch))
    rate = model.WarmUpAndCosineDecay(base, examples)
    at = sorted({0, 1, warmup // 2, max(warmup - 1, 0), warmup, warmup + 1, steps // 2, 3 * steps // 4, steps - 2, steps - 1} & set(range(steps)))
    return {
        "examples": examples, "batch": batch, "epochs": epochs, "warmup_epochs": warmup_epochs, "scaling": scaling, "base": base,
        "steps": steps, "warmup_steps": warmup, "lr": [[step, float(rate(tf.constant(step, tf.float32)))] for step in at],
    }


def write(name, value):
    """One line for each key, and for each element of a list."""
    rows = lambda v: "[\n  " + ",\n  ".join(map(json.dumps, v)) + "\n ]" if isinstance(v, list) else json.dumps(v)
    lines = ",\n".join(f" {json.dumps(key)}: {rows(v)}" for key, v in value.items())
    (GOLDEN / name).write_text("{\n" + lines + "\n}\n")


params = [{"name": name, "shape": shape, "role": role, "start_phase": phase} for name, (shape, role, phase) in PARAMS.items()]
write("official_lars.json", {
    "about": "reference/official_optim.py: google-research/simclr tf2 383d414, TensorFlow " + tf.__version__,
    "formula": "value i of a tensor = scale * sin(phase + 0.7 i), row-major in the official layout; start: scale 1, phase start_phase (null: zeros); gradient of parameter k (its place in params) at step t: scale 0.4, phase 0.5 + t + k",
    "weight_decay": DECAY, "momentum": 0.9, "lr": [lr_at(step) for step in range(STEPS)], "params": params,
    "with_loss_decay": lars(True), "optimizer_only": lars(False),
})
cases = [
    (50000, 512, 1000, 10, "sqrt", 0.3), (50000, 512, 1000, 10, "linear", 1.0), (1281167, 4096, 100, 10, "linear", 0.3),
    (1281167, 4096, 800, 40, "sqrt", 0.1), (10000, 4096, 100, 10, "linear", 0.3), (10000, 256, 12, 0, "linear", 0.3),
    (1000, 512, 3, 1, "sqrt", 0.075), (1024, 256, 5, 2, "linear", 0.3),
]
write("official_schedule.json", {"about": "reference/official_optim.py: get_train_steps and WarmUpAndCosineDecay", "cases": [schedule(*case) for case in cases]})
