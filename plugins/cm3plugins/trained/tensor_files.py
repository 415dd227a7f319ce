"""Reads tensor files of any origin: safetensors and `torch.save`. Nothing is executed.

A file's names, shapes and dtypes are read first, then tensors one at a time, so that converting a large
model takes only the memory of its largest tensor.
"""

from __future__ import annotations

import math
import mmap
import pickle
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3plugins.trained.inert_pickle import Named, Record, Storage, follow

_NEXT = "copy or download the file again"
#: Keys under which checkpoints store weights next to their training state.
WRAPPERS = ("state_dict", "model", "module")
#: Size limit of a pickle in an archive: the largest public models have a few megabytes.
MOST_PICKLE_BYTES = 256 << 20
_POINTER = b"version https://git-lfs"
_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
#: Exceptions raised by reading a damaged or hostile file.
_DAMAGE = (
    zipfile.BadZipFile,
    SafetensorError,
    pickle.UnpicklingError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    EOFError,
    OSError,
    RuntimeError,
    RecursionError,
    MemoryError,
    OverflowError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Entry:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFile(ABC):
    """The tensors of a file, by name; from `open_tensors`.

    `entries` describes the tensors; `others` lists the names of other values.
    """

    path: Path
    entries: Mapping[str, Entry]
    others: tuple[str, ...] = ()

    def tensor(self, name: str) -> Tensor:
        """Read one tensor. Raises `CheckpointError` if its bytes are damaged."""
        with _reported(self.path):
            return self._tensor(name)

    @abstractmethod
    def _tensor(self, name: str) -> Tensor: ...

    def all(self) -> dict[str, Tensor]:
        """Read all tensors."""
        return {name: self.tensor(name) for name in self.entries}


class _Safetensors(TensorFile):
    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file = path, file
        dtypes = {
            "F64": torch.float64,
            "F32": torch.float32,
            "F16": torch.float16,
            "BF16": torch.bfloat16,
            "I64": torch.int64,
            "I32": torch.int32,
            "I16": torch.int16,
            "I8": torch.int8,
            "U8": torch.uint8,
            "BOOL": torch.bool,
        }
        self.entries = {}
        for name in file.keys():  # noqa: SIM118 (not a dict)
            part = file.get_slice(name)
            self.entries[name] = Entry(tuple(part.get_shape()), dtypes[part.get_dtype()])

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _Archive(TensorFile):
    """The zip written by `torch.save` since version 1.6: a pickle, and storages next to it."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._zip, self._num_bytes = path, archive, path.stat().st_size
        (pickled,) = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == "data.pkl"]
        if archive.getinfo(pickled).file_size > MOST_PICKLE_BYTES:
            raise ValueError(f"a pickle of {archive.getinfo(pickled).file_size:,} bytes")
        self._root = pickled.removesuffix("data.pkl")
        found = _weights(follow(archive.read(pickled)))
        self._records = {
            name: record
            for name, value in found.items()
            if (record := _tensor_record(value)) is not None
        }
        self.others = tuple(name for name in found if name not in self._records)
        self.entries = {name: self._entry(record) for name, record in self._records.items()}

    def _entry(self, record: Record) -> Entry:
        _, _, size, _, _, dtype, _ = self._parts(record)
        return Entry(tuple(size), dtype)

    def _parts(self, record: Record) -> tuple[Any, ...]:
        """Return key, offset, size, stride, number, dtype and zip entry of a tensor, checked."""
        arguments: Any = record.arguments
        storage, offset, size, stride = arguments[:4]
        _, kind, key, _, count = storage.identity
        dtype = _STORAGES[kind.name.removeprefix("torch ")]
        if min((offset, *size, *stride), default=0) < 0 or len(size) != len(stride):
            raise ValueError(f"a tensor of size {size}, stride {stride}, offset {offset}")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if 0 not in size and (last >= count or math.prod(size) > count):
            raise ValueError(f"a tensor of size {size} at {offset} in {count} numbers")
        entry = self._zip.getinfo(f"{self._root}data/{key}")
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size < self._num_bytes
        if entry.file_size != count * dtype.itemsize or not stored:
            raise ValueError(
                f"storage {key} has {entry.file_size} bytes, which do not hold {count} numbers"
            )
        return key, offset, size, stride, count, dtype, entry

    def _tensor(self, name: str) -> Tensor:
        _, offset, size, stride, count, dtype, entry = self._parts(self._records[name])
        if 0 in size:
            return torch.zeros(tuple(size), dtype=dtype)
        buffer = bytearray(count * dtype.itemsize)
        view, done = memoryview(buffer), 0
        with self._zip.open(entry) as stream:
            while done < len(buffer) and (more := stream.readinto(view[done:])):  # type: ignore[attr-defined]  # not in its stub
                done += more
            stream.read(1)  # compares the checksum at the end
        if done < len(buffer):
            raise EOFError(f"{name} ends after {done:,} of {len(buffer):,} bytes")
        return torch.frombuffer(buffer, dtype=dtype).as_strided(size, stride, offset).clone()


class _Loaded(TensorFile):
    """The format of `torch.save` before version 1.6, loaded as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about pickles that it then rejects
            found = _weights(torch.load(path, map_location="cpu", weights_only=True))
        self._tensors = {
            name: value.detach() for name, value in found.items() if isinstance(value, Tensor)
        }
        self.others = tuple(name for name in found if name not in self._tensors)
        self.entries = {
            name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors.items()
        }

    def _tensor(self, name: str) -> Tensor:
        return self._tensors[name]


class _Stream(TensorFile):
    """The same format, read without `torch.load`, for files with classes that it rejects.

    Five pickles (a number, the version, the machine, the content, the storages' keys), then each
    storage's length and numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with (
            path.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file,
        ):
            number, _, _, content, keys = (follow(file) for _ in range(5))
            if number != torch.serialization.MAGIC_NUMBER or not isinstance(keys, list):
                raise ValueError("it was not written by torch.save")
            found = _weights(content)
            records = {name: _tensor_record(value) for name, value in found.items()}
            self.others = tuple(name for name, record in records.items() if record is None)
            held = {name: record for name, record in records.items() if record is not None}
            kinds = {_storage(one)[2]: _STORAGES[_storage(one)[1]] for one in held.values()}
            storages: dict[str, Tensor] = {}
            for key in keys:
                count = int.from_bytes(file.read(8), "little")
                if key not in kinds:
                    raise ValueError(f"storage {key} belongs to no tensor")
                size = count * kinds[key].itemsize
                if size > len(file) - file.tell():
                    raise EOFError(f"storage {key} ends after {len(file) - file.tell():,} bytes")
                data = bytearray(file.read(size))
                storages[key] = torch.frombuffer(data, dtype=kinds[key]) if data else torch.empty(0)
        self._tensors = {name: _cut(record, storages) for name, record in held.items()}
        self.entries = {
            name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors.items()
        }

    def _tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def _storage(record: Record) -> tuple[str, str, str]:
    """Parse a storage's persistent id in the pickle: "storage", its type and its key."""
    arguments: Any = record.arguments
    what, kind, key = arguments[0].identity[:3]
    return what, kind.name.removeprefix("torch "), key


def _cut(record: Record, storages: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor from its storage."""
    arguments: Any = record.arguments
    _, offset, size, stride = arguments[:4]
    numbers = storages[_storage(record)[2]]
    if 0 in size:
        return torch.zeros(tuple(size), dtype=numbers.dtype)
    if min((offset, *size, *stride), default=0) < 0 or math.prod(size) > len(numbers):
        raise ValueError(f"a tensor of size {size}, stride {stride}, offset {offset}")
    return numbers.as_strided(size, stride, offset).clone()


def _old(path: Path) -> TensorFile:
    """Open a file of the format before version 1.6."""
    try:
        return _Loaded(path)
    except pickle.UnpicklingError:
        return _Stream(path)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a file of tensors.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it holds no named tensors.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise CheckpointError(str(path), what, "correct the path of the weights")
    with path.open("rb") as stream:
        start = stream.read(len(_POINTER))
        is_zip = start[:4] == b"PK\x03\x04"
    if start == _POINTER:
        raise CheckpointError(
            str(path),
            "is a pointer of Git LFS, not the file itself",
            "fetch it with `git lfs pull`",
        )
    if is_zip:
        with _reported(path):
            archive = zipfile.ZipFile(path)
        with archive:
            with _reported(path):
                file: TensorFile = _Archive(path, archive)
            yield _with_tensors(file)
    elif path.suffix == ".safetensors":
        with _reported(path):
            opened = safe_open(str(path), framework="pt")
        with opened:
            with _reported(path):
                file = _Safetensors(path, opened)
            yield _with_tensors(file)
    else:
        with _reported(path):
            file = _old(path)
        yield _with_tensors(file)


def _with_tensors(file: TensorFile) -> TensorFile:
    if not file.entries:
        raise CheckpointError(
            str(file.path), "holds no named tensors", "use a file of weights (a state dict)"
        )
    return file


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Report exceptions of reading as a damaged file."""
    try:
        yield
    except _DAMAGE as error:
        # leaves out torch's advice to execute the file's code
        text = "" if isinstance(error, pickle.UnpicklingError) else f": {str(error)[:200]}"
        raise CheckpointError(
            str(path), f"is not a readable file of tensors ({type(error).__name__}{text})", _NEXT
        ) from error


def _weights(content: object) -> dict[str, object]:
    """Return the weights in a checkpoint's content: the dict under one of `WRAPPERS`, or the content itself; for
    a module that was saved as a whole, its parameters and buffers."""
    if isinstance(content, Record) and isinstance(content.state, dict):
        return dict(_of_module(content))
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__} instead of named tensors")
    wrapped = [content[key] for key in WRAPPERS if isinstance(content.get(key), dict)]
    values: dict[object, object] = wrapped[0] if wrapped else content
    return {name: value for name, value in values.items() if isinstance(name, str)}


def _of_module(module: Record) -> Iterator[tuple[str, object]]:
    """Yield names and records of a module's parameters and buffers, from the top down."""
    waiting: list[tuple[str, object]] = [("", module)]
    seen: set[int] = set()
    while waiting:
        prefix, item = waiting.pop()
        if not isinstance(item, Record) or not isinstance(item.state, dict) or id(item) in seen:
            continue
        seen.add(id(item))
        for kind in ("_parameters", "_buffers"):
            held = item.state.get(kind)
            if isinstance(held, dict):
                yield from ((f"{prefix}{name}", value) for name, value in held.items())
        children = item.state.get("_modules")
        if isinstance(children, dict):
            waiting += [(f"{prefix}{name}.", child) for name, child in children.items()]


def _tensor_record(value: object) -> Record | None:
    """Return the record that rebuilds a tensor, unwrapping a parameter's; None for anything else."""
    if not isinstance(value, Record) or not isinstance(value.function, Named):
        return None
    name = value.function.name
    arguments: Any = value.arguments
    if name == "torch._utils _rebuild_parameter" and isinstance(arguments, tuple):
        return _tensor_record(arguments[0])
    is_tensor = name == "torch._utils _rebuild_tensor_v2" and isinstance(arguments, tuple)
    return value if is_tensor and isinstance(arguments[0], Storage) else None
