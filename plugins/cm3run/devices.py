"""Device and precision of training and inference: the requested ones, tried out, with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cm3core.errors import DeviceError
from cm3run.machine_memory import MachineMemory, given_limit

#: The device of this process where nothing names one, see `default_device`.
_default: str | None = None


@contextmanager
def default_device(device: str | None) -> Iterator[None]:
    """Context, of the whole process, in which this device is the one where nothing names another: a
    command's `--device`. None: the GPU when there is one."""
    global _default
    before, _default = _default, device
    try:
        yield
    finally:
        _default = before


def choose_device(device: str | torch.device | None) -> torch.device:
    """The requested device (None: the one of `default_device`, else the GPU when there is one), tried
    out.

    Raises `DeviceError` when it can't compute.
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
    """Whether a CUDA device has instructions for bfloat16 products (compute capability 8.0 on)."""
    with torch.cuda.device(device):  # the question is of the current one
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products. Without them one is up to 50 times
    slower."""
    # torch has no public function for this
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """Autocast's dtype (None: off) and the reason, in words.

    "auto" takes bfloat16 only if the hardware multiplies it.
    """
    if precision == "fp32":
        return None, "fp32 as asked"
    if device.type == "cuda":
        able, what = multiplies_bf16(device), torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        able, what = cpu_multiplies_bf16(), "this CPU"
    else:
        able, what = False, str(device)
    if precision == "bf16":
        return torch.bfloat16, "bf16 as asked" + (
            "" if able else f", though {what} has no instructions for it and will be slow"
        )
    return (
        (torch.bfloat16, f"bf16 autocast ({what} computes it)")
        if able
        else (None, f"fp32 ({what} does not compute bf16)")
    )


def device_memory(device: str | torch.device | None) -> tuple[MachineMemory, bool]:
    """The memory of the device that `choose_device` takes, and whether it is the CPU's."""
    chosen = choose_device(device)
    if chosen.type != "cuda":
        return MachineMemory.find(), True
    given = given_limit()
    total = int(torch.cuda.get_device_properties(chosen).total_memory) if given is None else given
    return MachineMemory(total, f"device {chosen}"), False
