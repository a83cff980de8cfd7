"""Adds the unpacked release archive at SIMCLR_TREE to the wheel, and the platform of its libraries to the tag."""

import os
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Recipes, documentation and pages of the manual stay in the archive: the program prints them.
PARTS = ("bin", "lib", "licences", "sbom.cdx.json", "LICENSE-MIT", "LICENSE-APACHE")


class Program(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "editable":
            return
        tree = Path(os.environ["SIMCLR_TREE"])
        for part in PARTS:
            build_data["force_include"][str(tree / part)] = f"simclr/program/{part}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{os.environ['SIMCLR_PLATFORM']}"
