"""Files of tensors: every form that torch and safetensors write is read, nothing is executed, and
damage is reported with the file's name."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from cm3core.errors import CheckpointError
from cm3plugins.trained.inert_pickle import Named, Record, follow
from cm3plugins.trained.tensor_files import open_tensors

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"a.{number}": (10 * torch.rand(2, 3, generator=generator)).to(dtype)
        for number, dtype in enumerate(DTYPES)
    }
    base = torch.arange(24.0)
    return tensors | {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "transposed": base.view(4, 6).t(),
        "part": base[5:9],
    }


def read(path: Path) -> dict[str, Tensor]:
    with open_tensors(path) as file:
        for name, tensor in file.all().items():
            assert file.entries[name].shape == tuple(tensor.shape)
            assert file.entries[name].dtype == tensor.dtype
        return file.all()


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "module"])
@pytest.mark.parametrize("new_format", [True, False])
def test_what_torch_saves_is_read(tmp_path: Path, wrapper: str | None, new_format: bool) -> None:
    tensors = some_tensors()
    content: Any = collections.OrderedDict(tensors)
    content = content if wrapper is None else {wrapper: content, "epoch": 3}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    assert_equal(read(tmp_path / "a.pth"), tensors)


def test_a_modules_state_and_parameters_are_read(tmp_path: Path) -> None:
    module = nn.BatchNorm1d(3)
    torch.save(module.state_dict(), tmp_path / "a.pt")
    assert_equal(read(tmp_path / "a.pt"), dict(module.state_dict()))
    torch.save(dict(module.named_parameters()), tmp_path / "b.pt")
    assert_equal(read(tmp_path / "b.pt"), {"weight": module.weight, "bias": module.bias})


def test_safetensors_are_read(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous().clone() for name, tensor in some_tensors().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert_equal(read(tmp_path / "a.safetensors"), tensors)


class Callback:
    """Stands for the class of a training library that is not installed where the file is read."""


def test_a_checkpoint_that_names_classes_is_read(tmp_path: Path) -> None:
    """As PyTorch Lightning writes: classes as keys, their states, numbers; `torch.load` refuses."""
    tensors = {"encoder.weight": torch.rand(2, 2)}
    content = {
        "epoch": 4,
        "state_dict": collections.OrderedDict(tensors),
        "callbacks": {Callback: {"best": torch.tensor(0.5), "path": Path("a"), "seen": {1, 2}}},
        "hyper_parameters": Callback(),
    }
    del content["callbacks"][Callback]["seen"]
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert_equal(read(tmp_path / "last.ckpt"), tensors)


def test_names_of_what_is_no_tensor_are_listed(tmp_path: Path) -> None:
    """Anole's files have `rope.freqs: None`."""
    torch.save({"a": torch.zeros(1), "rope.freqs": None}, tmp_path / "a.pth")
    with open_tensors(tmp_path / "a.pth") as file:
        assert (list(file.entries), file.others) == (["a"], ("rope.freqs",))


class Evil:
    """Makes a file when it is unpickled, by each of the ways that pickles have."""

    def __init__(self, path: Path, way: str) -> None:
        self.path, self.way = path, way

    def __reduce__(self) -> Any:
        return {
            "call": (open, (str(self.path), "w")),
            "eval": (eval, (f"open({str(self.path)!r}, 'w')",)),
            "getattr": (getattr, (open, "__call__")),
        }[self.way]


