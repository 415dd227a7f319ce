"""Files mapped into memory: arrays and tensors that are read when they are used, without keeping files open.

Python's `mmap` keeps a duplicate of the file descriptor for as long as the map lives (until 3.13 it
can't be told not to), so a bank of 250 shards of four files would reach the usual limit of 1,024
open files. A map of the C library outlives its descriptor; what is mapped also stays readable when
another process deletes the file.
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
    """A file's bytes, uint8 [size], read-only, mapped when they are read.

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
    """The array of an `.npy` file, read-only, mapped when it is read.

    Raises:
        OSError: the file can't be opened or mapped.
        ValueError: it is not a whole `.npy` file, or one of Python objects.
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
        raise ValueError("holds Python objects")
    size = dtype.itemsize * math.prod(shape)
    start = header.tell()
    if fortran_order or len(data) < start + size:
        raise ValueError(f"has {len(data) - start} bytes of values, its header says {size}")
    return data[start : start + size].view(dtype).reshape(shape)


#: Linux' request to take pages back: those that were written stay, elsewhere if need be. Python has
#: no name for it.
_PAGEOUT: Final = 21
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
