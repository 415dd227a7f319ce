"""Data set `folder`: what is not searched or can't be read as it is named, so that nothing is lost without a word."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cm3core.errors import DataError
from messages import tells
from picture_files import folder, found, picture, write


def test_linked_folders_are_named(tmp_path: Path) -> None:
    """One inside is searched where it lies; one elsewhere was left out without a word."""
    write(tmp_path / "other", {"b.png": picture(2), "b.txt": "two"})
    data = tmp_path / "data"
    write(data, {"a.png": picture(1), "a.txt": "one", "x/c.png": picture(3), "x/c.txt": "three"})
    (data / "more").symlink_to(tmp_path / "other")
    (data / "again").symlink_to("x")
    (data / "x" / "all").symlink_to(data)
    (data / ".hidden").symlink_to(tmp_path / "other")
    for allow_outside in (False, True):
        source = folder(data, allow_outside=allow_outside)
        assert list(source.texts()) == ["one", "three"]
        assert found(source, data) == [
            (
                "more",
                "is a link to a folder elsewhere, which is not searched for pictures",
                "replace the link by a copy of the folder, or remove it",
            )
        ]


def test_a_folder_of_links_alone(tmp_path: Path) -> None:
    write(tmp_path / "other", {"b.png": picture(2), "b.txt": "two"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "more").symlink_to(tmp_path / "other")
    with pytest.raises(DataError) as raised:
        folder(tmp_path / "data")
    assert tells(raised.value, f"{tmp_path}/data/more: is a link to a folder")


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's refusal is pretended: root is refused nothing."""
    write(tmp_path, {"a.png": picture(1), "a.txt": "one", "x/c.png": picture(3), "x/c.txt": "3"})
    listed = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("x"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", scandir)
        source = folder(tmp_path)
    assert list(source.texts()) == ["one"]
    assert found(source, tmp_path) == [
        (
            "x",
            "can't be read: Permission denied",
            "correct its permissions, or remove it",
        )
    ]


@pytest.mark.parametrize(
    ("name", "header", "cause", "step"),
    [
        (
            "captions.csv",
            "image;text",
            "its columns are separated by semicolons, not commas",
            "save it with commas",
        ),
        (
            "captions.csv",
            "text\timage\tx",
            "its columns are separated by tabs, not commas",
            "name it .tsv, or save it with commas",
        ),
        (
            "captions.tsv",
            "image, text",
            "its columns are separated by commas, not tabs",
            "name it .csv, or save it with tabs",
        ),
    ],
)
def test_captions_with_another_separator(
    tmp_path: Path, name: str, header: str, cause: str, step: str
) -> None:
    write(tmp_path, {"a.png": picture(1), name: f"{header}\na.png;one\n"})
    with pytest.raises(DataError) as raised:
        folder(tmp_path)
    assert str(raised.value) == f"{tmp_path / name}:1: {cause}\n  next: {step}"


def test_a_memory_bank_is_no_folder_of_pictures(tmp_path: Path) -> None:
    write(tmp_path, {"manifest.json": "{}"})
    with pytest.raises(DataError) as raised:
        folder(tmp_path)
    assert tells(raised.value.next_step, "it is a ... 'cm3 memory merge'")
