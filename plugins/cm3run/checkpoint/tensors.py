"""Tensors of a checkpoint: a decoder's weights, the optimiser's state, and the states of torch's random generators.

Several processes each write their part of the tensors with torch.distributed.checkpoint (DCP) and its safetensors
storage, so that no file is a pickle.

    OUT/checkpoints/step-00001000/
        model_shards/shard-00001-model-00001-of-00001.safetensors ...
        optimizer_shards/...

These replace `model.safetensors` and `optimizer.safetensors`. Any number of processes can read them, each the parts
that it needs; a single process reads whole tensors. DCP is imported only for reading or writing parts: generation from
a single file does not need it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cm3core.errors import CheckpointError
from cm3run.checkpoint.layout import (
    OPTIMIZER,
    WEIGHTS,
    check_file,
    damaged,
    file_hashes,
    read_state,
    shards_of,
)
from cm3run.processes import Processes, is_divided, is_lost, own_part


def write_shards(
    folder: Path, name: str, tensors: Mapping[str, Tensor], processes: Processes, target: Path
) -> dict[str, dict[str, str | int]]:
    """Write this process's part of tensors; called by all processes together.

    Args:
        folder: the checkpoint's; exists.
        name: of the file that a single process would write.
        tensors: divided ones, or equal in all processes.
        processes: all that write.
        target: final place of the checkpoint, for errors.

    Returns:
        `CheckpointState.files` for the parts of all processes.

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
        if is_lost(cause):  # that process has ended
            raise RuntimeError(str(cause)) from error
        raise CheckpointError(
            str(target),
            f"process {rank} of {processes.world_size} can't write its part ({cause}); older "
            "checkpoints are unchanged",
            "free space on that disk, then run the same command again: it resumes from the "
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
    """Shape and dtype of each tensor in a folder of safetensors files, with parts combined.

    Raises `CheckpointError` if a file can't be read.
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
        place: the folder, with parts or whole tensors.
        targets: name -> tensor of the stored shape.
        processes: all that call together; None: only this one.

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
    """All tensors in a folder of parts, combined."""
    sizes = stored_sizes(place)
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in sizes.items()}
    read_into(place, tensors)
    return tensors


@contextmanager
def _readable(place: Path) -> Iterator[None]:
    """Turn any error of DCP for a truncated or forged file into a `CheckpointError`."""
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
    """Suppress DCP's warning that a single process is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


#: Types of floating weights; a decoder of any floating type accepts all of them.
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Their names in safetensors files.
_FORMAT = dict(zip(FLOATING, ("F16", "BF16", "F32", "F64"), strict=True))

#: Values of a tensor that are checked at once.
_CHECKED_AT_ONCE = 1 << 24

#: Name prefix of the generators' states, which are stored with the optimiser's.
_GENERATOR = "generator::"
_CPU, _CUDA = f"{_GENERATOR}cpu", f"{_GENERATOR}cuda"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; any other file (truncated, a pickle) raises
    `CheckpointError`."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        # the last two: a header with false types or sizes
        raise damaged(path, f"is not a complete safetensors file ({error})") from error
    return tensors


def stored_tensors(folder: Path, name: str, *, whole: bool = False) -> dict[str, Tensor]:
    """Tensors of a checkpoint's file, or of its parts written by several processes, checked
    against their hashes.

    Args:
        folder: the checkpoint's.
        name: of the file.
        whole: hash files regardless of their size.
    """
    parts = folder / shards_of(name)
    if (folder / name).exists() or not parts.is_dir():
        tensors = read_tensors(folder / name)
        check_file(folder, name, read_state(folder), whole=whole)
        return tensors
    state = read_state(folder)
    for file in (one for one in state.files if one.startswith(f"{parts.name}/")):
        check_file(folder, file, state, whole=whole)
    return read_shards(parts)


class Described(Protocol):
    """A tensor whose values do not matter."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...


class LazyTensor(Described, Protocol):
    """A tensor that is read when needed."""

    @property
    def read(self) -> Callable[[], Tensor]: ...


def write_tensors(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write a safetensors file, one tensor in memory at a time.

    Format: the header's length as 8 bytes, the header (JSON: type, shape and offsets of each tensor),
    the tensors' bytes without gaps (github.com/huggingface/safetensors, README, "Format").

    Raises:
        CheckpointError: a tensor does not have a floating type.
        OSError: the disk is full.
    """
    header: dict[str, Any] = {}
    place = 0
    for name, lazy in tensors.items():
        if lazy.dtype not in _FORMAT:
            raise CheckpointError(
                f"tensor {name}",
                f"holds {_in_words(lazy.dtype)}",
                "give weights of a floating type",
            )
        size = torch.Size(lazy.shape).numel() * lazy.dtype.itemsize
        header[name] = {
            "dtype": _FORMAT[lazy.dtype],
            "shape": list(lazy.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, lazy in tensors.items():
            tensor = lazy.read().contiguous()
            assert (tensor.shape, tensor.dtype) == (lazy.shape, lazy.dtype), name
            file.write(tensor.flatten().view(torch.uint8).numpy().data)


def weights_of(decoder: nn.Module) -> dict[str, Tensor]:
    """The state dict; a tensor with two names (tied embeddings) is stored once."""
    return contiguous(_unique(decoder.state_dict()))


def load_weights(decoder: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into `decoder`, in the decoder's dtype; `CheckpointError` if
    they belong to another decoder."""
    path = folder / WEIGHTS
    wanted = _unique(decoder.state_dict())
    if any(is_divided(tensor) for tensor in wanted.values()):
        fill_divided(folder, WEIGHTS, wanted)
        return
    stored = stored_tensors(folder, WEIGHTS)
    check_tensors(path, stored, wanted)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])


def check_tensors(path: Path, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` if a file's tensors don't match a decoder, or contain values
    that are not finite.

    Args:
        path: of the file.
        stored: its tensors.
        wanted: the decoder's; only names, shapes and types matter.
    """
    check_shapes(path, stored, wanted)
    for name in sorted(stored):
        check_finite(path, name, stored[name])


def check_shapes(
    path: Path, stored: Mapping[str, Described], wanted: Mapping[str, Described]
) -> None:
    """Raise `CheckpointError` if the names, shapes or types of a file's tensors don't match a decoder's."""
    for name in sorted(stored.keys() | wanted.keys()):
        have = list(stored[name].shape) if name in stored else "nothing"
        need = list(wanted[name].shape) if name in wanted else "nothing"
        if have != need:
            raise CheckpointError(
                f"{path}, tensor {name}",
                f"the file has {have}, but this decoder needs {need}",
                "use the recipe.yaml beside the weights, unchanged",
            )
        own = wanted[name].dtype
        if stored[name].dtype not in (FLOATING if own.is_floating_point else (own,)):
            raise CheckpointError(
                f"{path}, tensor {name}",
                f"is {_in_words(stored[name].dtype)}, but this decoder needs {_in_words(own)}",
                "use an older checkpoint, or copy it again from its source",
            )


def check_finite(path: Path, name: str, tensor: Tensor) -> None:
    """Raise `CheckpointError` if a file's tensor contains values that are not finite."""
    if not _is_finite(tensor):
        raise CheckpointError(
            f"{path}, tensor {name}",
            "contains values that are not finite",
            "use an older checkpoint",
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite. Checked in pieces, to save memory, by the minimum and maximum,
    which are NaN if any value is."""
    if tensor.numel() == 0:
        return True
    if not tensor.is_floating_point():
        return True
    parts = tensor.flatten().split(_CHECKED_AT_ONCE)
    return all(bool(torch.isfinite(torch.stack(part.aminmax())).all()) for part in parts)


def _in_words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _unique(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.numel() == 0
        or is_divided(tensor)
        or seen.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name) == name
    }


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors requires them: without gradients, dense."""
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def generator_states() -> dict[str, Tensor]:
    """States of torch's generators (used by dropout)."""
    states = {_CPU: torch.get_rng_state()}
    if torch.cuda.is_available():
        states[_CUDA] = torch.cuda.get_rng_state()
    return states


def read_training_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State that a run needs besides the weights to resume: the optimiser's state as passed to
    `save_checkpoint`, and the states of the random generators for `restore_generators`."""
    path = folder / OPTIMIZER
    tensors = stored_tensors(folder, OPTIMIZER)
    generators = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_GENERATOR)}
    _check_generators(generators, path)
    return tensors, generators


def read_divided_state(
    folder: Path, empty: Callable[[Iterable[str]], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`read_training_state` for processes that share the decoder: each reads its part.

    Args:
        folder: the checkpoint.
        empty: names -> tensors of the parameters' shapes, divided likewise; omits names that are not
            parameters.
    """
    sizes = stored_sizes(tensor_folder(folder, OPTIMIZER))
    names = [name for name in sizes if not name.startswith(_GENERATOR) and "::" in name]
    tensors = empty(names)
    if missing := sorted(set(names) - set(tensors)):
        raise damaged(folder / OPTIMIZER, f"{missing[0]!r} is not a parameter of this decoder")
    fill_divided(folder, OPTIMIZER, tensors, only=names)
    generators = {
        name: torch.zeros(shape, dtype=dtype)
        for name, (shape, dtype) in sizes.items()
        if name.startswith(_GENERATOR)
    }
    read_into(tensor_folder(folder, OPTIMIZER), generators)
    _check_generators(generators, folder / OPTIMIZER)
    return tensors, generators


def tensor_folder(folder: Path, name: str) -> Path:
    """The folder of a checkpoint's safetensors files: the folder of parts, or the checkpoint itself."""
    parts = folder / shards_of(name)
    return folder if (folder / name).exists() or not parts.is_dir() else parts


def fill_divided(
    folder: Path, name: str, targets: dict[str, Tensor], *, only: Iterable[str] | None = None
) -> None:
    """Read each process's part of tensors; called by all processes. `CheckpointError` if the stored ones
    belong to another decoder.

    Args:
        folder: the checkpoint.
        name: of the file that a single process would write.
        targets: to fill.
        only: stored names that must be in `targets`; None: all names in a folder of parts.
    """
    place = tensor_folder(folder, name)
    sizes = stored_sizes(place)
    names = (set(sizes) if place != folder else set()) if only is None else set(only)
    for one in sorted(names | targets.keys()):
        have = sizes[one][0] if one in sizes else "nothing"
        need = list(targets[one].shape) if one in targets else "nothing"
        if have != need:
            raise CheckpointError(
                f"{place}, tensor {one}",
                f"the files have {have}, but this decoder needs {need}",
                "use the recipe.yaml beside the weights, unchanged",
            )
    state = read_state(folder)
    for file in state.files:
        if file == name or file.startswith(f"{place.name}/"):
            check_file(folder, file, state)
    with torch.no_grad():
        read_into(place, targets)
    for one, tensor in targets.items():
        if not torch.isfinite(own_part(tensor)).all():
            raise CheckpointError(
                f"{place}, tensor {one}",
                "contains values that are not finite",
                "use an older checkpoint",
            )


def _check_generators(generators: Mapping[str, Tensor], path: Path) -> None:
    if _CPU not in generators:
        raise damaged(path, "contains no state of the random generator")
    for name, state in generators.items():
        device = name.removeprefix(_GENERATOR)
        if device == "cpu" or (device == "cuda" and torch.cuda.is_available()):
            try:
                torch.Generator(device).set_state(state)
            except (RuntimeError, TypeError) as error:
                raise damaged(path, f"{name!r} is not a state of a random generator") from error


def restore_generators(states: Mapping[str, Tensor]) -> None:
    """Restore torch's generators to states from `generator_states`."""
    torch.set_rng_state(states[_CPU])
    if _CUDA in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[_CUDA])
