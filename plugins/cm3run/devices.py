"""Devices: choosing one, its precision, and its memory.

A requested device is tried out, and the error says why it can't be used. A recipe or model folder from any source may
name any sizes. Allocating too much can kill this or other processes without a message, long after the allocation
succeeded, so memory is checked first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from cm3core.errors import DeviceError, RecipeError
from cm3run.machine_memory import VARIABLE, MachineMemory, given_limit

if TYPE_CHECKING:
    from cm3core.interfaces import DecoderConfig
    from cm3core.vocab import Vocabulary


#: Share of the memory left by the weights that keys and values may use.
MEMORY_SHARE = 0.5


def check_weights_fit(
    config: DecoderConfig,
    vocabulary: Vocabulary,
    grid: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Raise `RecipeError` if the weights alone, in `dtype`, exceed the memory of `device`.

    The check builds nothing. Decoders that don't report their `num_parameters` pass.
    """
    number = config.num_parameters(vocabulary, grid)
    limit = None if number is None else memory_limit(device)
    if number is None or limit is None or number * dtype.itemsize <= limit:
        return
    where = "this machine" if device.type == "cpu" else f"device {device}"
    raise RecipeError(
        "recipe section decoder",
        f"its weights alone take {number * dtype.itemsize // 10**9:,} GB ({number:,} parameters "
        f"in {str(dtype).removeprefix('torch.')}), and {where} has {limit / 1e9:,.1f} GB of memory",
        f"choose smaller sizes in the sections decoder and vocabulary, or set {VARIABLE} to the "
        "number of GB available",
    )


def device_of_process(device: str | None, process: int) -> str | None:
    """The device of one of several processes that share work on a machine: the GPUs are taken in turn.

    Args:
        device: as requested; None: the default. "cuda" is any GPU; a device with a number is that of all processes.
        process: its number.
    """
    if device not in (None, "cuda"):
        return device
    number = torch.cuda.device_count()
    return f"cuda:{process % number}" if number else device


def cache_limit(
    decoder: nn.Module, device: torch.device, weight_bytes: int | None = None
) -> int | None:
    """Maximum bytes for keys and values beside the weights. None: unknown.

    Args:
        decoder: owner of the weights.
        device: where they are.
        weight_bytes: their size (`InferenceDecoder.weight_bytes`). None: twice the decoder's, for the trained
            weights and the copy used in generation.
    """
    limit = memory_limit(device)
    if limit is None:
        return None
    if weight_bytes is None:
        weight_bytes = 2 * sum(one.numel() * one.element_size() for one in decoder.parameters())
    return max(0, int((limit - weight_bytes) * MEMORY_SHARE))


def memory_limit(device: torch.device) -> int | None:
    """Memory of a device in bytes. None: unknown, or a device without memory ("meta").

    `CM3_MEMORY_GB` if set, otherwise the GPU's, otherwise the limit that `MachineMemory` finds.
    """
    if device.type == "meta":
        return None
    if (given := given_limit()) is not None:
        return given
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return MachineMemory.find().limit


#: The process's default device, see `default_device`.
_default: str | None = None


@contextmanager
def default_device(device: str | None) -> Iterator[None]:
    """A process-wide context in which this is the default device (a command's `--device`). None: the GPU if there is
    one."""
    global _default
    before, _default = _default, device
    try:
        yield
    finally:
        _default = before


def choose_device(device: str | torch.device | None) -> torch.device:
    """The requested device, tried out. None: the one of `default_device`, otherwise the GPU if there is one.

    Raises `DeviceError` if it can't compute.
    """
    wanted = device or _default or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(wanted)
        torch.ones(1, device=chosen).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # AssertionError: a torch built without CUDA
        reason = next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0]
        raise DeviceError(
            f"device {str(wanted)!r}",
            f"can't be used here ({reason})",
            "use cpu, or cuda on a machine with a GPU",
        ) from error
    return chosen


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a CUDA device has instructions for bfloat16 products (compute capability 8.0 and later)."""
    with torch.cuda.device(device):  # torch's check is for the current device
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products. Without them a product is up to 50 times
    slower."""
    # torch has no public function for this
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """Autocast's dtype (None: off) and the reason, in words.

    "auto" uses bfloat16 only if the hardware has instructions for it.
    """
    if precision == "fp32":
        return None, "fp32 as requested"
    if device.type == "cuda":
        able, what = multiplies_bf16(device), torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        able, what = cpu_multiplies_bf16(), "this CPU"
    else:
        able, what = False, str(device)
    if precision == "bf16":
        return torch.bfloat16, "bf16 as requested" + (
            "" if able else f", though {what} has no instructions for it and will be slow"
        )
    return (
        (torch.bfloat16, f"bf16 autocast ({what} supports it)")
        if able
        else (None, f"fp32 ({what} does not support bf16)")
    )


def device_memory(device: str | torch.device | None) -> tuple[MachineMemory, bool]:
    """The memory of the device that `choose_device` returns, and whether it is the CPU's."""
    chosen = choose_device(device)
    if chosen.type != "cuda":
        return MachineMemory.find(), True
    given = given_limit()
    total = int(torch.cuda.get_device_properties(chosen).total_memory) if given is None else given
    return MachineMemory(total, f"device {chosen}"), False
