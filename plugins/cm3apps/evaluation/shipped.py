"""The protocols that come with cm3leon, by name; and protocols of files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cm3core.errors import DataError, close_match
from cm3core.evaluation.protocol import Protocol, read_protocol
from cm3core.plugins.providers import OURS

FOLDER = Path(__file__).parent / "protocols"


def shipped() -> dict[str, Path]:
    """Name -> file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.json"))}


def find_protocol(name: str) -> Protocol:
    """A shipped protocol, or one of a file.

    Bare names of components in a shipped one, or in an unchanged copy of it, mean cm3leon's own.

    Raises:
        DataError: there is none of this name, or the file is no protocol.
    """
    if name in shipped():
        return replace(read_protocol(shipped()[name]), writer=OURS)
    path = Path(name)
    if path.suffix == ".json" or path.exists():
        read = read_protocol(path)
        own = shipped().get(read.name)
        copied = own is not None and read_protocol(own) == read
        return replace(read, writer=OURS) if copied else read
    raise DataError(
        f"protocol {name!r}", "is neither a shipped one nor a file", close_match(name, shipped())
    )
