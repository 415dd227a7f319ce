"""The files of a checkpoint: their names and places, `state.json`, and the integrity of tensor files.

`state.json` contains a run's counters, its position in the data, and the meaning of ids. It also has hashes of the
tensor files, which are checked on reading to detect bits flipped on disk or in a copy.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from cm3core.arguments import Count, CountOrZero, Range
from cm3core.errors import CheckpointError, DataError
from cm3core.files import read_text, sha256_file
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3core.plugins.registry import COMPONENTS, PLUGINS
from cm3core.recipe.layers import STORED
from cm3run.json_text import check_form, parse_json

__all__ = [
    "COMPONENTS",
    "IMAGE_TOKENIZER",
    "OPTIMIZER",
    "PLUGINS",
    "PROVENANCE",
    "RECIPE",
    "STATE",
    "TOKENIZER",
    "WEIGHTS",
    "WORDS",
    "complete_checkpoints",
    "damaged",
    "find_checkpoint",
    "latest_checkpoint",
    "provenance_file",
    "shards_of",
]

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
RECIPE = STORED
#: Licences of the data for training and retrieval; beside a run's checkpoints, or in an exported model.
PROVENANCE = "provenance.json"
#: The words of the training texts, one per line.
WORDS = "words.txt"
#: Folder of a checkpoint's text tokenizer; the image tokenizer's has the same name as in a memory bank.
TOKENIZER = "text_tokenizer"


def shards_of(name: str) -> str:
    """The folder for the parts of a tensor file written by several processes.

    >>> shards_of(WEIGHTS)
    'model_shards'
    """
    return f"{name.removesuffix('.safetensors')}_shards"


def complete_checkpoints(out_dir: str | Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    folders = (Path(out_dir) / "checkpoints").glob("step-*")
    return sorted(
        path
        for path in folders
        if re.fullmatch(r"step-\d{8,}", path.name) and (path / STATE).is_file()
    )


def latest_checkpoint(out_dir: str | Path) -> Path | None:
    """A run's newest complete checkpoint; None if it has none."""
    return max(
        complete_checkpoints(out_dir),
        key=lambda path: int(path.name.removeprefix("step-")),
        default=None,
    )


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint or model folder for `path`: itself, or a run's newest. Raises
    `CheckpointError`."""
    folder = Path(path)
    if (folder / STATE).is_file():
        return folder
    if (newest := latest_checkpoint(folder)) is not None:
        return newest
    if (kind := _hugging_face_type(folder)) is not None:
        raise CheckpointError(
            str(folder),
            f"is a Hugging Face model ({kind}), not one of this framework's",
            f"convert it: cm3 convert {shlex.quote(str(folder))} -o {shlex.quote(folder.absolute().name + '-cm3')} "
            "--to cm3 (docs/models.md lists the models that can be converted)",
        )
    cause = (
        "contains no checkpoint and no model"
        if folder.is_dir()
        else "does not exist"
        if not folder.exists()
        else "is a file"
    )
    raise CheckpointError(
        str(folder),
        cause,
        "name a run's folder (cm3 train -o), one of its checkpoints, or an exported model",
    )


def _hugging_face_type(folder: Path) -> str | None:
    """The model type stated in a folder of Hugging Face's format; None: another format."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        values = parse_json(read_text(path), str(path))
    except (OSError, ValueError):
        return None
    kind = values.get("model_type") if isinstance(values, dict) else None
    return kind if isinstance(kind, str) and kind.isprintable() else None


def provenance_file(folder: Path) -> Path | None:
    """The licence file of an exported model, or of a checkpoint's run; None if there is none."""
    run = [folder.parent.parent] if folder.parent.name == "checkpoints" else []
    return next(
        (place / PROVENANCE for place in (folder, *run) if (place / PROVENANCE).is_file()), None
    )


def damaged(path: Path, cause: str) -> CheckpointError:
    """The error for an unusable file in a checkpoint."""
    return CheckpointError(
        str(path),
        cause,
        f"delete {path.parent} to use the previous checkpoint, or copy it again from its source",
    )


