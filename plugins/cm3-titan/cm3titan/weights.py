"""torchtitan's checkpoints (DCP) read into one process, and written from one: tensors by our names, bit for bit.

Only torch is needed. DCP describes a checkpoint in a pickle, so read only checkpoints that you trust, such as your own.

    step-N/.metadata, step-N/*.distcp
        layers.0.attention.q_proj.weight ...   weights
        optimizer.state.NAME.exp_avg ...       AdamW's state
        dataloader.rows, dataloader.stream-0 ... , train_state.step ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3titan.names import HEAD, own_state, titan_name, titan_state

#: AdamW's state of a parameter.
_KEPT = ("step", "exp_avg", "exp_avg_sq")
_STEP = re.compile(r"step-(\d+)")


def newest_step(folder: Path) -> int | None:
    """The step of the newest complete checkpoint in torchtitan's folder; None: there is none."""
    steps = [
        int(found[1])
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (found := _STEP.fullmatch(path.name)) and (path / ".metadata").is_file()
    ]
    return max(steps, default=None)


@dataclass(frozen=True, eq=False)
class Stored:
    """A checkpoint of torchtitan.

    Args:
        weights: by our names.
        optimizer: "name::key" -> tensor, as in `optimizer.safetensors`; empty if it has weights only.
        loader: `RecipeLoader.state_dict()` of all processes.
        train_state: `RecipeTrainer.state_dict()`.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    loader: dict[str, Any]
    train_state: dict[str, Any]


def read_step(folder: Path, shapes: Mapping[str, torch.Size], *, tied: bool) -> Stored:
    """Read `step-N`.

    Args:
        folder: the checkpoint's.
        shapes: of the decoder's tensors, by our names.
        tied: the head is the embedding.

    Raises:
        CheckpointError: it can't be read, or is of another decoder.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        found = FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, EOFError, ValueError, RuntimeError, CheckpointException) as error:
        raise _unusable(folder, f"can't be read ({error})") from error
    _check(folder, found, shapes, tied=tied)
    weights = {titan_name(name): torch.empty(shape) for name, shape in shapes.items()}
    state = {
        f"{name}::{key}": torch.empty(() if key == "step" else shape)
        for name, shape in shapes.items()
        for key in _KEPT
        if _state_name(name, key) in found
    }
    objects: dict[str, Any] = {
        name: None
        for name, one in found.items()
        if isinstance(one, BytesStorageMetadata)
        and name.startswith(("dataloader.", "train_state."))
    }
    wanted: dict[str, Any] = {**weights, **objects}
    wanted |= {_state_name(*name.split("::")): one for name, one in state.items()}
    with catch_warnings():  # of no process group, which reading in one process needs not
        simplefilter("ignore")
        load(wanted, storage_reader=FileSystemReader(str(folder)), no_dist=True)
    return Stored(
        own_state({name: wanted[name] for name in weights}, tied=tied),
        state,
        _section(wanted, "dataloader"),
        _section(wanted, "train_state"),
    )


def _section(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    begin = f"{name}."
    return {key.removeprefix(begin): one for key, one in state.items() if key.startswith(begin)}


def _state_name(name: str, key: str) -> str:
    return f"optimizer.state.{titan_name(name)}.{key}"


def _check(
    folder: Path, found: Mapping[str, Any], shapes: Mapping[str, torch.Size], *, tied: bool
) -> None:
    """Raise `CheckpointError` unless the checkpoint has exactly these weights."""
    expected = {titan_name(name): tuple(shape) for name, shape in shapes.items()}
    stored = {
        name: tuple(one.size)
        for name, one in found.items()
        if hasattr(one, "size") and not name.startswith("optimizer.")
    }
    if tied:
        stored.pop(HEAD, None)
    for name in sorted({*expected, *stored}):
        if expected.get(name) != stored.get(name):
            has = "lacks it" if name not in stored else f"has {list(stored[name])}"
            want = "has no such tensor" if name not in expected else f"has {list(expected[name])}"
            raise _unusable(folder, f"{has} ({name}), but the recipe's decoder {want}")


def write_weights(folder: Path, weights: Mapping[str, Tensor], *, tied: bool) -> None:
    """Write a checkpoint of torchtitan with weights only, from which its trainer can start.

    Args:
        folder: a new one, such as `.../step-0`.
        weights: the decoder's, by our names.
        tied: the head is the embedding.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    state: dict[str, Any] = dict(titan_state(weights, tied=tied))
    with catch_warnings():
        simplefilter("ignore")
        save(state, storage_writer=FileSystemWriter(str(folder)), no_dist=True)


def shapes_of(names: Iterable[tuple[str, Tensor]]) -> dict[str, torch.Size]:
    """The shapes of named tensors; one with two names counts once."""
    seen: set[int] = set()
    shapes = {}
    for name, one in names:
        if id(one) not in seen:
            seen.add(id(one))
            shapes[name] = one.shape
    return shapes


def _unusable(folder: Path, cause: str) -> CheckpointError:
    return CheckpointError(
        str(folder), cause, "use a checkpoint that was made with this recipe, or an older one"
    )
