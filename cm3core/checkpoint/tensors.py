"""Tensors of a checkpoint: a decoder's weights, the optimiser's state, and the states of torch's
random generators."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cm3core.checkpoint.hashes import check_file
from cm3core.checkpoint.layout import OPTIMIZER, WEIGHTS, damaged
from cm3core.checkpoint.state import read_state
from cm3core.errors import CheckpointError

#: Types of floating weights; a decoder of any floating type takes them.
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Their names in safetensors files.
_FORMAT = dict(zip(FLOATING, ("F16", "BF16", "F32", "F64"), strict=True))

#: Names of the generators' states, which lie beside the optimiser's.
_GENERATOR = "generator::"
_CPU, _CUDA = f"{_GENERATOR}cpu", f"{_GENERATOR}cuda"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; anything else (truncated, a pickle) raises
    `CheckpointError`."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        # the last two: a header that lies about types and sizes
        raise damaged(path, f"is not a complete safetensors file ({error})") from error
    return tensors


class LazyTensor(Protocol):
    """A tensor that is read when it is needed."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def read(self) -> Callable[[], Tensor]: ...


def write_tensors(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write a safetensors file, one tensor in memory at a time.

    Format: the header's length as 8 bytes, the header (JSON: type, shape and place of each tensor),
    the tensors' bytes without gaps (github.com/huggingface/safetensors, README, "Format").

    Raises:
        CheckpointError: a tensor of another than a floating type.
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
    """The state dict; a tensor that is known under two names (tied embeddings) is stored once."""
    return contiguous(_unique(decoder.state_dict()))


def load_weights(decoder: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into `decoder`, in the decoder's dtype; `CheckpointError` when
    they are another decoder's."""
    path = folder / WEIGHTS
    stored, wanted = read_tensors(path), _unique(decoder.state_dict())
    check_file(folder, WEIGHTS, read_state(folder))
    for name in sorted(stored.keys() | wanted.keys()):
        have = list(stored[name].shape) if name in stored else "nothing"
        need = list(wanted[name].shape) if name in wanted else "nothing"
        if have != need:
            raise CheckpointError(
                f"{path}, tensor {name}",
                f"the file has {have}, this decoder {need}",
                "use the recipe.yaml beside the weights, unchanged",
            )
        own = wanted[name].dtype
        if stored[name].dtype not in (FLOATING if own.is_floating_point else (own,)):
            raise CheckpointError(
                f"{path}, tensor {name}",
                f"holds {_in_words(stored[name].dtype)}, this decoder {_in_words(own)}",
                "use an older checkpoint, or copy it again from where it came",
            )
        if not torch.isfinite(stored[name]).all():
            raise CheckpointError(
                f"{path}, tensor {name}",
                "holds values that are not finite",
                "use an older checkpoint",
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])


def _in_words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _unique(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.numel() == 0
        or seen.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name) == name
    }


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors stores them: without gradients, dense."""
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def generator_states() -> dict[str, Tensor]:
    """States of torch's generators (dropout draws from them)."""
    states = {_CPU: torch.get_rng_state()}
    if torch.cuda.is_available():
        states[_CUDA] = torch.cuda.get_rng_state()
    return states


def read_training_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a run needs beside the weights to resume: the optimiser's state as `save_checkpoint` was
    given it, and the states of the random generators for `restore_generators`."""
    path = folder / OPTIMIZER
    tensors = read_tensors(path)
    check_file(folder, OPTIMIZER, read_state(folder))
    generators = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_GENERATOR)}
    if _CPU not in generators:
        raise damaged(path, "holds no state of the random generator")
    for name, state in generators.items():
        device = name.removeprefix(_GENERATOR)
        if device == "cpu" or (device == "cuda" and torch.cuda.is_available()):
            try:
                torch.Generator(device).set_state(state)
            except (RuntimeError, TypeError) as error:
                raise damaged(path, f"{name!r} is no state of a random generator") from error
    return tensors, generators


def restore_generators(states: Mapping[str, Tensor]) -> None:
    """Set torch's generators to what `generator_states` gave."""
    torch.set_rng_state(states[_CPU])
    if _CUDA in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[_CUDA])
