"""Contrastive pretraining of image encoders (SimCLR).

Images are a path to a set (folder, tar shards, parquet, IDX, CIFAR), a list of image files, of arrays ``[H, W]`` or ``[H, W, C]``,
or of PIL images, or one array ``[N, H, W]`` or ``[N, H, W, C]``.
"""

from ._classifier import Classifier, Predictions, classify
from ._encoder import Encoder, embed, evaluate, pretrain
from ._images import Images
from ._program import SimclrError, version

__all__ = [
    "Classifier",
    "Encoder",
    "Images",
    "Predictions",
    "SimclrError",
    "classify",
    "embed",
    "evaluate",
    "pretrain",
]
__version__ = version()
