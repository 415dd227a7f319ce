"""Tensors next to an inaccessible page: an access past the end (or before the start) ends the
process with SIGSEGV.

The interpreter reads and writes real addresses, so a load that its mask should have prevented is
caught at once, where a GPU (and the interpreter, inside a larger allocation) would read something
and continue. Used in a separate process: `run_guarded` of conftest.py.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Literal

import torch

PAGE = mmap.PAGESIZE
PROT_NONE = 0
#: The mappings live as long as the process: tensors point into them.
_kept: list[mmap.mmap] = []


def guarded(tensor: torch.Tensor, side: Literal["after", "before"] = "after") -> torch.Tensor:
    """A contiguous copy of a CPU tensor, with a guard page directly after its memory, or directly
    before it.

    Only the adjacent side is guarded to the byte; the other has up to a page of slack.
    """
    num_bytes = tensor.numel() * tensor.element_size()
    assert num_bytes > 0, "an empty tensor has no memory to guard"
    num_pages = -(-num_bytes // PAGE)
    memory = mmap.mmap(-1, (num_pages + 2) * PAGE)
    _kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (0, num_pages + 1):
        if (
            libc.mprotect(ctypes.c_void_p(start + page * PAGE), ctypes.c_size_t(PAGE), PROT_NONE)
            != 0
        ):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE if side == "before" else (num_pages + 1) * PAGE - num_bytes
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return flat.copy_(tensor.contiguous().flatten()).view(tensor.shape)
