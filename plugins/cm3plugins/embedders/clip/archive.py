"""Tensors of a TorchScript archive, as OpenAI publishes CLIP, without running its code.

`torch.jit.load` compiles the archive's code and can run it, and its `data.pkl` is a pickle, which
could call anything; `torch.load(weights_only=True)` rejects such archives. So a small interpreter
follows the pickle's instructions and builds only tuples, lists, dicts and *records* of what is
named: no name is looked up, nothing is called. A record of a tensor is then read from the raw bytes
next to the pickle. Everything else in the archive is ignored.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm3core.errors import CheckpointError

_NEXT = "download it again, or give the weights as safetensors"
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
}


@dataclass(frozen=True, eq=False)
class Named:
    """A class or function that the pickle names, as `module name`."""

    name: str


@dataclass(eq=False)
class Record:
    """A call or an object: the function, its arguments, and the attributes that would be set."""

    function: object
    arguments: object
    state: object = None


@dataclass(frozen=True, eq=False)
class Storage:
    """Raw bytes next to the pickle."""

    identity: object


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


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
        RecursionError,
    ) as error:
        raise CheckpointError(
            str(path),
            f"is not a readable TorchScript archive ({type(error).__name__}: {error})",
            _NEXT,
        ) from error


def follow(pickled: bytes) -> object:
    """The content of a pickle, with records in place of everything that it would call.

    Raises:
        ValueError: it has other opcodes.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "GLOBAL":
            stack.append(Named(str(argument)))
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[name])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = since_mark()
            stack[-1].extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            items = since_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(Record(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif name == "BINPERSID":
            stack.append(Storage(stack.pop()))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise ValueError(f"opcode {name}")
    raise ValueError("the pickle does not end")


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
