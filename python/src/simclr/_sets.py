"""Images of a call as a set that the program reads."""

from __future__ import annotations

import csv
import filecmp
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import _images
from ._images import Images
from ._program import SimclrError

# Table of labels next to images in memory.
LABELS = "labels.csv"


@contextmanager
def as_set(
    images: Images, labels: Sequence[object] | None = None
) -> Iterator[tuple[str, list[str] | None]]:
    """A path for ``--data``, and the names of images that are no set on disk: paths as given, or indices."""
    if _images.is_path(images):
        if labels is not None:
            raise SimclrError("labels of a set on disk", "expected images and labels, or a set that has labels")
        yield os.fspath(images), None  # type: ignore[arg-type]
        return
    with tempfile.TemporaryDirectory(prefix="simclr-") as folder:
        files = _images.write(images, Path(folder))
        names = _images.names(images, len(files))
        if labels is not None:
            _write_labels(files, labels, Path(folder, LABELS))
        try:
            yield folder, names
        except SimclrError as error:
            raise error.with_names(folder, names) from None


def labels_of(data: str, labels: Sequence[object] | None) -> list[str]:
    """Arguments that name the labels of :func:`as_set`."""
    return [] if labels is None else ["--labels-from", os.path.join(data, LABELS)]


def report_skipped(reports: Sequence[str], given: list[str] | None) -> None:
    """Images without a row are an error, and in a set on disk warnings in the code that called the caller."""
    skipped = [report for report in reports if report.startswith("skipped: ")]
    if skipped and given is not None:
        raise SimclrError("\n".join([f"{len(skipped)} of {len(given)} images cannot be decoded", *skipped]))
    for report in skipped:
        warnings.warn(report, stacklevel=3)


def _write_labels(files: list[Path], labels: Sequence[object], table: Path) -> None:
    if len(labels) != len(files):
        raise SimclrError(f"{len(labels)} labels of {len(files)} images")
    with table.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["path", "label"])
        rows.writerows((file.name, label) for file, label in zip(files, labels))


def kept(data: Images, folder: Path, resume: bool) -> str:
    if _images.is_path(data):
        return os.fspath(data)  # type: ignore[arg-type]
    if resume and folder.exists():
        with tempfile.TemporaryDirectory(prefix="simclr-") as fresh:
            names = [file.name for file in _images.write(data, Path(fresh))]
            same, _, _ = filecmp.cmpfiles(fresh, folder, names, shallow=False)
        if len(same) != len(names) or len(same) != len(os.listdir(folder)):
            raise SimclrError(f"{folder} holds other images", "resume a run with the images that it was started with")
    else:
        folder.mkdir(parents=True)
        _images.write(data, folder)
    return str(folder)
