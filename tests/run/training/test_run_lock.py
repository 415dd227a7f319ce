"""One training a folder; a run that fails at its start leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3core.errors import CM3Error, FileError
from cm3run.training.saving import LOCK, run_lock
from messages import tells


def test_another_one_is_refused(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(CM3Error) as caught, run_lock(tmp_path):
        pass
    assert tells(caught.value, f"{tmp_path}: another process is training in this")
    with run_lock(tmp_path):
        pass


def test_a_failure_before_anything_is_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), run_lock(tmp_path / "runs" / "mine"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_folders_that_others_made_or_fill_stay(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyError), run_lock(tmp_path / "there"):
        raise KeyError
    with pytest.raises(KeyError), run_lock(tmp_path / "runs" / "mine"):  # noqa: PT012  # must rise inside
        (tmp_path / "runs" / "other").mkdir()
        raise KeyError
    with pytest.raises(KeyError), run_lock(tmp_path / "filled"):  # noqa: PT012  # must rise inside
        (tmp_path / "filled" / "recipe.yaml").touch()
        raise KeyError
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "filled",
        f"filled/{LOCK}",
        "filled/recipe.yaml",
        "runs",
        "runs/other",
        "there",
        f"there/{LOCK}",
    ]


def test_a_link_in_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(FileError, match="is a link, a folder or a device"), run_lock(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "kept"
