"""How much memory a device has, and whether a decoder's weights fit: checked before allocating.

A recipe, or a model folder from any source, may name any sizes. Allocating them can kill this or
other processes without a message, long after the allocation succeeded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from cm3core.errors import RecipeError
from cm3run.machine_memory import VARIABLE, MachineMemory, given_limit

if TYPE_CHECKING:
    from cm3core.interfaces import DecoderConfig
    from cm3core.vocab import Vocabulary

_BYTES = 4  # decoders are built in float32
#: Share of the memory beside the weights that keys and values may take.
MEMORY_SHARE = 0.5


def check_weights_fit(
    config: DecoderConfig, vocabulary: Vocabulary, grid: tuple[int, int], device: torch.device
) -> None:
    """Raise `RecipeError` when the weights alone exceed the memory of `device`.

    Nothing is built for the check. Decoders that don't report their `num_parameters` pass.
    """
    number = config.num_parameters(vocabulary, grid)
    limit = None if number is None else memory_limit(device)
    if number is None or limit is None or number * _BYTES <= limit:
        return
    where = "this machine" if device.type == "cpu" else f"device {device}"
    raise RecipeError(
        "recipe section decoder",
        f"its weights alone take {number * _BYTES // 10**9:,} GB ({number:,} parameters "
        f"in float32), and {where} has {limit / 1e9:,.1f} GB of memory",
        f"choose smaller sizes in the sections decoder and vocabulary, or set {VARIABLE} to the "
        "number of GB available",
    )


def cache_limit(
    decoder: nn.Module, device: torch.device, weight_bytes: int | None = None
) -> int | None:
    """Bytes that keys and values may take beside the weights. None: unknown.

    Args:
        decoder: owner of the weights.
        device: where they are.
        weight_bytes: what they take (`InferenceDecoder.weight_bytes`). None: twice the decoder's, as
            trained and in the copy that generation reads.
    """
    limit = memory_limit(device)
    if limit is None:
        return None
    if weight_bytes is None:
        weight_bytes = 2 * sum(one.numel() * one.element_size() for one in decoder.parameters())
    return max(0, int((limit - weight_bytes) * MEMORY_SHARE))


def memory_limit(device: torch.device) -> int | None:
    """Bytes of memory of a device. None: unknown, or a device without memory ("meta").

    `CM3_MEMORY_GB`, else the GPU's, else what `MachineMemory` finds.
    """
    if device.type == "meta":
        return None
    if (given := given_limit()) is not None:
        return given
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return MachineMemory.find().limit
