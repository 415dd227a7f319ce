"""Links of a model's folder that lead out of it: a file there could be any file of the user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cm3core.interfaces.reach import READS, Reach
from cm3run.trust.endpoints import Trust, refusal


def check_links(folder: Path, trust: Trust) -> None:
    """Raise `TrustError` if a model's folder has a link that leads out of it, and may not.

    Of a checkpoint, out of its run. What the hub's client stores, links from `snapshots` to `blobs` beside
    it, is one folder.
    """
    if trust.everything or trust.own:
        return
    root, searched = _root(folder, trust), trust.inside or folder
    out = [
        Reach(READS, target, str(path.relative_to(searched)), "the link leads there")
        for path, target in _links(searched)
        if not Path(target).is_relative_to(root)
    ]
    if refused := trust.refused(out):
        raise refusal(str(folder), "", refused[:8], "or copy the file into the folder")


def _root(folder: Path, trust: Trust) -> Path:
    real = Path(os.path.realpath(folder)) if trust.inside is None else trust.inside
    hub = real.parent.name == "snapshots" and (real.parent.parent / "blobs").is_dir()
    return real.parent.parent if hub else real


def _links(folder: Path) -> Iterator[tuple[Path, str]]:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            if path.is_symlink():
                yield path, os.path.realpath(path)
