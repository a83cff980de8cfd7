"""Training and use of an encoder."""

from __future__ import annotations

import csv
import filecmp
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, overload

import numpy as np
import numpy.typing as npt

from . import _images, _program
from ._images import Images
from ._program import SimclrError

StrPath = Union[str, "os.PathLike[str]"]
Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoder:
    """The encoder of a run folder. Every call starts the program, so give it all images at once.

    ``device`` ("auto", "cpu" or "cuda"), ``batch`` (images per forward pass) and ``threads`` are those of the run and of the
    program unless set.
    """

    run: StrPath
    device: str | None = None
    batch: int | None = None
    threads: int | None = None

    @overload
    def embed(
        self, images: Images, *, paths: Literal[False] = False, layer: str = "h", progress: bool = False
    ) -> Features: ...

    @overload
    def embed(
        self, images: Images, *, paths: Literal[True], layer: str = "h", progress: bool = False
    ) -> tuple[Features, list[str]]: ...

    def embed(
        self, images: Images, *, paths: bool = False, layer: str = "h", progress: bool = False
    ) -> Features | tuple[Features, list[str]]:
        """Features ``[n, F]``, float32, a row an image; with ``paths`` also the name of the image of each row.

        ``layer`` is "h", "z" (the projection) or "head.K". An image that cannot be decoded is an error in a list or an array. In a
        set it has no row and there is a warning, up to the share of bad images that the run allows.
        """
        with _as_set(images) as (data, given), tempfile.TemporaryDirectory(prefix="simclr-") as folder:
            table = Path(folder, "h.npy")
            arguments = ["embed", os.fspath(self.run), "--data", data, "--out", str(table), "--layer", layer]
            _, reports = _program.run([*arguments, *self._options()], progress=progress)
            skipped = [report for report in reports if report.startswith("skipped: ")]
            if skipped and given is not None:
                raise SimclrError("\n".join([f"{len(skipped)} of {len(given)} images cannot be decoded", *skipped]))
            h: Features = np.load(table)
            names = Path(f"{table}.paths.txt").read_text(encoding="utf-8").split("\n")[:-1]
        for report in skipped:
            warnings.warn(report, stacklevel=2)
        return (h, names if given is None else given) if paths else h

    __call__ = embed

    def evaluate(
        self,
        data: Images | None = None,
        labels: Sequence[object] | None = None,
        *,
        protocols: Sequence[str] = (),
        settings: Mapping[str, object] | None = None,
        progress: bool = False,
    ) -> dict[str, Any]:
        """kNN and linear classifiers on frozen features, with controls: the results that ``simclr evaluate --json`` prints.

        ``data`` is a labelled set (default: that of the run), or images with ``labels``, one an image.
        """
        arguments = ["evaluate", os.fspath(self.run), "--json", *self._options()]
        arguments += [item for protocol in protocols for item in ("--protocols", protocol)]
        arguments += _set(settings or {})
        if data is None:
            output, _ = _program.run(arguments, progress=progress)
        else:
            with _as_set(data, labels) as (path, _files):
                table = ["--labels-from", os.path.join(path, LABELS)] if labels is not None else []
                output, _ = _program.run([*arguments, "--data", path, *table], progress=progress)
        results: dict[str, Any] = json.loads(output)
        return results

    def _options(self) -> list[str]:
        options = {"--device": self.device, "--batch": self.batch, "--threads": self.threads}
        return [text for flag, value in options.items() if value is not None for text in (flag, str(value))]


def pretrain(
    data: Images,
    run: StrPath,
    *,
    recipe: str | None = None,
    config: StrPath | None = None,
    resume: bool = False,
    settings: Mapping[str, object] | None = None,
    progress: bool = True,
    **flags: object,
) -> Encoder:
    """Trains an encoder on images without labels and returns it; ``run`` is the run folder.

    ``recipe`` is the name of a built-in recipe, ``config`` a TOML file, ``settings`` single keys such as
    ``{"loss.temperature": 0.2}``, and ``flags`` those of ``simclr pretrain``: ``epochs=100``, ``batch=512``, ``encoder="resnet18"``,
    ``image_size=96``, ``seed=1``, ``device="cpu"``, ``init="weights.safetensors"``. ``resume`` resumes the run if it exists.
    Images in memory are written to ``RUN.images`` first, and stay there: the run refers to them.
    """
    arguments = ["pretrain", "--run", os.fspath(run)]
    for flag, value in {"recipe": recipe, "config": config, **flags}.items():
        if value is not None:
            arguments += ["--" + flag.replace("_", "-"), str(value)]
    arguments += ["--resume=auto"] if resume else []
    arguments += ["--data", _kept(data, Path(f"{os.fspath(run)}.images"), resume), *_set(settings or {})]
    _program.run(arguments, progress=progress)
    return Encoder(run)


def embed(run: StrPath, images: Images, **options: Any) -> Any:
    """``Encoder(run).embed(images)``; ``device``, ``batch`` and ``threads`` go to the encoder."""
    encoder, options = _encoder(run, options)
    return encoder.embed(images, **options)


def evaluate(
    run: StrPath, data: Images | None = None, labels: Sequence[object] | None = None, **options: Any
) -> dict[str, Any]:
    """``Encoder(run).evaluate(data, labels)``; ``device``, ``batch`` and ``threads`` go to the encoder."""
    encoder, options = _encoder(run, options)
    return encoder.evaluate(data, labels, **options)


# Table of labels next to images in memory.
LABELS = "labels.csv"


def _encoder(run: StrPath, options: dict[str, Any]) -> tuple[Encoder, dict[str, Any]]:
    own = {name: options.pop(name) for name in ("device", "batch", "threads") if name in options}
    return Encoder(run, **own), options


def _set(settings: Mapping[str, object]) -> list[str]:
    def text(value: object) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    return [item for key, value in settings.items() for item in ("--set", f"{key}={text(value)}")]


@contextmanager
def _as_set(
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


def _write_labels(files: list[Path], labels: Sequence[object], table: Path) -> None:
    if len(labels) != len(files):
        raise SimclrError(f"{len(labels)} labels of {len(files)} images")
    with table.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["path", "label"])
        rows.writerows((file.name, label) for file, label in zip(files, labels))


def _kept(data: Images, folder: Path, resume: bool) -> str:
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
