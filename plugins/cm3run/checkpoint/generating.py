"""Weights of a model that only generates on a GPU: those of its products in bfloat16, read one tensor at a time.

A decoder of 7 billion parameters takes 13.5 GB of the GPU instead of 40: 27 in float32, as training and likelihoods need
them, and their copy in bfloat16. Neither the host nor the GPU holds all weights in float32 at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from cm3core.interfaces.decoder import Decoder
from cm3run.checkpoint.adapters import is_adapter
from cm3run.checkpoint.layout import WEIGHTS, check_file, damaged, read_state, shards_of
from cm3run.checkpoint.tensors import (
    LazyTensor,
    check_finite,
    check_shapes,
    read_into,
    stored_sizes,
    tensor_folder,
)
from cm3run.devices import multiplies_bf16
from cm3run.generation.weights import keep_for_generation
from cm3run.machine_memory import fitting_memory
from cm3run.mapped import map_tensors, release

if TYPE_CHECKING:
    from cm3core.recipe import Recipe

#: Precisions of generation that are bfloat16 on a GPU that multiplies it.
NARROW = ("auto", "bf16")


def only_generates(
    folder: Path, recipe: Recipe, device: torch.device, precision: str | None
) -> bool:
    """Whether a checkpoint's weights are loaded in bfloat16: on a GPU that multiplies it, unless another precision is
    asked for, for a whole model whose decoder can be built without weights.

    Args:
        folder: the checkpoint.
        recipe: its recipe.
        device: of the decoder.
        precision: of generation; None: the model is not opened for generation alone.
    """
    if device.type != "cuda" or precision not in NARROW or is_adapter(folder):
        return False
    able = precision == "bf16" or multiplies_bf16(device)
    return able and bool(getattr(recipe.decoder, "builds_without_weights", False))


@dataclass(frozen=True)
class StoredTensor:
    """A `LazyTensor` of a checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def stored_weights(folder: Path) -> dict[str, LazyTensor]:
    """The weights of a checkpoint, checked against their sizes and hashes: of one file, mapped, or of parts.

    Raises:
        CheckpointError: they can't be read.
    """
    place, state = tensor_folder(folder, WEIGHTS), read_state(folder)
    if place != folder:
        for file in (one for one in state.files if one.startswith(f"{shards_of(WEIGHTS)}/")):
            check_file(folder, file, state)
        return {
            name: StoredTensor(tuple(shape), dtype, partial(_part, place, name, shape, dtype))
            for name, (shape, dtype) in stored_sizes(place).items()
        }
    path = folder / WEIGHTS
    try:
        tensors = map_tensors(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, f"is not a complete safetensors file ({error})") from error
    check_file(folder, WEIGHTS, state)
    return {
        name: StoredTensor(tuple(tensor.shape), tensor.dtype, partial(_itself, tensor))
        for name, tensor in tensors.items()
    }


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _part(place: Path, name: str, shape: list[int], dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    read_into(place, {name: tensor})
    return tensor


def load_for_generation(
    decoder: Decoder, folder: Path, device: torch.device
) -> dict[str, LazyTensor]:
    """Put a checkpoint's weights on a device as parameters of a decoder that was built on "meta".

    Matrices of its layers, the head and the embeddings of tokens become bfloat16, the rest stays in the decoder's dtype.

    Returns:
        the checkpoint's weights.

    Raises:
        CheckpointError: they belong to another decoder, or are damaged.
        DeviceError: they don't fit into the device's memory.
    """
    path, module = tensor_folder(folder, WEIGHTS) / WEIGHTS, decoder.module
    stored, wanted, narrow = stored_weights(folder), module.state_dict(), _narrow(decoder)
    check_shapes(path, stored, wanted)
    placed: dict[str, Tensor] = {}
    for name, lazy in stored.items():
        tensor = lazy.read()
        check_finite(path, name, tensor)
        dtype = torch.bfloat16 if name in narrow else wanted[name].dtype
        with fitting_memory(str(path), "use a larger GPU, or --device cpu"):
            placed[name] = tensor.to(dtype).to(device)  # converted first: half the bytes are sent
        release(tensor)
    module.load_state_dict(placed, assign=True)
    for weight in module.requires_grad_(False).parameters():
        keep_for_generation(weight)
    return stored


def _narrow(decoder: Decoder) -> set[str]:
    """Names of the weights that generation multiplies, and of the tables of tokens."""
    in_blocks = {
        id(weight) for block in decoder.sharded_blocks() for weight in block.parameters()
    } & {id(weight) for weight in decoder.parameter_groups()["matrix"]}
    table = decoder.head_weight().shape
    return {
        name
        for name, weight in decoder.module.named_parameters()
        if id(weight) in in_blocks or weight.shape == table
    }


def one_by_one(weights: Mapping[str, LazyTensor]) -> Iterator[tuple[str, Tensor]]:
    """A checkpoint's weights in float32, in the order of their names; each is released before the next is read."""
    for name, lazy in sorted(weights.items()):
        tensor = lazy.read()
        yield name, tensor.float() if tensor.is_floating_point() else tensor
        release(tensor)


def fill(decoder: Decoder, weights: Mapping[str, LazyTensor]) -> None:
    """Copy a checkpoint's weights, checked before, into a decoder, one tensor at a time."""
    wanted = decoder.module.state_dict()
    with torch.no_grad():
        for name, tensor in one_by_one(weights):
            wanted[name].copy_(tensor)
