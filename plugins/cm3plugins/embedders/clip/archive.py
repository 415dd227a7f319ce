"""Tensors of a TorchScript archive, as OpenAI publishes CLIP, without running its code.

`torch.jit.load` compiles the archive's code and can run it, and its `data.pkl` is a pickle, which
could call anything; `torch.load(weights_only=True)` rejects such archives. So the pickle is read
inertly (`cm3plugins.trained.inert_pickle`), and a record of a tensor from the raw bytes next to it.
Everything else in the archive is ignored.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3plugins.trained.inert_pickle import Named, Record, follow

_NEXT = "download it again, or give the weights as safetensors"
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # no zip, cut off, or damaged
        return False


def read_archive(path: Path) -> dict[str, Tensor]:
    """The floating-point parameters and buffers of the archive's module, by name.

    Raises:
        CheckpointError: it is damaged, or does not hold a module with tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            top = follow(archive.read(pickled))
            root = pickled.removesuffix("data.pkl")
            return {
                name: tensor
                for name, record in _tensors(top)
                if (tensor := _tensor(record, archive, root)) is not None
            }
    except (
        zipfile.BadZipFile,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        EOFError,
        OSError,
        RuntimeError,  # encrypted, compressed in a way that isn't known, nested too deep
    ) as error:
        raise CheckpointError(
            str(path),
            f"is not a readable TorchScript archive ({type(error).__name__}: {error})",
            _NEXT,
        ) from error


def _tensors(top: object) -> Iterator[tuple[str, Record]]:
    """Records of tensors and their names, by the attributes of modules from the top down.

    Shared records are returned once.
    """
    waiting: list[tuple[str, object]] = [("", top)]
    seen: set[int] = set()
    while waiting:
        prefix, item = waiting.pop()
        if not isinstance(item, Record) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item.function, Named) and item.function.name.startswith(
            "torch._utils _rebuild_"
        ):
            yield prefix.removesuffix("."), item
        elif isinstance(item.state, dict):
            waiting += [(f"{prefix}{name}.", value) for name, value in item.state.items()]


def _tensor(record: Record, archive: zipfile.ZipFile, root: str) -> Tensor | None:
    """The tensor of a record of `_rebuild_tensor_v2(storage, offset, size, stride, ...)`.

    None if it is not floating-point.
    """
    # a record of a form that torch does not write raises an error that `read_archive` reports
    arguments: Any = record.arguments
    storage, offset, size, stride = arguments[:4]
    _, kind, key, _, count = storage.identity
    dtype = _DTYPES.get(kind.name.removeprefix("torch "))
    if dtype is None:
        return None
    if min((offset, *size, *stride), default=0) < 0 or len(size) != len(stride):
        raise ValueError(f"a tensor of size {size}, stride {stride}, offset {offset}")
    if math.prod(size) > count:
        raise ValueError(f"a tensor of size {size} over {count} numbers")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    entry = archive.getinfo(f"{root}data/{key}")
    if entry.file_size != count * dtype.itemsize or entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"storage {key} has {entry.file_size} bytes, not those of {count} numbers")
    if last >= count or 0 in size:
        raise ValueError(f"a tensor of size {size} at {offset} in {count} numbers")
    return (
        torch.frombuffer(bytearray(archive.read(entry)), dtype=dtype)
        .as_strided(size, stride, offset)
        .clone()
    )
