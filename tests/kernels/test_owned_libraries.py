"""Compiled code is loaded only if nobody else can have put it there."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from cm3kernels.few_rows import native
from cm3kernels.few_rows.native import file_fault, folder_fault, sha256_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "cache" / "compiled"
    made.mkdir(parents=True)
    made.chmod(0o700)
    return made


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What `native` loads, with a compiler that writes `code`."""
    found: list[bytes] = []

    def load(path: str) -> SimpleNamespace:
        found.append(Path(path).read_bytes())
        return SimpleNamespace(
            cm3_large_pages=SimpleNamespace(),
            cm3_product=SimpleNamespace(),
            cm3_step=SimpleNamespace(),
            cm3_tiles=lambda wanted: 0,
        )

    def run(command: list[str]) -> str:
        if "-o" in command:
            Path(command[-1]).write_bytes(b"code")
        return "compiler 1"

    monkeypatch.setattr(native.ctypes, "CDLL", load)
    monkeypatch.setattr(native, "_run", run)
    monkeypatch.setattr(native, "_compiler", lambda: ["c++"])
    return found


def library(folder: Path) -> Path:
    [path] = folder.glob("*.so")
    return path


def test_a_library_is_compiled_once_and_checked_each_time(
    folder: Path, loaded: list[bytes]
) -> None:
    native._loaded(folder)
    path = library(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert path.with_suffix(".so.sha256").read_text() == f"{sha256_of(path)}\n"
    before = path.stat().st_mtime_ns
    native._loaded(folder)
    assert path.stat().st_mtime_ns == before
    assert loaded == [b"code", b"code"]


@pytest.mark.parametrize(
    "what", ["bytes", "no record", "record", "mode", "link", "record of others"]
)
def test_another_library_in_its_place_is_never_loaded(
    folder: Path, loaded: list[bytes], what: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    native._loaded(folder)
    path = library(folder)
    record = path.with_suffix(".so.sha256")
    if what == "bytes":
        path.write_bytes(b"theirs")
    elif what == "no record":
        path.write_bytes(b"theirs")
        record.unlink()
    elif what == "record":
        record.write_text("0" * 64)
    elif what == "mode":
        path.chmod(0o777)
    elif what == "record of others":
        record.chmod(0o666)
    else:
        other = tmp_path / "theirs.so"
        other.write_bytes(b"theirs")
        path.unlink()
        path.symlink_to(other)
        record.write_text(f"{sha256_of(other)}\n")
    with caplog.at_level(logging.WARNING, "cm3kernels"):
        native._loaded(folder)
    assert loaded == [b"code", b"code"]
    assert "compiling it again" in caplog.text
    assert not path.is_symlink()
    assert native._fault(path) is None


def test_a_folder_that_others_may_write_is_not_used(
    folder: Path, loaded: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    native._loaded(folder)
    for place, mode in ((folder, 0o777), (folder, 0o1777), (folder.parent, 0o777)):
        usual = stat.S_IMODE(place.stat().st_mode)
        place.chmod(mode)
        assert folder_fault(folder) == f"{place} is writable by other users"
        with pytest.raises(native.Unavailable, match="is writable by other users; compiled code"):
            native._loaded(folder)
        place.chmod(usual)
    assert folder_fault(folder) is None
    folder.parent.chmod(0o1777)  # as /tmp
    assert folder_fault(folder) is None
    assert loaded == [b"code"]


def test_a_link_to_a_folder_is_looked_at_on_both_ways(folder: Path, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (open_to_all / "compiled").symlink_to(folder)
    assert folder_fault(open_to_all / "compiled") == f"{open_to_all} is writable by other users"
    (open_to_all / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(open_to_all / "real")
    assert folder_fault(tmp_path / "link") == f"{open_to_all} is writable by other users"


def test_folders_and_files_of_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "a.so"
    path.write_bytes(b"x")
    assert file_fault(path) is None
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert folder_fault(folder) == f"{folder} belongs to another user"
    assert file_fault(path) == f"{path} belongs to another user"


def test_a_new_folder_is_for_nobody_else(tmp_path: Path, loaded: list[bytes]) -> None:
    native._loaded(tmp_path / "new" / "compiled")
    assert stat.S_IMODE((tmp_path / "new" / "compiled").stat().st_mode) == 0o700
