"""The program of this package, as a child process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, NoReturn, Union

StrPath = Union[str, "os.PathLike[str]"]

# Lines of standard error that an error without a message of the program quotes.
QUOTED = 20


class SimclrError(Exception):
    """A command failed: ``message``, ``hint`` (what to do, or ``None``) and ``exit_code`` (2: the input, 1: an internal error)."""

    def __init__(self, message: str, hint: str | None = None, exit_code: int = 2) -> None:
        super().__init__(message if hint is None else f"{message}\nhint: {hint}")
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def with_names(self, folder: str, names: list[str]) -> SimclrError:
        """Names of images in place of those of their temporary files in ``folder``, NNNNNNNN.EXTENSION."""
        files = re.escape(folder) + r"/(\d{8})\.\w+"
        message = re.sub(files, lambda found: f"image {names[int(found[1])]}", self.message)
        return SimclrError(message.replace(folder, "the given images"), self.hint, self.exit_code)


def version() -> str:
    try:
        return metadata.version("simclr")
    except metadata.PackageNotFoundError:  # a source tree on the path
        return "unknown"


def program() -> str:
    """Path of the executable: SIMCLR_PROGRAM, or the one of this package."""
    return os.environ.get("SIMCLR_PROGRAM") or str(Path(__file__).parent / "program" / "bin" / "simclr")


def main() -> NoReturn:
    """The command ``simclr``."""
    os.execv(program(), ["simclr", *sys.argv[1:]])


def flags_of(options: Mapping[str, object]) -> list[str]:
    """``--image-size 96`` for ``image_size=96``; nothing for ``None``."""
    given = [(name, value) for name, value in options.items() if value is not None]
    return [text for name, value in given for text in ("--" + name.replace("_", "-"), str(value))]


def settings_of(settings: Mapping[str, object] | None) -> list[str]:
    """``--set KEY=VALUE`` for each key of a configuration."""

    def text(value: object) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    return [item for key, value in (settings or {}).items() for item in ("--set", f"{key}={text(value)}")]


def run(arguments: Sequence[str], *, progress: bool) -> tuple[str, list[str]]:
    """Standard output, and the lines of standard error that report something about the input (``skipped:``, ``note:``).

    ``progress`` copies standard error to ``sys.stderr`` while the program runs, also in a notebook. On an interrupt the program
    writes a checkpoint before it ends.
    """
    child = subprocess.Popen(
        [program(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process only, and a second signal would end the program at once
        env={**os.environ, "SIMCLR_PARENT": str(os.getpid())},  # it ends with this process
    )
    assert child.stdout is not None and child.stderr is not None
    lines = _Lines(child.stderr, progress)
    try:
        output = child.stdout.read()
        code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    finally:
        lines.thread.join()
        child.stdout.close()
        child.stderr.close()
    if code != 0:
        raise lines.error(code)
    return output, lines.reports


class _Lines:
    """Reads standard error on a thread of its own, so that neither pipe of the program fills."""

    def __init__(self, stream: IO[str], progress: bool) -> None:
        self.last: deque[str] = deque(maxlen=QUOTED)
        self.reports: list[str] = []
        self.thread = threading.Thread(target=self._read, args=(stream, progress), daemon=True)
        self.thread.start()

    def _read(self, stream: IO[str], progress: bool) -> None:
        for line in stream:
            text = line.rstrip("\n")
            self.last.append(text)
            if text.startswith(("skipped: ", "note: ", "warning: ")):
                self.reports.append(text)
            if progress:
                print(text, file=sys.stderr)

    def error(self, code: int) -> SimclrError:
        def after(prefix: str) -> str | None:
            return next((line[len(prefix) :] for line in reversed(self.last) if line.startswith(prefix)), None)

        message = after("error: ")
        if message is None:
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            message = "\n".join([f"simclr ended with {cause}", *self.last])
        return SimclrError(message, after("hint: "), code)
