"""Training and use of a classifier on an encoder."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _program
from ._images import Images
from ._program import StrPath, flags_of
from ._sets import as_set, labels_of, report_skipped

# Before the name of a class in the header of the program's table.
PROBABILITY_OF = "probability:"
# Columns of that table before the probabilities of all classes: path, part, class, probability.
COLUMNS = 4


@dataclass(frozen=True)
class Predictions:
    """A row an image, in the order given."""

    #: As given; the index of an image in memory.
    paths: list[str]
    #: The most probable class.
    predicted: list[str]
    #: ``[n, classes]``.
    probabilities: npt.NDArray[np.float32]
    #: Names of the columns of ``probabilities``.
    classes: list[str]


@dataclass(frozen=True)
class Classifier:
    """A file of :func:`classify`, or the folder of a fine-tuned or distilled run. Every call starts the program.

    ``device``, ``batch`` and ``threads`` as for :class:`Encoder`.
    """

    model: StrPath
    device: str | None = None
    batch: int | None = None
    threads: int | None = None

    @property
    def report(self) -> dict[str, Any]:
        """Of a file of :func:`classify`: the candidates, and accuracy, recall by class and calibration on the test part."""
        report: dict[str, Any] = json.loads(Path(self.model).with_suffix(".json").read_text(encoding="utf-8"))
        return report

    def predict(self, images: Images, *, progress: bool = False) -> Predictions:
        """Class and probabilities of every image. Images that cannot be decoded are treated as by :meth:`Encoder.embed`."""
        with as_set(images) as (data, given), tempfile.TemporaryDirectory(prefix="simclr-") as folder:
            table = os.path.join(folder, "predictions.csv")
            arguments = ["predict", os.fspath(self.model), "--data", data, "--out", table, "--labels-from", "none"]
            options = flags_of({"device": self.device, "batch": self.batch, "threads": self.threads})
            _, reports = _program.run([*arguments, *options], progress=progress)
            report_skipped(reports, given)
            with open(table, encoding="utf-8", newline="") as lines:
                header, *rows = csv.reader(lines)
        return Predictions(
            paths=[row[0] for row in rows] if given is None else given,
            predicted=[row[2] for row in rows],
            probabilities=np.array([row[COLUMNS:] for row in rows], dtype=np.float32).reshape(len(rows), -1),
            classes=[name[len(PROBABILITY_OF) :] for name in header[COLUMNS:]],
        )


def classify(
    run: StrPath,
    data: Images,
    labels: Sequence[object] | None = None,
    *,
    out: StrPath | None = None,
    only: str | None = None,
    progress: bool = True,
    **flags: object,
) -> Classifier:
    """Trains a classifier on the encoder of ``run`` and labelled images: the better one, on a hold-out, of a linear classifier and a
    fine-tuned network.

    ``data`` is a labelled set, or images with ``labels``, one an image. ``out`` is the file of the classifier (default:
    ``RUN/classifier.safetensors``), ``only`` "linear" or "fine-tuned", and ``flags`` those of ``simclr classify``:
    ``hold_out=0.2``, ``finetune_epochs=10``, ``device="cpu"``, ...
    """
    arguments = ["classify", os.fspath(run), "--json", *flags_of({"out": out, "only": only, **flags})]
    with as_set(data, labels) as (path, _):
        _program.run([*arguments, "--labels", path, *labels_of(path, labels)], progress=progress)
    return Classifier(Path(run, "classifier.safetensors") if out is None else out)
