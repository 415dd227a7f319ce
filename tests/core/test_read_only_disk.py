"""Where nothing may be written: the error says why, and what else can be named."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cm3core.errors import FileError
from cm3core.files import cache_folder, check_writable, make_folder
from messages import tells
from small_disk import small_disk


def test_a_disk_that_is_mounted_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        command = ["mount", "-o", "remount,ro", str(disk)]
        subprocess.run(command, check=True)
        with pytest.raises(FileError) as raised:
            check_writable(disk / "a" / "b.png")
        assert tells(raised.value, f"{disk}/a/b.png: can't be written ... {disk}")


def test_a_cache_that_can_t_be_made_says_how_to_have_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FileError) as raised:
        make_folder(cache_folder("embeddings"))
    assert tells(
        raised.value, f"{tmp_path}/file/cache/embeddings: can't be written (Not a directory)"
    )
