"""Tensors of a checkpoint that several processes wrote, each its own part: torch.distributed.checkpoint
(DCP) with its safetensors storage, so that no file is a pickle.

    OUT/checkpoints/step-00001000/
        model_shards/shard-00001-model-00001-of-00001.safetensors ...
        optimizer_shards/...

They take the place of `model.safetensors` and `optimizer.safetensors`. Any number of processes reads
them, each the parts that it needs, and one process whole tensors. DCP is imported when parts are read or
written: generation from a file needs none of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3run.checkpoint.hashes import file_hashes
from cm3run.checkpoint.layout import damaged, shards_of
from cm3run.processes import Processes, is_lost


def write_shards(
    folder: Path, name: str, tensors: Mapping[str, Tensor], processes: Processes, target: Path
) -> dict[str, dict[str, str | int]]:
    """Write this process's part of tensors; called by all at once.

    Args:
        folder: the checkpoint's, made.
        name: of the file that one process would write.
        tensors: divided ones, or the same in all processes.
        processes: those that write.
        target: where the checkpoint will be, for errors.

    Returns:
        `CheckpointState.files` of the parts of all.

    Raises:
        CheckpointError: a process can't write its part; raised in all.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    place = folder / shards_of(name)
    processes.first(lambda: place.mkdir(exist_ok=True))
    try:
        with _quiet():
            save(
                dict(tensors),
                storage_writer=HuggingFaceStorageWriter(str(place), save_distributed=True),
                process_group=processes.group,
            )
    except CheckpointException as error:
        rank, failure = min(error.failures.items())
        cause = failure[0]
        if is_lost(cause):  # it ended
            raise RuntimeError(str(cause)) from error
        raise CheckpointError(
            str(target),
            f"process {rank} of {processes.world_size} can't write its part ({cause}); older "
            "checkpoints are as they were",
            "free space on that disk, then start the same command again: it resumes from the "
            "newest checkpoint",
        ) from error
    own = sorted(place.glob(f"shard-{processes.rank + 1:05d}-*"))
    files: dict[str, dict[str, str | int]] = {}
    for part in processes.all_of(
        file_hashes(folder, [f"{place.name}/{path.name}" for path in own])
    ):
        files |= part
    return files


def stored_sizes(place: Path) -> dict[str, tuple[list[int], torch.dtype]]:
    """Shape and dtype of each tensor in a folder of safetensors files, parts put together.

    Raises `CheckpointError` where a file can't be read.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    with _readable(place):
        found = HuggingFaceStorageReader(str(place)).read_metadata().state_dict_metadata
        return {
            name: (list(cast(Any, one).size), cast(Any, one).properties.dtype)
            for name, one in found.items()
        }


def read_into(place: Path, targets: dict[str, Tensor], processes: Processes | None = None) -> None:
    """Fill tensors, whole or divided, from a folder of safetensors files.

    Args:
        place: the folder, of parts or of whole tensors.
        targets: name -> tensor of the stored shape.
        processes: those that call at once; None: this one alone.

    Raises:
        CheckpointError: a file can't be read.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    group = None if processes is None else processes.group
    with _readable(place), _quiet():
        load(
            cast(dict[str, Any], targets),
            storage_reader=HuggingFaceStorageReader(str(place)),
            process_group=group,
            no_dist=group is None,
        )


def read_shards(place: Path) -> dict[str, Tensor]:
    """All tensors of a folder of parts, whole."""
    sizes = stored_sizes(place)
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in sizes.items()}
    read_into(place, tensors)
    return tensors


@contextmanager
def _readable(place: Path) -> Iterator[None]:
    """Whatever DCP raises of a file that is cut off or made up is an error of the checkpoint."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        cause = min(error.failures.items())[1][0]
        if is_lost(cause):
            raise RuntimeError(str(cause)) from error
        raise damaged(place, f"can't be read ({cause})") from error
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AssertionError) as error:
        raise damaged(place, f"can't be read ({error})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns that one process is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
