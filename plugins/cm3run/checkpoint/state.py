"""What `state.json` holds: a run's counters, its place in the data, and what ids mean."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cm3core.errors import CheckpointError
from cm3core.files import read_text
from cm3run.checkpoint.layout import STATE, damaged

FORMAT = 1
#: Of a checkpoint whose tensors several processes wrote in parts.
SHARDED_FORMAT = 2

#: Steps, seconds and tokens above it can't be stored as int64, and no run has them.
MAX_COUNT = 2**63 - 1

#: Lists and objects within each other that `state.json` may have; ours has four.
MAX_DEPTH = 8

_NESTED = "can't be read (it is nested too deeply)"


@dataclass
class CheckpointState:
    """What `state.json` holds.

    Args:
        step: optimiser steps done.
        elapsed_s: seconds of training so far, over all sittings.
        tokens: tokens trained on so far (weights above zero).
        loader: `BatchLoader.state_dict()`.
        vocabulary: `Vocabulary.to_dict()`.
        fingerprints: `Components.fingerprints()`, and "dataset" for the training data.
        loss_sums: [G][2] sums of losses and weights since the last metrics record, so that the next
            one is that of an uninterrupted run; empty in checkpoints from before they were kept.
        max_spans: most masked spans of a sequence that its objective makes, for whoever generates
            without that objective; None in checkpoints from before it was kept.
        files: name of a tensor file -> its "sha256" and "bytes"; empty in checkpoints from before
            they were kept.
        base: the model that training started from: its "model" (an absolute path, or
            "PLUGIN:NAME") and its weights' "sha256"; empty where it started from random weights, and
            in checkpoints from before it was kept.
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


def read_state(folder: Path) -> CheckpointState:
    """Parse and check `state.json`."""
    path = folder / STATE
    types: dict[str, type | tuple[type, ...]] = {
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
    try:
        values = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise damaged(path, f"can't be read ({error})") from error
    except RecursionError as error:
        raise damaged(path, _NESTED) from error
    if not _is_shallow(values, MAX_DEPTH):
        raise damaged(path, _NESTED)
    if isinstance(values, dict):
        values.setdefault("loss_sums", [])
        values.setdefault("max_spans", None)
        values.setdefault("files", {})
        values.setdefault("base", {})
    if not isinstance(values, dict) or any(
        not isinstance(values.get(name), kind) or isinstance(values[name], bool)
        for name, kind in types.items()
    ):
        raise damaged(path, "is not a checkpoint's state")
    for name in ("step", "elapsed_s", "tokens"):
        # a whole number is finite, and may be too large for a float
        value = values[name]
        if not (isinstance(value, int) or math.isfinite(value)) or not 0 <= value <= MAX_COUNT:
            raise damaged(path, f"has a {name} that can't be: {str(value)[:40]}")
    spans = values["max_spans"]
    if spans is not None and not 0 <= spans <= MAX_COUNT:
        raise damaged(path, f"has a max_spans that can't be: {str(spans)[:40]}")
    if values["format"] < 1:
        raise damaged(path, f"has a format that can't be: {values['format']}")
    for name, file in values["files"].items():
        if (
            not isinstance(file, dict)
            or type(file.get("bytes")) is not int
            or type(file.get("sha256")) is not str
        ):
            raise damaged(path, f"holds no size and SHA-256 of the file {name!r}")
    base = values["base"]
    if base and {key: type(value) for key, value in base.items()} != {"model": str, "sha256": str}:
        raise damaged(path, "holds no name and SHA-256 of the model that it started from")
    if values["format"] > SHARDED_FORMAT:
        raise CheckpointError(
            str(path),
            f"has format {values['format']}, this version reads {SHARDED_FORMAT}",
            "use a newer cm3leon",
        )
    return CheckpointState(**{item.name: values[item.name] for item in fields(CheckpointState)})


def _is_shallow(value: object, depth: int) -> bool:
    """Whether at most `depth` lists and objects lie within each other; deeper ones would end Python's
    recursion as soon as one is compared or printed."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return True
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in value)
