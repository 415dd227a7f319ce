"""How much memory a device has, and whether a decoder's weights fit: checked before allocating.

A recipe, or a model folder from any source, may name any sizes. Allocating them can kill this or
other processes without a message, long after the allocation succeeded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cm3core.errors import DeviceError, RecipeError

if TYPE_CHECKING:
    from cm3core.interfaces import DecoderConfig
    from cm3core.vocab import Vocabulary

#: Environment variable: memory in GB (10^9 bytes), overriding what the machine reports (for swap, or
#: a limit that doesn't hold).
VARIABLE = "CM3_MEMORY_GB"
_BYTES = 4  # decoders are built in float32


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


def memory_limit(device: torch.device) -> int | None:
    """Bytes of memory of a device. None: unknown, or a device without memory ("meta").

    `CM3_MEMORY_GB`, else the GPU's, else the machine's or its control group's limit, whichever is
    less.
    """
    if device.type == "meta":
        return None
    if given := os.environ.get(VARIABLE):
        try:
            return int(float(given) * 1e9)
        except (ValueError, OverflowError):
            raise DeviceError(
                f"{VARIABLE}={given}", "is not a number of GB", "use a number such as 64"
            ) from None
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # a system that does not report them
        machine = -1
    return min([*([machine] if machine > 0 else []), *group_limits()], default=None)


def group_limits(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Memory limits in bytes of this process's control groups and all their ancestors.

    Linux only, versions 1 and 2.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    limits = []
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            root, name = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / own.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root) and (place / name).is_file():
                value = (place / name).read_text(encoding="ascii").strip()
                limits += [int(value)] if value.isdecimal() else []  # "max": none
    return limits
