"""Names, shapes and order of torchvision's ResNet parameters and running statistics.

Run once with torch 2.11.0 and torchvision 0.26.0: python reference/resnet.py
Writes crates/simclr/tests/golden/torchvision_names.json: per network [[name, shape], ...] without the classifier and
without num_batches_tracked, which nothing computes with.
"""
import json, pathlib, torchvision

OUT = pathlib.Path(__file__).parent.parent / "crates/simclr/tests/golden/torchvision_names.json"
result = {}
for name in ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]:
    net = getattr(torchvision.models, name)()
    parameters = [[n, list(p.shape)] for n, p in net.named_parameters() if not n.startswith("fc.")]
    buffers = [[n, list(b.shape)] for n, b in net.named_buffers() if not n.endswith("num_batches_tracked")]
    result[name] = {"parameters": parameters, "buffers": buffers}
OUT.write_text(json.dumps(result, separators=(",", ":")) + "\n")
