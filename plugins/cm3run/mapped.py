"""Tensors that are read from their file when they are used: memory-mapped safetensors files.

A mapped tensor takes no memory of its own. The system reads a page of the file when it is touched,
and may take the page back at any time. Writing to a mapped tensor copies the pages that are written;
the file is never changed.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

#: Linux' request to take pages back: those that were written stay, elsewhere if need be. Python has
#: no name for it.
_PAGEOUT: Final = 21
_LIBC: Final = ctypes.CDLL(None)
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
#: The memory of mapped tensors that are in use.
_mapped: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped.

    Raises:
        OSError, safetensors.SafetensorError: it can't be read, or isn't a whole safetensors file.
    """
    tensors: dict[str, Tensor] = load_file(path)
    _mapped.update(tensor.untyped_storage() for tensor in tensors.values())
    return tensors


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor shares the pages of a file."""
    return tensor.untyped_storage() in _mapped


def release(*tensors: Tensor) -> None:
    """Tell the system that mapped tensors will not be read soon. Values stay as they are, also those
    that were changed; tensors that are not mapped are left alone."""
    for tensor in filter(is_mapped, tensors):
        place = tensor.data_ptr()
        first = -(-place // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (place + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0:  # an older Linux refuses, which changes nothing
            _LIBC.madvise(first, length, _PAGEOUT)
