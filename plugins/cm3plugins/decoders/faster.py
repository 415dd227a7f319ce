"""Which precisions "auto" tries: those with which a decoder generates faster on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from cm3plugins.decoders.cm3leon.products import rounds_inputs
from cm3run.devices import cpu_multiplies_bf16

#: Parameters of a decoder from which reading its weights takes most of a step on a CPU.
LARGE_DECODER = 30_000_000
#: Where all layers are one call of compiled code (`cm3kernels.few_rows`): from these on bfloat16 is
#: faster than what is stored, and int8 than bfloat16. A step of a small decoder is mostly what Python and
#: torch do between operations of microseconds, which that call does without.
COMPILED_FROM, COMPILED_INT8_FROM = 1_000_000, 10_000_000


class Weighted(Protocol):
    """What of a training decoder decides it."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def head_weight(self) -> Tensor: ...


def faster_precisions(
    decoder: Weighted, in_one_call: Callable[[], bool] = lambda: False
) -> tuple[str, ...]:
    """See `Decoder.faster_precisions`.

    Args:
        decoder: the training decoder.
        in_one_call: whether all its layers can be one call of compiled code; asked only where it matters,
            since the first answer on a machine compiles.
    """
    weight = decoder.head_weight()
    number = sum(one.numel() for one in decoder.parameters())
    if weight.device.type != "cpu" or number < COMPILED_FROM or weight.dtype != torch.float32:
        return ()
    return faster_on_cpu(
        number,
        weight.dtype,
        bytes_too=rounds_inputs(weight.device) and not torch.cpu._is_amx_tile_supported(),
        bf16_too=cpu_multiplies_bf16(),
        in_one_call=number < LARGE_DECODER and in_one_call(),
    )


def faster_on_cpu(
    parameters: int,
    stored: torch.dtype,
    *,
    bytes_too: bool,
    bf16_too: bool,
    in_one_call: bool = False,
) -> tuple[str, ...]:
    """What a decoder generates faster with on a CPU than as it is stored, the fastest first.

    A step reads every weight for a few rows, so that bytes decide where there are instructions for
    them, and weights are too many for the caches. docs/decoding.md has tokens a second by size and the
    command that measures them.

    Args:
        parameters: of the decoder.
        stored: type of the weights. Those that are stored in bfloat16 stay: that is exact, and needs no
            measurement, which takes longer than arranging them.
        bytes_too: whether the CPU multiplies bytes (VNNI), and int8 was found faster on such CPUs. Of
            those with AMX nothing was measured.
        bf16_too: whether it multiplies bfloat16.
        in_one_call: whether all layers can be one call of compiled code.

    >>> faster_on_cpu(100_000_000, torch.float32, bytes_too=True, bf16_too=True)
    ('int8', 'bf16')
    >>> faster_on_cpu(3_000_000, torch.float32, bytes_too=True, bf16_too=True, in_one_call=True)
    ('bf16',)
    >>> faster_on_cpu(7_000_000_000, torch.bfloat16, bytes_too=True, bf16_too=True)
    ()
    """
    if stored != torch.float32:
        return ()
    int8_from = COMPILED_INT8_FROM if in_one_call else LARGE_DECODER
    bf16_from = COMPILED_FROM if in_one_call else LARGE_DECODER
    rules = (("int8", bytes_too, int8_from), ("bf16", bf16_too, bf16_from))
    return tuple(name for name, native, least in rules if native and parameters >= least)
