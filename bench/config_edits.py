"""Random edits of a configuration, each run by the program on 32 tiny images: exit code 0 or 2, in at most 2 s (idle machine), with at most
1 GiB. Edits are functions of the seed.

usage: bench/config_edits.py [COUNT] [SEED]   (300 0; SIMCLR is the program, target/release/simclr by default)
"""

import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VALUES = ["-1", "0", "1", "3", "1e300", "-1e18", "1e-300", "9223372036854775807", "4294967296", "nan", "inf", "true", '""', '"adamw"', '"auto"', "[]",
          "[1, 2]", "[[0.0, 24]]", "{}", "0.5", '"\\u0000"', "1979-05-27"]
SIMCLR = os.environ.get("SIMCLR", "target/release/simclr")


def edited(text, draw):
    """`text` with one to three lines changed, doubled, removed or damaged."""
    lines = text.split("\n")
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        kind = draw.randrange(6)
        if kind < 3 and "=" in lines[at]:
            lines[at] = re.sub("=.*", "= " + draw.choice(VALUES).replace("\\", "\\\\"), lines[at])
        elif kind == 3:
            lines.insert(at, draw.choice(lines))
        elif kind == 4:
            lines.pop(at)
        elif lines[at]:
            cut = draw.randrange(len(lines[at]))
            lines[at] = lines[at][:cut] + chr(draw.randrange(1, 256)) + lines[at][cut + 1:]
        lines = lines or [""]
    return "\n".join(lines)


def main():
    count, seed = (int(text) for text in (sys.argv[1:] + ["300", "0"][len(sys.argv) - 1:]))
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        for number in range(32):
            folder = work / "images" / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.ppm").write_bytes(b"P6 16 16 255 " + random.Random(number).randbytes(768))
        written = subprocess.run([SIMCLR, "pretrain", "--data", work / "images", "--run", work / "seed", "--epochs", "1", "--set", "encoder.name=conv-c3",
                                  "encoder.width=0.25", "train.image_size=16", "train.batch=16", "train.threads=1", "data.threads=1"], capture_output=True)
        assert written.returncode == 0, written.stderr.decode()
        whole = (work / "seed/config.toml").read_text()
        codes, slowest = {}, (0.0, 0)
        for number in range(count):
            (work / "edited.toml").write_text(edited(whole, random.Random(f"{seed}-{number}")))
            begin = time.monotonic()
            done = subprocess.run([SIMCLR, "pretrain", "--config", work / "edited.toml", "--run", work / f"run-{number}"], capture_output=True, timeout=60)
            slowest = max(slowest, (time.monotonic() - begin, number))
            codes[done.returncode] = codes.get(done.returncode, 0) + 1
            if done.returncode not in (0, 2) or b"panicked" in done.stderr:
                print(f"edit {number}: exit code {done.returncode}\n{(work / 'edited.toml').read_text()}\n{done.stderr.decode(errors='replace')}")
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"{count} edits: exit codes {codes}, slowest {slowest[0]:.2f} s (edit {slowest[1]}), largest resident set {memory:.0f} MiB")
        return 0 if set(codes) <= {0, 2} and memory < 1024 else 1


sys.exit(main())
