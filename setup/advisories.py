#!/usr/bin/env python3
"""Writes setup/advisories.toml: what RustSec's database holds against packages of Cargo.lock, for the test of dependencies.

usage: setup/advisories.py CLONE     (a clone of github.com/rustsec/advisory-db; a bare one will do)
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(clone, *arguments):
    return subprocess.run(["git", "-C", clone, *arguments], check=True, capture_output=True, text=True).stdout


def advisory(text):
    """The TOML block that an advisory starts with."""
    found = re.match(r"```toml\n(.*?)```", text, re.DOTALL)
    return tomllib.loads(found.group(1))


def quoted(values):
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    clone = sys.argv[1]
    commit, date = git(clone, "log", "-1", "--format=%H %cs").split()
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    packages = sorted({package["name"] for package in lock["package"] if "source" in package})
    files = git(clone, "ls-tree", "-r", "--name-only", "HEAD", "crates").splitlines()
    lines = [
        "# Written by setup/advisories.py; crates/simclr-cli/tests/dependencies.rs compares Cargo.lock with it.",
        f'database = "{commit}"',
        f'date = "{date}"',
        "packages = [",
        *(f'    "{name}",' for name in packages),
        "]",
    ]
    for path in files:
        name = path.split("/")[1]
        if name not in packages or not path.endswith(".md"):
            continue
        found = advisory(git(clone, "show", f"HEAD:{path}"))
        entry, versions = found["advisory"], found.get("versions", {})
        if "withdrawn" in entry:
            continue
        lines += [
            "",
            "[[advisory]]",
            f'id = "{entry["id"]}"',
            f'package = "{name}"',
            f'kind = "{entry.get("informational", "vulnerability")}"',
            f"patched = {quoted(versions.get('patched', []))}",
            f"unaffected = {quoted(versions.get('unaffected', []))}",
        ]
    (ROOT / "setup/advisories.toml").write_text("\n".join(lines) + "\n")


main()
