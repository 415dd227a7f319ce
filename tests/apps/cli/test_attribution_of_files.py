"""Every file that a command writes of a picture names the documents that were in front, with their licences."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cm3apps.cli import main as cli
from cm3core import images
from cm3core.document import Image, Text
from cm3run.attribution import facts_in, png
from cm3run.model.model import Model
from messages import tells
from toy_model import MEMORY, Colours, toy_model

HERE = Path(__file__).parent


def square() -> np.ndarray:
    pixels = np.full((8, 8, 3), 255, np.uint8)
    pixels[2:6, 2:6] = 0
    return pixels


@pytest.fixture
def copier(monkeypatch):
    """`cm3 ...` with a model that draws what the first document shows."""

    def document(self, index, rng):
        pixels = square() if index == 0 else np.full((8, 8, 3), 255, np.uint8)
        return (Text(MEMORY[index]), Image(f"drawn {index}", lambda: pixels))

    monkeypatch.setattr(Colours, "_document", document)
    monkeypatch.setattr(Model, "drawn", lambda *_: square())
    own = toy_model()
    monkeypatch.setattr("cm3run.model.model.load", lambda *_, **__: own)
    return lambda *arguments: cli.main([str(argument) for argument in arguments])


def names_ann(path: Path) -> bool:
    found = facts_in(path.read_bytes(), str(path)) if path.name != "retrieved.png" else None
    if found is None:
        return "Ann Colour" in images.read_png_metadata(path)["documents"]
    return [one.provenance.attribution for one in found.credits][:1] == ["Ann Colour"]


def test_all_that_is_written_names_the_author(copier, tmp_path, capsys):
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    out = tmp_path / "out"
    options = ("--transparent", "--svg", "--zip", "--original", "--show-retrieved")
    assert copier("generate", "red", "--n", 2, *options, "-o", out) == 0
    files = sorted(path.name for path in out.iterdir())
    assert files == [
        *(
            f"00{number}{end}"
            for number in range(2)
            for end in (
                "-original.png",
                "-original.png.license",
                "-transparent.png",
                ".png",
                ".svg",
            )
        ),
        "grid.png",
        "retrieved.png",
        "set.zip",
    ]
    for path in out.iterdir():
        if path.suffix in (".png", ".svg") and "original" not in path.name:
            assert names_ann(path), path
    assert (out / "000-original.png.license").read_text() == (
        "SPDX-FileCopyrightText: Ann Colour\n"
        "SPDX-License-Identifier: CC-BY-4.0\n"
        'SPDX-FileComment: red: "red" by Ann Colour, of colours; CC-BY-4.0, '
        "https://creativecommons.org/licenses/by/4.0/; https://example.org/colours; npm colours 1.2.0\n"
    )
    assert (images.open_image(out / "000-original.png") == square()).all()
    with zipfile.ZipFile(out / "set.zip") as archive:
        text = archive.read("LICENSES").decode()
        assert "red.svg" in archive.namelist()
        assert "red-original.png.license" in archive.namelist()
    assert (
        '\nred: nearly a copy of red (CC-BY-4.0)\n  red: "red" by Ann Colour, of colours;' in text
    )
    assert "\nred-2: nearly a copy of red (CC-BY-4.0)\n" in text
    assert tells(
        capsys.readouterr().err,
        f"... note: {out}/000.png is nearly ... CC-BY-4.0 ... nearness 1.00",
    )
    # what an earlier call wrote is replaced, originals too
    assert copier("generate", "red", "--n", 1, "-o", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["000.png", "grid.png"]


def test_the_original_is_offered(copier, tmp_path, capsys):
    assert copier("generate", "red", "--n", 1, "-o", tmp_path / "out") == 0
    assert tells(
        capsys.readouterr().err, f"... note: {tmp_path}/out/000.png is nearly ... CC-BY-4.0"
    )
    assert (
        copier(
            "generate", "red", "--n", 1, "--num-retrieved", 0, "--original", "-o", tmp_path / "b"
        )
        == 0
    )
    assert tells(
        capsys.readouterr().err,
        "... note: there is no original to write: no document was prepended",
    )
    by_hand = tmp_path / "hand.png"
    by_hand.write_bytes(images.png_bytes(square()))
    assert (
        copier(
            "generate",
            "red",
            "--n",
            1,
            "--context",
            by_hand,
            "x",
            "--original",
            "-o",
            tmp_path / "c",
        )
        == 0
    )
    told = capsys.readouterr().err
    assert tells(told, "... note: there is no original to write: the memory has")
    assert tells(told, "... is nearly a ... context 0 ... nearness 1.00")


def test_provenance_says_the_same_of_every_file_and_opens_no_model(
    copier, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    out = tmp_path / "out"
    assert copier("generate", "red", "--n", 1, "--seed", 5, "--svg", "--zip", "-o", out) == 0

    def refuse(*_, **__):
        raise AssertionError("a model is opened")

    monkeypatch.setattr("cm3run.model.model.load", refuse)
    capsys.readouterr()
    printed = []
    for name in ("000.png", "000.svg"):
        assert copier("provenance", out / name) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    lines = printed[0].splitlines()
    assert lines[0] == "prompt: red"
    assert lines[-5:] == [
        "nearest: nearly a copy of red (CC-BY-4.0)",
        "nearness: 1.0",
        "documents:",
        "  red, CC-BY-4.0, npm colours 1.2.0, Ann Colour, colours, https://example.org/colours, "
        "https://creativecommons.org/licenses/by/4.0/, nearness 1.00",
        "  green, MIT, npm colours 1.2.0, Ann Colour, colours, https://example.org/colours, "
        "https://spdx.org/licenses/MIT.html, nearness 0.00",
    ]
    assert copier("provenance", out / "set.zip") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("file: ")] == [
        "file: red.png",
        "file: red.svg",
        "file: grid.png",
    ]
    assert copier("provenance", out / "set.zip", "--json") == 0
    [picture, *_] = json.loads(capsys.readouterr().out)["files"]
    assert picture["documents"][0] == {
        "id": "red",
        "licence": "CC-BY-4.0",
        "source": "npm colours 1.2.0",
        "attribution": "Ann Colour",
        "collection": "colours",
        "title": "red",
        "link": "https://example.org/colours",
        "licence_link": "https://creativecommons.org/licenses/by/4.0/",
        "nearness": 1.0,
    }


def test_pictures_of_earlier_versions_are_looked_up_where_the_user_says(
    cm3, tmp_path, capsys, model
):
    old = tmp_path / "old.png"
    texts = {"recipe_hash": model.recipe.hash, "retrieved": '["red"]', "model": "elsewhere"}
    images.save_png(old, square(), texts)
    assert cm3("provenance", old) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "  red, not in the picture"
    assert tells(captured.err, "note: the picture was ... --model MODEL")


def test_what_is_made_of_a_picture_names_its_documents_too(copier, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert copier("generate", "red", "--n", 1, "-o", out) == 0
    made = tmp_path / "filled.png"
    filled = ("infill", out / "000.png", "--box", "0,0,4,4", "--text", "x", "--num-retrieved", 0)
    assert copier(*filled, "-o", made, "--decoded", tmp_path / "whole.png") == 0
    assert names_ann(made)
    assert names_ann(tmp_path / "whole.png")
    large = tmp_path / "large.png"
    assert copier("upscale", made, "upscaler=lanczos", "-o", large) == 0
    assert names_ann(large)
    edited = tmp_path / "edited"
    assert copier("edit", made, "make it red", "--n", 1, "--force", "--truncate", "-o", edited) == 0
    assert names_ann(edited / "000.png")
    assert names_ann(edited / "grid.png")
    varied = tmp_path / "varied"
    assert copier("generate", "red", "--n", 1, "--vary", "seed=1,2", "-o", varied) == 0
    assert names_ann(varied / "grid.png")


def test_pictures_in_notebooks_name_them_too(model):
    pictures = model.generate("red", 2)
    for shown in (pictures[0], pictures, pictures[0].retrieved[0]):
        content = shown._repr_png_()
        assert content is not None
        assert b"Ann Colour" in content


def test_no_command_writes_pixels_but_with_facts() -> None:
    """Pictures of models are written by `cm3run.attribution`; what else writes PNGs shows no generated picture, or is
    known here."""
    import cm3apps.cli

    allowed = {
        "_data_export.py",  # of a data set, with what it says of each picture beside it
        "data.py",
        "tokenizer.py",
        "upscale.py",  # of a picture that says nothing of itself
        "upscaler.py",
    }
    folder = Path(cm3apps.cli.__file__).parent
    found = {
        path.name
        for path in folder.glob("*.py")
        if any(word in path.read_text("utf-8") for word in ("save_png", "png_bytes"))
    }
    assert found == allowed
    assert png is not None