FORMAT = 1
#: Format of a checkpoint whose tensors were written in parts by several processes.
SHARDED_FORMAT = 2

#: Largest steps, seconds and tokens: the maximum of int64, beyond any real run.
MAX_COUNT = 2**63 - 1


@dataclass
class CheckpointState:
    """The contents of `state.json`.

    Args:
        step: optimiser steps done.
        elapsed_s: seconds of training so far, including earlier sessions.
        tokens: tokens trained on so far (with loss weights above zero).
        loader: `BatchLoader.state_dict()`.
        vocabulary: `Vocabulary.to_dict()`.
        fingerprints: `Components.fingerprints()`, and "dataset" for the training data.
        loss_sums: [G][2] sums of losses and weights since the last metrics record, so that a resumed run
            logs the same next record as an uninterrupted one; empty in older checkpoints.
        max_spans: maximum number of masked spans per sequence that its objective makes, needed for generation
            without that objective; None in older checkpoints.
        files: name of a tensor file -> its "sha256" and "bytes"; empty in older checkpoints.
        base: the model that training started from: its "model" (an absolute path, or
            "PLUGIN:NAME") and its weights' "sha256"; empty if it started from random weights, and
            in older checkpoints.
    """

    step: int
    elapsed_s: float = 0.0
    tokens: int = 0
    loader: dict[str, Any] = field(default_factory=dict)
    vocabulary: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    loss_sums: list[list[float]] = field(default_factory=list)
    max_spans: int | None = None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


_Count = Annotated[int, Range(0, MAX_COUNT)]


class _File(TypedDict):
    bytes: CountOrZero
    sha256: str


class _Base(TypedDict, total=False):
    model: str
    sha256: str


class _Form(TypedDict):
    """`state.json`."""

    step: _Count
    elapsed_s: Annotated[float, Range(0, MAX_COUNT)]
    tokens: _Count
    loader: dict[str, Any]
    vocabulary: dict[str, Any]
    fingerprints: dict[str, Any]
    loss_sums: NotRequired[list[list[float]]]
    max_spans: NotRequired[_Count | None]
    files: NotRequired[dict[str, _File]]
    base: NotRequired[_Base]
    format: Count


def read_state(folder: Path) -> CheckpointState:
    """Parse and check `state.json`."""
    path = folder / STATE
    try:
        values = parse_json(read_text(path), str(path))  # losses may be no numbers
        check_form(values, _Form, str(path))
    except DataError as error:
        raise damaged(path, f"is not a checkpoint's state ({error.cause})") from error
    except (OSError, ValueError) as error:
        raise damaged(path, f"can't be read ({error})") from error
    if values.get("base") and set(values["base"]) != {"model", "sha256"}:
        raise damaged(path, "lacks the name and SHA-256 of the model that it started from")
    if values["format"] > SHARDED_FORMAT:
        raise CheckpointError(
            str(path),
            f"has format {values['format']}, but this version reads {SHARDED_FORMAT}",
            "use a newer cm3leon",
        )
    known = {item.name for item in fields(CheckpointState)}
    return CheckpointState(**{name: value for name, value in values.items() if name in known})


#: Files up to this size are hashed whenever they are read; of larger ones, only the size is compared.
MAX_HASHED = 2 << 30


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, dict[str, str | int]]:
    """`CheckpointState.files` for files being written."""
    return {
        name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
    }


def check_file(folder: Path, name: str, state: CheckpointState, *, whole: bool = False) -> None:
    """Raise `CheckpointError` if a file differs from what was written. Files without a stored hash (in older
    checkpoints) pass.

    Args:
        folder: the checkpoint.
        name: the file.
        state: the checkpoint's.
        whole: hash the file regardless of its size.
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
            f"has changed since it was written: {what}",
            "use an older checkpoint, or copy it again from its source",
        )
