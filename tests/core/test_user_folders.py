"""Folders of the cache, and what killed processes left in them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cm3core.errors import CM3Error, FileError
from cm3core.files import SUFFIX, cache_directory, cache_folder, user_path
from cm3run.progress import make_bar
from cm3run.training.code_cache import sharded_rows


def left_by_a_kill(folder: Path) -> Path:
    """A folder as a process leaves it that is killed between taking a file to its place and removing
    what it was written in."""
    left = folder / f".rows.npy.0123abcd{SUFFIX}"
    left.mkdir(parents=True)
    return left


def test_its_folders_are_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    assert cache_folder() == tmp_path
    assert cache_folder("codes", "0123") == tmp_path / "codes" / "0123"
    assert cache_folder("codes", root=tmp_path / "mine") == tmp_path / "mine" / "codes"
    assert cache_folder("codes", root="~/x") == Path.home() / "x" / "codes"
    assert list(tmp_path.iterdir()) == []  # none is made


def test_what_a_dead_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    import fcntl

    left, used = left_by_a_kill(tmp_path / "a"), left_by_a_kill(tmp_path / "b")
    handle = os.open(used, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    for name in "ab":
        assert cache_folder(name, root=tmp_path) == tmp_path / name
    os.close(handle)
    assert not left.exists()
    assert used.is_dir()


def test_rows_that_are_complete_are_read_and_leftovers_beside_them_removed(tmp_path: Path) -> None:
    """Nothing is written there any more, so that writing can't remove them."""

    def rows(folder: Path) -> None:
        sharded_rows(
            folder,
            (3, 1),
            np.int32,
            lambda start, stop: np.arange(start, stop)[:, None],
            shard_size=2,
            bar=partial(make_bar, desc="rows", unit="row", disable=True),
        )

    rows(tmp_path / "codes")
    left_by_a_kill(tmp_path / "codes")
    if (child := os.fork()) == 0:  # the next run
        rows(cache_folder("codes", root=tmp_path))
        os._exit(0)
    os.waitpid(child, 0)
    assert sorted(path.name for path in (tmp_path / "codes").iterdir()) == ["rows.npy"]


def test_wrong_folders_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "file"))
    with pytest.raises(FileError) as caught:
        cache_folder("codes")
    assert str(caught.value) == (
        f"CM3_CACHE: is {tmp_path / 'file'}, not a folder\n  next: name a folder"
    )
    with pytest.raises(CM3Error) as unknown:
        user_path("~nobody-of-that-name/x", "data.cache_dir")
    assert unknown.value.place == "data.cache_dir"
