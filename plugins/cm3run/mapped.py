"""Memory-mapped files: arrays and tensors that are read when used, without keeping files open.

Python's `mmap` keeps a duplicate of the file descriptor as long as the map lives (before 3.13 this can't be turned
off), so a bank of 250 shards with four files each would reach the usual limit of 1,024 open files. A map made through
the C library outlives its descriptor. Mapped data also stays readable after another process deletes the file.
"""

from __future__ import annotations

import ctypes
import io
import math
import mmap
import os
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor

from cm3run.npy import readable_header

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED: Final = ctypes.c_void_p(-1).value


def map_bytes(path: Path) -> npt.NDArray[np.uint8]:
    """A file's bytes, uint8 [size], read-only, loaded from disk when accessed.

    Raises:
        OSError: the file can't be opened or mapped.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            return np.zeros(0, np.uint8)
        address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(descriptor)
    buffer = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(buffer, _LIBC.munmap, address, size)
    array: npt.NDArray[np.uint8] = np.ctypeslib.as_array(buffer)
    array.flags.writeable = False
    return array


def map_array(path: Path) -> npt.NDArray[Any]:
    """The array of an `.npy` file, read-only, loaded from disk when accessed.

    Raises:
        OSError: the file can't be opened or mapped.
        ValueError: it is not a complete `.npy` file, or contains Python objects.
    """
    data = map_bytes(path)
    header = io.BytesIO(data[: 1 << 16].tobytes())
    with readable_header():
        version = np.lib.format.read_magic(header)
        if version == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(header)
        else:
            shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(header)
        if not all(type(length) is int and 0 <= length < 1 << 40 for length in shape):
            raise ValueError(f"has {len(data)} bytes, its header says it has shape {list(shape)}")
    if dtype.hasobject:
        raise ValueError("contains Python objects")
    size = dtype.itemsize * math.prod(shape)
    start = header.tell()
    if fortran_order or len(data) < start + size:
        raise ValueError(f"has {len(data) - start} bytes of values, its header says {size}")
    return data[start : start + size].view(dtype).reshape(shape)


#: Linux' request to page memory out: modified pages are kept, in swap if necessary. Python has no
#: constant for it.
_PAGEOUT: Final = 21
#: The memory of mapped tensors in use.
_mapped: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped.

    Raises:
        OSError, safetensors.SafetensorError: it can't be read, or isn't a complete safetensors file.
    """
    tensors: dict[str, Tensor] = load_file(path)
    _mapped.update(tensor.untyped_storage() for tensor in tensors.values())
    return tensors


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor shares the pages of a file."""
    return tensor.untyped_storage() in _mapped


def release(*tensors: Tensor) -> None:
    """Tell the system that mapped tensors will not be read soon. All values are preserved, including
    modified ones; tensors that are not mapped are unaffected."""
    for tensor in filter(is_mapped, tensors):
        place = tensor.data_ptr()
        first = -(-place // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (place + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0:  # older Linux versions refuse, which is harmless
            _LIBC.madvise(first, length, _PAGEOUT)
