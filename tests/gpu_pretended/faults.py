"""Faults that the log must show, each done on purpose: what is recorded of it, as JSON.

LD_PRELOAD=LIBRARY python faults.py
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pretended_cuda
import torch
from scenarios import FIRST, decoding, seen


def unguarded(machine: Any) -> None:
    device = torch.cuda.device
    # as if nothing chose the device that it launches on
    torch.cuda.device = lambda device: contextlib.nullcontext()
    try:
        for _ in decoding(machine):
            if "_segment_kernel" in str(machine.log.unguarded):
                return
    finally:
        torch.cuda.device = device


def mixed(machine: Any) -> None:
    # an op that torch itself would refuse too, once it runs
    with contextlib.suppress(RuntimeError):
        torch.ones(3, device=FIRST) + torch.ones(3)


def waits(machine: Any) -> None:
    torch.ones((), device=FIRST).item()


def blocking_copies(machine: Any) -> None:
    torch.ones(3).to(FIRST)


def uncaptured(machine: Any) -> None:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.ones((), device=FIRST).item()


FAULTS: tuple[Callable[[Any], None], ...] = (unguarded, mixed, waits, blocking_copies, uncaptured)


def main() -> None:
    pretended_cuda.pretend()
    found = {}
    with pretended_cuda.machine() as machine:
        for fault in FAULTS:
            machine.reset()
            fault(machine)
            found[fault.__name__] = seen(machine)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
