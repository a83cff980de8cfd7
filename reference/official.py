"""The official code of SimCLR (google-research/simclr, directory tf2), imported as it is from a checkout.

    git clone https://github.com/google-research/simclr CHECKOUT     (HEAD is 383d414)
    pip install tensorflow-cpu==2.21.0 tf_keras==2.21.0 absl-py numpy pillow safetensors
    python reference/official_optim.py CHECKOUT                      (and the other official_*.py)

Nothing of it is copied: the scripts call its functions and write down numbers.
"""
import os, pathlib, sys, types

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # the official code is written for Keras 2
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

CRATES = pathlib.Path(__file__).parent.parent / "crates"


def load(checkout):
    """Makes its modules importable and reads its flags' defaults; returns `FLAGS`."""
    sys.modules["tensorflow_datasets"] = types.ModuleType("tensorflow_datasets")  # imported at its top, used by training only
    sys.path.insert(0, str(pathlib.Path(checkout) / "tf2"))
    import run  # defines the flags  # noqa: F401
    from absl import flags

    flags.FLAGS(["run.py", "--model_dir=/nowhere"])
    return flags.FLAGS
