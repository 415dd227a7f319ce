"""A folder of pictures has those of one call, and files of others, which are never replaced or removed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cm3core import images
from cm3core.errors import GenerationError
from cm3run.model import Model
from messages import tells
from toy_model import picture

Command = Callable[..., int]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def foreign(tmp_path: Path) -> dict[str, bytes]:
    """Files of others in tmp_path/out: with names and marks as ours have them."""
    (out := tmp_path / "out").mkdir()
    pixels = np.zeros((4, 4, 3), np.uint8)
    images.save_png(out / "007.png", pixels)
    images.save_png(out / "008.png", pixels, {"software": "cm3leon 0.1.0"})
    images.save_png(out / "best.png", pixels, {"software": "cm3leon 0.1.0"})
    (out / "009.png").write_bytes(b"no picture")
    (out / "007.svg").write_text("<svg/>")
    (out / "notes.txt").write_text("mine")
    with zipfile.ZipFile(out / "set.zip", "w") as archive:
        archive.comment = b"cm3leon"
        archive.writestr("a", "b")
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_fewer_pictures_leave_none_of_an_earlier_call(
    cm3: Command,
    tmp_path: Path,
    foreign: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    shown = ("--transparent", "--show-retrieved")
    assert cm3("generate", "red", "--n", 3, *shown, "-o", out) == 0
    assert "note:" not in capsys.readouterr().err
    assert len(names(out)) == len(foreign) + 3 * 2 + 2  # with grid.png and retrieved.png
    assert cm3("generate", "blue", "--n", 1, "-o", out) == 0
    assert f"note: {out}: 8 files of an earlier call are replaced\n" in capsys.readouterr().err
    assert names(out) == sorted([*foreign, "000.png", "grid.png"])
    assert {name: (out / name).read_bytes() for name in foreign} == foreign
    assert images.read_png_metadata(out / "000.png")["prompt"] == "blue"


def test_edits_replace_pictures_too(cm3: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    images.save_png(tmp_path / "a.png", picture(1))
    assert cm3("generate", "red", "--n", 3, "-o", out) == 0
    assert (
        cm3("edit", tmp_path / "a.png", "blue", "--force", "--truncate", "--n", 1, "-o", out) == 0
    )
    assert names(out) == ["000.png", "grid.png"]


def test_zips_go_with_their_pictures_and_changed_files_stay(
    cm3: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cm3("generate", "red", "--n", 4, "--zip", "-o", out) == 0
    (out / "003.png").write_bytes(b"retouched")
    (out / "002.svg").write_text("<svg/>")
    assert cm3("generate", "red", "--n", 2, "-o", out) == 0
    assert names(out) == ["000.png", "001.png", "002.svg", "003.png", "grid.png"]
    assert (out / "003.png").read_bytes() == b"retouched"
    capsys.readouterr()
    assert cm3("generate", "red", "--n", 4, "-o", out) == 2
    assert tells(capsys.readouterr().err, "error: ... was not written by cm3leon ... (and 1 more)")
    assert (out / "003.png").read_bytes() == b"retouched"


@pytest.mark.parametrize(
    "name", ["000.png", "001.png", "000.svg", "001-original.jpg", "grid.png", "retrieved.png"]
)
def test_a_foreign_file_in_the_way_is_named_before_the_model_is_opened(
    cm3: Command,
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cm3apps.cli import generate

    monkeypatch.setattr(generate, "open_model", lambda *_: pytest.fail("a model is opened"))
    (out := tmp_path / "out").mkdir()
    images.save_png(out / "x.png", picture(1), {"software": "cm3leon 0.1.0", "recipe_hash": "x"})
    (out / "x.png").rename(out / name)
    before = (out / name).read_bytes()
    assert cm3("generate", "red", "--n", 2, "--show-retrieved", "-o", out) == 2
    assert name in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {name: before}


def test_a_call_that_fails_before_its_first_picture_removes_nothing(
    cm3: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert cm3("generate", "red", "--n", 2, "-o", out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fails(*args: object, **options: object) -> None:
        raise GenerationError("a prompt", "is wrong", "change it")

    with monkeypatch.context() as patched:
        patched.setattr(Model, "stream", fails)
        assert cm3("generate", "blue", "-o", out) == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_interrupted_call_leaves_new_pictures_only(
    cm3: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert cm3("generate", "red", "--n", 3, "-o", out) == 0
    stream = Model.stream

    def cut(self: Model, *args: object, **options: object):  # type: ignore[no-untyped-def]  # stands for a generator's type
        yield next(iter(stream(self, *args, **options)))  # type: ignore[arg-type]  # handed on
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "stream", cut)
    assert cm3("generate", "blue", "--n", 3, "-o", out) == 130
    assert names(out) == ["000.png"]
    assert images.read_png_metadata(out / "000.png")["prompt"] == "blue"


def test_nothing_is_written_through_a_link(
    cm3: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is the link replaced: it is the user's."""
    (out := tmp_path / "out").mkdir()
    (mine := tmp_path / "mine").write_text("mine")
    for name in ("000.png", "grid.png", "preview.png", "other.png"):
        (out / name).symlink_to(mine)
    assert cm3("generate", "red", "--n", 1, "--preview", "-o", out) == 2
    assert "grid.png" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert all(path.is_symlink() for path in out.iterdir())
