"""Tensors that are read from their file when they are used: memory-mapped safetensors files.

A mapped tensor takes no memory of its own. The system reads a page of the file when it is touched,
and may take the page back at any time. Writing to a mapped tensor copies the pages that are written;
the file is never changed.
"""

from __future__ import annotations

import json
import mmap
import weakref
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

#: Types that are mapped.
_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
#: Linux' request to take pages back: those that were written stay, elsewhere if need be. Python has
#: no name for it.
_PAGEOUT = 21
#: First address of each mapping that is in use -> it. Tensors keep their mapping alive.
_mappings: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()


def map_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a safetensors file, mapped.

    Args:
        path: the file.

    Returns:
        Tensors that share the file's pages; None where one is of another type than a floating one,
        or lies where its type can't be read without copying.

    Raises:
        OSError, safetensors.SafetensorError: it can't be read, or isn't a whole safetensors file.
    """
    with safe_open(path, "pt") as checked:  # sizes, places and types are what the file holds
        names = list(checked.keys())
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    if not names or any(header[name]["dtype"] not in _TYPES for name in names):
        return None
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    bytes_N = torch.frombuffer(memory, dtype=torch.uint8)
    _mappings[bytes_N.data_ptr()] = memory
    tensors: dict[str, Tensor] = {}
    for name in names:
        dtype, (begin, end) = _TYPES[header[name]["dtype"]], header[name]["data_offsets"]
        begin, end = 8 + length + begin, 8 + length + end
        if begin % dtype.itemsize:
            return None
        tensors[name] = bytes_N[begin:end].view(dtype).view(header[name]["shape"])
    return tensors


def _place(tensor: Tensor) -> tuple[mmap.mmap, int] | None:
    """The mapping that a tensor lies in, and where."""
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return None
    for start, memory in list(_mappings.items()):
        if start <= tensor.data_ptr() < start + len(memory):
            return memory, tensor.data_ptr() - start
    return None


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor shares the pages of a file."""
    return _place(tensor) is not None


def release(*tensors: Tensor) -> None:
    """Tell the system that mapped tensors will not be read soon. Values stay as they are, also those
    that were changed; tensors that are not mapped are left alone."""
    for tensor in tensors:
        found = _place(tensor)
        if found is None:
            continue
        memory, place = found
        first = -(-place // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (place + tensor.numel() * tensor.element_size() - first) // mmap.PAGESIZE
        if length > 0:
            try:
                memory.madvise(_PAGEOUT, first, length * mmap.PAGESIZE)
            except (OSError, ValueError, AttributeError):  # another system, an older Linux
                return
