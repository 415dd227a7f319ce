"""The files of a checkpoint: their names and places, `state.json`, and the integrity of tensor files.

`state.json` contains a run's counters, its position in the data, and the meaning of ids. It also has hashes of the
tensor files, which are checked on reading to detect bits flipped on disk or in a copy.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from cm3core.errors import CheckpointError
from cm3core.files import read_text, sha256_file
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3core.plugins.registry import COMPONENTS, PLUGINS
from cm3core.recipe.layers import STORED

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
        kind = json.loads(read_text(path))["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
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

#: Maximum nesting depth of `state.json`; valid ones have four levels.
MAX_DEPTH = 8

_NESTED = "can't be read (it is nested too deeply)"


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


#: Keys of `state.json`, and the types of their values.
_TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "step": int,
    "elapsed_s": (int, float),
    "tokens": int,
    "loader": dict,
    "vocabulary": dict,
    "fingerprints": dict,
    "loss_sums": list,
    "max_spans": (int, type(None)),
    "files": dict,
    "base": dict,
    "format": int,
}


def read_state(folder: Path) -> CheckpointState:
    """Parse and check `state.json`."""
    path = folder / STATE
    try:
        values = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise damaged(path, f"can't be read ({error})") from error
    except RecursionError as error:
        raise damaged(path, _NESTED) from error
    if not _is_shallow(values, MAX_DEPTH):
        raise damaged(path, _NESTED)
    if isinstance(values, dict):
        values = {"loss_sums": [], "max_spans": None, "files": {}, "base": {}, **values}
    if not isinstance(values, dict) or any(
        not isinstance(values.get(name), kind) or isinstance(values[name], bool)
        for name, kind in _TYPES.items()
    ):
        raise damaged(path, "is not a checkpoint's state")
    _check_state(path, values)
    return CheckpointState(**{item.name: values[item.name] for item in fields(CheckpointState)})


def _check_state(path: Path, values: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` for impossible values."""
    for name in ("step", "elapsed_s", "tokens"):
        # Python integers are finite, but may be too large for a float
        value = values[name]
        if not (isinstance(value, int) or math.isfinite(value)) or not 0 <= value <= MAX_COUNT:
            raise damaged(path, f"has an impossible {name}: {str(value)[:40]}")
    spans = values["max_spans"]
    if spans is not None and not 0 <= spans <= MAX_COUNT:
        raise damaged(path, f"has an impossible max_spans: {str(spans)[:40]}")
    if values["format"] < 1:
        raise damaged(path, f"has an impossible format: {values['format']}")
    for name, file in values["files"].items():
        if (
            not isinstance(file, dict)
            or type(file.get("bytes")) is not int
            or type(file.get("sha256")) is not str
        ):
            raise damaged(path, f"lacks the size and SHA-256 of the file {name!r}")
    base = values["base"]
    if base and {key: type(value) for key, value in base.items()} != {"model": str, "sha256": str}:
        raise damaged(path, "lacks the name and SHA-256 of the model that it started from")
    if values["format"] > SHARDED_FORMAT:
        raise CheckpointError(
            str(path),
            f"has format {values['format']}, but this version reads {SHARDED_FORMAT}",
            "use a newer cm3leon",
        )


def _is_shallow(value: object, depth: int) -> bool:
    """Whether lists and objects are nested at most `depth` deep; deeper ones would exceed Python's
    recursion limit when compared or printed."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return True
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in value)


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
