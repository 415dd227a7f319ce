"""Hashes of a checkpoint's tensor files, which tell a bit that flipped on a disk or in a copy from a
weight: `state.json` holds them, and whoever reads a file has it checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3run.checkpoint.layout import damaged
from cm3run.checkpoint.state import CheckpointState

#: Bytes of a file that is hashed whenever it is read; of a larger one, only the size is compared.
MAX_HASHED = 2 << 30


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, dict[str, str | int]]:
    """`CheckpointState.files` of files that are written."""
    return {
        name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
    }


def check_file(folder: Path, name: str, state: CheckpointState, *, whole: bool = False) -> None:
    """Raise `CheckpointError` when a file is not what was written. A file without a hash (of an older
    checkpoint) passes.

    Args:
        folder: the checkpoint.
        name: the file.
        state: the checkpoint's.
        whole: hash the file, however large it is.
    """
    written = state.files.get(name)
    if written is None:
        return
    path = folder / name
    try:
        num_bytes = path.stat().st_size
        same_size = num_bytes == written["bytes"]
        hashed = same_size and (whole or num_bytes <= MAX_HASHED)
        same_hash = not hashed or sha256_file(path) == written["sha256"]
    except OSError as error:
        raise damaged(path, f"can't be read ({error})") from error
    if not same_size or not same_hash:
        what = (
            "its SHA-256 differs"
            if same_size
            else f"it has {num_bytes:,} bytes instead of {written['bytes']:,}"
        )
        raise CheckpointError(
            str(path),
            f"is not what was written: {what}",
            "use an older checkpoint, or copy it again from where it came",
        )
