"""Runs enter no more files than docs/architecture.md says, and its table is not out of date."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import pytest
from walks import WALKS, begin, walk

from cm3core.errors import MissingPackageError, close_match

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
#: Walk -> files, crossings.
STATED = {
    name: (int(files), int(crossings.replace(",", "")))
    for name, files, crossings in re.findall(
        r"^\| (\w+): [^|]* \| (\d+) \| ([\d,]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
}


def test_every_walk_is_stated() -> None:
    assert list(STATED) == list(WALKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", WALKS)
def test_a_walk_is_no_longer_than_stated(name: str) -> None:
    files, crossings = STATED[name]
    found = walk(name)
    assert files - 3 <= len(found["files"]) <= files, found["files"]
    assert found["crossings"] <= 1.1 * crossings


def test_a_trace_counts_functions_and_no_imports() -> None:
    """By hand: one function of one file; a module that is imported meanwhile enters nothing."""
    sys.modules.pop("cm3run.npy", None)
    trace = begin()
    try:
        close_match("before", ["it counts"])
        with trace.counting():
            import cm3run.npy  # noqa: F401  # entering nothing

            MissingPackageError.extra("a place", "a package", "an extra")
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert {Path(file).name for file in trace.files} == {"errors.py"}
    assert trace.crossings == 0
