"""Training and use of an encoder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from . import _program
from ._images import Images
from ._program import StrPath, flags_of, settings_of
from ._sets import as_set, kept, labels_of, report_skipped

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
        with as_set(images) as (data, given), tempfile.TemporaryDirectory(prefix="simclr-") as folder:
            table = Path(folder, "h.npy")
            arguments = ["embed", os.fspath(self.run), "--data", data, "--out", str(table), "--layer", layer]
            _, reports = _program.run([*arguments, *self._options()], progress=progress)
            report_skipped(reports, given)
            h: Features = np.load(table)
            names = Path(f"{table}.paths.txt").read_text(encoding="utf-8").split("\n")[:-1]
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
        arguments += settings_of(settings)
        if data is None:
            output, _ = _program.run(arguments, progress=progress)
        else:
            with as_set(data, labels) as (path, _):
                table = labels_of(path, labels)
                output, _ = _program.run([*arguments, "--data", path, *table], progress=progress)
        results: dict[str, Any] = json.loads(output)
        return results

    def _options(self) -> list[str]:
        return flags_of({"device": self.device, "batch": self.batch, "threads": self.threads})


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
    arguments = ["pretrain", "--run", os.fspath(run), *flags_of({"recipe": recipe, "config": config, **flags})]
    arguments += ["--resume=auto"] if resume else []
    arguments += ["--data", kept(data, Path(f"{os.fspath(run)}.images"), resume), *settings_of(settings)]
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


def _encoder(run: StrPath, options: dict[str, Any]) -> tuple[Encoder, dict[str, Any]]:
    own = {name: options.pop(name) for name in ("device", "batch", "threads") if name in options}
    return Encoder(run, **own), options