def archive_of(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.pkl", pickled)
        archive.writestr("evil/version", "3")
    return path


@pytest.mark.parametrize("way", ["call", "eval", "getattr"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_executed(tmp_path: Path, way: str, protocol: int, zipped: bool) -> None:
    made = tmp_path / "made"
    pickled = pickle.dumps({"a": Evil(made, way)}, protocol=protocol)
    path = tmp_path / "evil.ckpt"
    if zipped:
        archive_of(path, pickled)
    else:
        path.write_bytes(pickled)
    with pytest.raises(CheckpointError) as raised, open_tensors(path):
        pass
    assert str(raised.value).startswith(f"{path}: ")
    assert "weights_only=False" not in str(raised.value)
    assert not made.exists()


#: Opcodes that `follow` refuses: they call, import by number, or are of no use to a checkpoint.
REFUSED = {
    "INST": b"(ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\no.",
    "NEWOBJ_EX": b"\x80\x04cos\nsystem\n)}\x92.",
    "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": b"Pabc\n.",
    "DUP": b"N2.",
    "POP": b"NN0.",
    "EMPTY_SET": b"\x80\x04\x8f.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_other_opcodes_are_refused(tmp_path: Path, name: str) -> None:
    assert name in {opcode.name for opcode, _, _ in pickletools.genops(REFUSED[name])}
    with pytest.raises(ValueError, match=f"opcode {name}"):
        follow(REFUSED[name])
    with (
        pytest.raises(CheckpointError, match=f"opcode {name}"),
        open_tensors(archive_of(tmp_path / "a.pt", REFUSED[name])),
    ):
        pass


def test_a_call_becomes_a_record() -> None:
    record = follow(pickle.dumps(Evil(Path("x"), "eval")))
    assert isinstance(record, Record)
    assert record.function == Named("builtins eval")
    assert record.arguments == ("open('x', 'w')",)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_end_in_a_value_or_an_error(pickled: bytes) -> None:
    reported = (ValueError, LookupError, AttributeError, TypeError, UnicodeError, OverflowError)
    with contextlib.suppress(*reported):
        follow(pickled)


def _with_pickle(path: Path, change: Any) -> None:
    """Rewrite the archive of one tensor "a" of six floats with another record."""
    torch.save({"a": torch.arange(6.0)}, path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


def _record(count: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A pickle of {"a": a tensor} with any numbers in it."""
    stream = io.BytesIO()

    class Writer(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if item == "here" else None

    class Tensorish:
        def __reduce__(self) -> Any:
            arguments = ("here", offset, size, stride, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    Writer(stream, protocol=2).dump({"a": Tensorish()})
    return stream.getvalue()


def test_the_record_of_these_tests_is_what_torch_writes(tmp_path: Path) -> None:
    _with_pickle(tmp_path / "a.pt", lambda _: _record(6, 1, (2,), (3,)))
    assert torch.equal(read(tmp_path / "a.pt")["a"], torch.tensor([1.0, 4.0]))


@pytest.mark.parametrize(
    "numbers",
    [
        (6, 5, (2,), (1,)),
        (6, 0, (2, 6), (0, 1)),
        (6, -1, (2,), (1,)),
        (6, 0, (2,), (-1,)),
        (6, 0, (2, 2), (1,)),
        (2**60, 0, (2,), (1,)),
        (5, 0, (5,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, numbers: Any) -> None:
    path = tmp_path / "a.pt"
    _with_pickle(path, lambda _: _record(*numbers))
    with pytest.raises(CheckpointError, match="is not a readable file of tensors"):
        read(path)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("kept", [0, 3, 40, 200])
def test_half_a_file_is_refused(tmp_path: Path, name: str, kept: int) -> None:
    path, tensors = tmp_path / name, {"a": torch.arange(600.0)}
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="is not a readable file of tensors"):
        read(path)


def test_a_changed_byte_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.full((64,), 1.5)}, path)
    content = path.read_bytes()
    place = content.index(struct.pack("<f", 1.5) * 8) + 16
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    with pytest.raises(CheckpointError, match="Bad CRC-32"):
        read(path)


@pytest.mark.parametrize("length", [2**60, 100_000_001, 8])
def test_a_header_that_is_too_long_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match="SafetensorError"):
        read(path)


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("<html>"), "is not a readable file of tensors"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"),
            "is a pointer of Git LFS",
        ),
        (lambda path: torch.save({"epoch": 3}, path), "holds no named tensors"),
        (
            lambda path: torch.save([torch.zeros(1)], path),
            "is not a readable file of tensors (ValueError: holds a list instead of named tensors)",
        ),
        (lambda path: save_file({}, path), "is not a readable file of tensors"),
    ],
)
def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path, write: Any, cause: str) -> None:
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(CheckpointError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: {cause}"), raised.value
    assert json.dumps(raised.value.next_step)


class NotInstalled(nn.Module):
    """Stands for a module of a package that the reader does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.w = nn.Parameter(torch.arange(6.0).view(2, 3).t())
        self.register_buffer("count", torch.tensor([7]))


@pytest.mark.parametrize("new_format", [True, False])
def test_a_module_saved_as_a_whole_is_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_format: bool
) -> None:
    """Its class is never looked up: reading works when it is gone."""
    module = NotInstalled()
    path = tmp_path / "module.pkl"
    torch.save(module, path, _use_new_zipfile_serialization=new_format)
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    monkeypatch.delitem(globals(), "NotInstalled")
    found = read(path)
    assert set(found) == {"inner.weight", "inner.bias", "w", "count"}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    whole = path.read_bytes()
    for length in (len(whole) - 3, len(whole) // 2, 40):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a readable file of tensors"):
            read(path)
