"""The data set `folder` with captions by file names, and with SVG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Image, text_of
from cm3core.errors import DataError
from cm3core.plugins import load_registry
from cm3core.recipe import recipe_from_yaml
from cm3plugins.datasets.folder import named_by_files, tells_nothing
from messages import tells
from picture_files import folder, picture, write

RED = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 1"><rect width="2" height="1" fill="red"/></svg>'


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("folder-red.png", "folder red"),
        ("places/64/folder-red.png", "folder red, places"),
        ("64x64/places/folder-red.png", "folder red, places"),
        ("animals/birds/red_fox_02.jpg", "red fox, birds"),
        ("boeing 747.png", "boeing 747"),
        ("cats/000123.png", "cats"),
        ("creatures/mr_tree/IMG_0036.JPG", "mr tree"),
        ("creatures/mr_tree/PXL_20240131_120000.jpg", "mr tree"),
        ("mr_tree/mr_tree_36.png", "mr tree 36, mr tree"),
        ("12.png", "12"),
        ("птицы/синяя_сова.png", "синяя сова, птицы"),
    ],
)
def test_captions_by_names(name: str, caption: str) -> None:
    assert named_by_files([name]) == {name: caption}


def test_numbers_that_tell_files_apart_are_no_words() -> None:
    names = ["mr_tree/mr_tree_36.png", "mr_tree/mr_tree_37.png", "mr_tree/boeing 747.png"]
    assert list(named_by_files(names).values()) == ["mr tree", "mr tree", "boeing 747, mr tree"]


@given(st.integers(0, 9999), st.sampled_from(["IMG_", "DSC_", "DSCF", "P100", "MVI_", "_MG_", ""]))
def test_what_a_camera_names_has_no_word(number: int, prefix: str) -> None:
    """DCF: four characters, four digits."""
    stem = f"{prefix}{number:04}"
    [caption] = named_by_files([f"{stem}.JPG"]).values()
    assert tells_nothing(f"{stem}.JPG", caption)
    assert named_by_files([f"red fox/{stem}.JPG"]) == {f"red fox/{stem}.JPG": "red fox"}


@given(st.lists(st.text("ab0_-/", min_size=1), unique=True))
def test_every_picture_gets_one_line(names: list[str]) -> None:
    named = named_by_files(names)
    assert list(named) == names
    assert all(text == text.strip() and "\n" not in text for text in named.values())


def test_written_captions_come_first(tmp_path: Path) -> None:
    files = {"a_dog.png": picture(1), "a_cat.png": picture(2), "__.png": picture(3)}
    write(tmp_path, {**files, "a_dog.txt": "Rex"})
    source = folder(tmp_path, split="all", names_as_captions=True)
    assert sorted(source.texts()) == ["Rex", "a cat"]
    [bad] = source.skipped
    assert (bad.place, bad.cause) == (str(tmp_path / "__.png"), "the caption is empty")
    write(tmp_path, {"captions.csv": "image,text\na_cat.png,Tom\n"})
    source = folder(tmp_path, split="all", names_as_captions=True)
    assert sorted(source.texts()) == ["Tom", "a dog"]


def test_svg_files_are_drawn(tmp_path: Path) -> None:
    """A red bar of two to one in the middle of a white square of eight pixels."""
    script = RED.replace("<rect", "<script/><rect")
    write(tmp_path, {"bar.svg": RED, "bad.svg": script, "worse.svg": "<svg"})
    source = folder(tmp_path, split="all", names_as_captions=True, svg_size=8)
    [document] = [source.document(index) for index in range(len(source))]
    assert text_of(document) == "bar"
    [image] = [one for one in document if isinstance(one, Image)]
    pixels = np.full((8, 8, 3), 255, np.uint8)
    pixels[2:6] = (255, 0, 0)
    np.testing.assert_array_equal(image.load(), pixels)
    causes = {Path(one.place).name: one.cause for one in source.skipped}
    assert causes["bad.svg"] == "has <script>, which is no plain shape"
    assert causes["worse.svg"].startswith("is not well-formed XML")
    larger = folder(tmp_path, split="all", names_as_captions=True, svg_size=9)
    assert larger.fingerprint != source.fingerprint


def test_svg_files_are_skipped_without_a_size(tmp_path: Path) -> None:
    write(tmp_path, {"bar.svg": RED})
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    assert tells(caught.value, "... holds no picture (.png, ... set dataset.svg_size to the ...")
    write(tmp_path, {"a.png": picture(1), "a.txt": "a"})
    [record] = folder(tmp_path, split="all").skipped
    assert (record.cause, record.next_step.partition(" to ")[0]) == (
        "is an SVG file",
        "set dataset.svg_size",
    )


def test_hashes_of_earlier_recipes_stay() -> None:
    """The keys are written only where they are not the default."""
    registry = load_registry()
    text = "dataset: {name: folder, path: my/pictures%s}\nvocabulary: {num_text: 256}\n"
    plain = recipe_from_yaml(text % "", registry)
    named = recipe_from_yaml(text % ", names_as_captions: true, svg_size: 64", registry)
    assert plain.to_dict()["dataset"].keys() & {"names_as_captions", "svg_size"} == set()
    assert plain.hash != named.hash
    assert recipe_from_yaml(named.to_yaml(), registry).hash == named.hash
