"""Official TF2 models and the names of their variables here: see official.py for the set-up."""
import numpy as np


def pairs(layers):
    """The layers that hold variables: convolutions with fixed padding, batch norms, selective kernels."""
    return [layer for layer in layers if type(layer).__name__ in ("Conv2dFixedPadding", "BatchNormRelu", "SK_Conv2D")]


def normed(name, bn):
    kinds = {"weight": bn.gamma, "bias": bn.beta, "running_mean": bn.moving_mean, "running_var": bn.moving_variance}
    return {f"{name}.{kind}": v for kind, v in kinds.items() if v is not None}


def named(names, layers):
    """{name: variable} of layers under (convolution, batch norm) names; a selective kernel takes both names of its place."""
    found, names = {}, list(names)
    for layer in pairs(layers):
        kind = type(layer).__name__
        if kind == "Conv2dFixedPadding":
            found[f"{names[0][0]}.weight"] = layer.conv2d.kernel
        elif kind == "BatchNormRelu":
            found |= normed(names.pop(0)[1], layer.bn)
        else:
            place = names.pop(0)[0]
            found[f"{place}.conv.weight"] = layer.conv2d_fixed_padding.conv2d.kernel
            found |= normed(f"{place}.bn", layer.batch_norm_relu.bn)
            found[f"{place}.reduce.weight"] = layer.conv2d_0.kernel
            found |= normed(f"{place}.reduce_bn", layer.batch_norm_relu_1.bn)
            found[f"{place}.select.weight"] = layer.conv2d_1.kernel
    assert not names, names
    return found


def encoder_variables(resnet):
    """{name without `encoder.`: variable} of a `resnet.Resnet`."""
    stem = pairs(resnet.initial_conv_relu_max_pool)
    deep = len(stem) > 2
    found = named([("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")] if deep else [("conv1", "bn1")], stem)
    for group, blocks in enumerate(resnet.block_groups):
        for index, block in enumerate(blocks.layers):
            place = f"layer{group + 1}.{index}."
            basic = type(block).__name__ == "ResidualBlock"
            layers, shortcut = (block.conv2d_bn_layers, block.shortcut_layers) if basic else (block.conv_relu_dropblock_layers, block.projection_layers)
            found |= named([(f"{place}conv{n}", f"{place}bn{n}") for n in range(1, 3 if basic else 4)], layers)
            if shortcut:
                first = int(any(type(layer).__name__ == "AveragePooling2D" for layer in shortcut))
                found |= named([(f"{place}downsample.{first}", f"{place}downsample.{first + 1}")], shortcut)
    return found


def head_variables(head):
    """{name: variable} of a `model.ProjectionHead`."""
    found = {}
    for index, layer in enumerate(head.linear_layers):
        found[f"head.{2 * index}.weight"] = layer.dense.kernel
        found |= normed(f"head.{2 * index + 1}", layer.bn_relu.bn)
    return found


def hashed(name, shape):
    """Values of a parameter in PyTorch's layout: value i follows from a hash of (name, i), so that none need be stored. The Rust
    tests (tests/fixtures/hashed.rs) make the same."""
    k = 2166136261
    for byte in name.encode():
        k = (k ^ byte) * 16777619 % 2**32
    with np.errstate(over="ignore"):
        h = np.arange(int(np.prod(shape)), dtype=np.uint32) * np.uint32(2654435761) + np.uint32(k)
        for shift, factor in ((16, 2146121005), (15, 2221713035)):
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        h ^= h >> np.uint32(16)
    u = h.astype(np.float64) / 2**32
    if name.endswith("weight") and len(shape) > 1:  # uniform with the variance of He's initialisation
        low, high = -np.sqrt(6 / np.prod(shape[1:])), np.sqrt(6 / np.prod(shape[1:]))
    elif name.endswith((".bn2.weight", ".bn3.weight")):  # residual branches are small, so that depth does not amplify rounding
        low, high = 0.1, 0.3
    else:
        low, high = {"weight": (0.5, 1.0), "bias": (-0.2, 0.2), "running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}.get(name.rsplit(".", 1)[-1], (-0.2, 0.2))
    return (low + (high - low) * u).astype(np.float32).reshape(shape)


def layout(shape):
    """Shape in PyTorch's layout, and the order of its axes in TensorFlow's."""
    shape = tuple(shape)
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1]), (2, 3, 1, 0)
    return (shape[1], shape[0]), (1, 0) if len(shape) == 2 else (0,)


def assign(variables):
    """Gives every variable its hashed values."""
    for name, variable in variables.items():
        if len(variable.shape) == 1:
            variable.assign(hashed(name, tuple(variable.shape)))
        else:
            shape, axes = layout(variable.shape)
            variable.assign(hashed(name, shape).transpose(axes))


def images(count, size):
    """Images [count, size, size, 3] in [0, 1]: per image and channel a brightness and a slope along each axis, plus noise."""
    u = lambda name, *shape: hashed(f"{name}.running_var", shape).astype(np.float64) - 0.5
    colors, noise = u("colors", count, 3, 3, 1, 1), u("noise", count, 3, size, size)
    at = np.arange(size) / size
    picture = 0.4 * colors[:, :, 0] + 0.3 * colors[:, :, 1] * at[:, None] + 0.3 * colors[:, :, 2] * at + 0.3 * noise
    return np.clip(picture, 0, 1).astype(np.float32).transpose(0, 2, 3, 1)
