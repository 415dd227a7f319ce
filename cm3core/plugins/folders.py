"""Folders of files that distributions bring: recipes, weights and protocols.

A distribution names a folder of its package as a module, in the group of what is in it:

    [project.entry-points."cm3core.recipes"]        # NAME.yaml, and claims/NAME.yaml
    my_plugin = "my_package.recipes"

    [project.entry-points."cm3core.weights"]        # COMPONENT/NAME.safetensors: `weights: bundled:NAME`
    my_plugin = "my_package.weights"

    [project.entry-points."cm3core.protocols"]      # NAME.json
    my_plugin = "my_package.protocols"

Nothing of them is imported. Imports nothing heavy.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal


def folders_of(content: Literal["protocols", "recipes", "weights"]) -> dict[Path, str]:
    """Return the folders of installed distributions with this content -> the distribution's name.

    Entry points are read as text files: importing importlib.metadata takes longer than listing the recipes."""
    found: dict[Path, str] = {}
    group = f"[cm3core.{content}]"
    for points in _entry_points():
        text = points.read_text(encoding="utf-8", errors="replace")
        if group not in text:
            continue
        for line in text.partition(group)[2].partition("\n[")[0].splitlines():
            package, *rest = line.partition("=")[2].strip().split(".")
            for place in _folders(package):
                found.setdefault(place.joinpath(*rest), points.parent.name.partition("-")[0])
    return found


def _entry_points() -> Iterator[Path]:
    """The entry-point files of installed distributions; if one is in several folders, the first counts."""
    seen: set[str] = set()
    for folder in sys.path:
        for pattern in ("*.dist-info", "*.egg-info"):
            for info in sorted(Path(folder or ".").glob(f"{pattern}/entry_points.txt")):
                name = info.parent.name.partition("-")[0]
                if name not in seen:
                    seen.add(name)
                    yield info


def _folders(package: str) -> list[Path]:
    """The folders of a package, found without importing it; empty if there are none."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    places = None if spec is None else spec.submodule_search_locations
    return [Path(place) for place in places or ()]
