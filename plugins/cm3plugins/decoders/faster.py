"""Which precisions "auto" tries: those with which a decoder generates faster on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from cm3core.devices import cpu_multiplies_bf16
from cm3plugins.decoders.cm3leon.products import rounds_inputs

#: Parameters of a decoder from which reading its weights takes most of a step on a CPU.
LARGE_DECODER = 30_000_000


class Weighted(Protocol):
    """What of a training decoder decides it."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def head_weight(self) -> Tensor: ...


def faster_precisions(decoder: Weighted) -> tuple[str, ...]:
    """See `Decoder.faster_precisions`."""
    weight = decoder.head_weight()
    return faster_on_cpu(
        sum(one.numel() for one in decoder.parameters()) if weight.device.type == "cpu" else 0,
        weight.dtype,
        bytes_too=rounds_inputs(weight.device) and not torch.cpu._is_amx_tile_supported(),
        bf16_too=cpu_multiplies_bf16(),
    )


def faster_on_cpu(
    parameters: int, stored: torch.dtype, *, bytes_too: bool, bf16_too: bool
) -> tuple[str, ...]:
    """What a decoder generates faster with on a CPU than as it is stored, the fastest first.

    A step reads every weight for a few rows. Of weights that are too many for the caches, bytes decide
    where there are instructions for them: int8 was faster than bf16 at every size, batch and
    arrangement of products that was measured, see docs/decoding.md.

    Args:
        parameters: of the decoder; smaller ones than `LARGE_DECODER` stay what they are, bit for bit.
        stored: type of the weights. Those that are stored in bfloat16 stay: that is exact, and needs no
            measurement, which takes longer than arranging them.
        bytes_too: whether the CPU multiplies bytes (VNNI), and int8 was found faster on such CPUs. Of
            those with AMX nothing was measured.
        bf16_too: whether it multiplies bfloat16.

    >>> faster_on_cpu(100_000_000, torch.float32, bytes_too=True, bf16_too=True)
    ('int8', 'bf16')
    >>> faster_on_cpu(7_000_000_000, torch.bfloat16, bytes_too=True, bf16_too=True)
    ()
    """
    if parameters < LARGE_DECODER or stored != torch.float32:
        return ()
    return tuple(name for name, native in (("int8", bytes_too), ("bf16", bf16_too)) if native)
