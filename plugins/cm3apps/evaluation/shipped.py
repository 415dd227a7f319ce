"""The protocols that come with cm3leon, by name; and protocols of files."""

from __future__ import annotations

from pathlib import Path

from cm3core.errors import DataError, close_match
from cm3core.evaluation.protocol import Protocol, read_protocol

FOLDER = Path(__file__).parent / "protocols"


def shipped() -> dict[str, Path]:
    """Name -> file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.json"))}


def find_protocol(name: str) -> Protocol:
    """A shipped protocol, or one of a file.

    Raises:
        DataError: there is none of this name, or the file is no protocol.
    """
    if name in shipped():
        return read_protocol(shipped()[name])
    path = Path(name)
    if path.suffix == ".json" or path.exists():
        return read_protocol(path)
    raise DataError(
        f"protocol {name!r}", "is neither a shipped one nor a file", close_match(name, shipped())
    )
