"""Pictures that look alike: which pairs do, by hand, and splits that keep them together."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures

from cm3core.document import PixelArray
from cm3core.interfaces.dataset import SkippedRecord
from cm3plugins.datasets import looks
from cm3plugins.datasets.file_source import FileSource, FoundRecord, in_groups_of_looks
from cm3plugins.datasets.looks import COLOUR, Groups, look_alikes, look_of
from cm3plugins.datasets.pictures import PictureIndex
from picture_files import folder, png_chunk, png_header, write

RED, GREEN = (220, 30, 30), (30, 220, 30)


def drawn(
    cells: Sequence[Sequence[int]],
    colour: tuple[int, int, int] = (0, 0, 0),
    *,
    scale: int = 12,
    at: tuple[int, int] = (10, 10),
    side: int = 120,
) -> PixelArray:
    """Cells of `scale` pixels on a white page, filled where `cells` is 1."""
    page = np.full((side, side, 3), 255, np.uint8)
    for row, column in np.argwhere(np.array(cells)):
        top, left = at[0] + scale * row, at[1] + scale * column
        page[top : top + scale, left : left + scale] = colour
    return page


def png(pixels: PixelArray) -> bytes:
    file = io.BytesIO()
    Pictures.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


STEP, CROSS = [[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[0, 1, 0], [1, 1, 1], [0, 1, 0]]


def test_place_and_size_do_not_matter_but_colours_and_shapes_do() -> None:
    every = [
        drawn(STEP, RED),
        drawn(STEP, RED, scale=24, at=(40, 20)),
        drawn(STEP, GREEN),
        drawn(CROSS, RED),
        np.full((50, 80, 3), 255, np.uint8),
        np.full((50, 80, 3), 255, np.uint8),
    ]
    # blank pictures have no look: they are alike only as equal files
    assert list(look_alikes([look_of(one) for one in every])) == [(0, 1)]


def test_how_near_colours_must_be() -> None:
    """A full square has the same number of levels everywhere, so the root mean square is that of the channels:
    (60, 0, 0) differs from black by 60 / sqrt(3) = 34.6, (90, 0, 0) by 52."""
    square = [[1]]
    black, dark, red = (look_of(drawn(square, one)) for one in ((0, 0, 0), (60, 0, 0), (90, 0, 0)))
    assert 60 / 3**0.5 < COLOUR < 90 / 3**0.5
    assert list(look_alikes([black, dark])) == [(0, 1)]
    assert list(look_alikes([black, red])) == []


def test_no_pictures_and_large_ones() -> None:
    assert list(look_alikes([])) == []
    small, large = drawn(STEP, RED), drawn(STEP, RED, scale=400, at=(100, 60), side=1400)
    assert list(look_alikes([look_of(small), look_of(large)])) == [(0, 1)]


class Decoded:
    """A picture of a record that is in memory."""

    def __init__(self, key: str, pixels: PixelArray) -> None:
        self.key, self._pixels = key, pixels

    def load(self) -> PixelArray:
        return self._pixels


SHAPES = st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=3, max_size=3)


@settings(max_examples=15)
@given(st.lists(st.tuples(SHAPES, st.sampled_from([RED, GREEN])), max_size=12))
def test_alike_pictures_share_a_look(
    tmp_path_factory: pytest.TempPathFactory,
    drawings: list[tuple[list[list[int]], tuple[int, int, int]]],
) -> None:
    """Every pair that looks alike shares it, and no record is lost or changed otherwise."""
    pixels = [drawn(cells, colour) for cells, colour in drawings]
    records = [
        FoundRecord(f"{place}", f"{place}", (("a text",), Decoded(f"key-{place:02}", one)))
        for place, one in enumerate(pixels)
    ]
    with PictureIndex.open(tmp_path_factory.mktemp("index") / "index.sqlite") as index:
        found = [one for one in in_groups_of_looks(records, index) if isinstance(one, FoundRecord)]
    assert [one.id for one in found] == [one.id for one in records]
    for first, second in look_alikes([look_of(one) for one in pixels]):
        assert found[first].look == found[second].look != ""
    assert all(one.look <= one.pictures[0].key for one in found)


def test_groups_and_pictures_join_records() -> None:
    """Records 0 and 1 are of one group, 1 and 2 share a picture, 3 is of the group by its text alone, 4 is alone."""
    a, b, c, d = (
        Decoded(name, drawn(cells))
        for name, cells in (("a", STEP), ("b", CROSS), ("c", [[1, 1]]), ("d", [[1, 0, 1]]))
    )
    records = [
        FoundRecord("0", "0", (c,), group="talk"),
        FoundRecord("1", "1", (b, a), group="talk"),
        FoundRecord("2", "2", (a,)),
        FoundRecord("3", "3", (("text",),), group="talk"),
        FoundRecord("4", "4", (d,)),
        FoundRecord("5", "5", (("text",),)),
    ]
    with PictureIndex.open() as index:
        looked = list(in_groups_of_looks(records, index))
    found = [one.look for one in looked if isinstance(one, FoundRecord)]
    assert found == ["a", "a", "a", "a", "d", ""]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef"))))
def test_sets_are_named_after_their_smallest(pairs: list[tuple[str, str]]) -> None:
    groups, sets = Groups("abcdef"), {name: {name} for name in "abcdef"}
    for one, other in pairs:
        groups.join(one, other)
        joined = sets[one] | sets[other]
        sets |= dict.fromkeys(joined, joined)
    assert {name: groups.first(name) for name in sets} == {
        name: min(own) for name, own in sets.items()
    }


def of_looks(path: Path, split: str) -> FileSource:
    return folder(path, split=split, valid=0.4, split_by="look")


def test_no_look_alikes_across_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten drawings, each at four places or sizes, under forty names; the second time, none is decoded for it."""
    rng = np.random.default_rng(1)
    shapes = [rng.permutation([1, 1, 1, 1, 1, 0, 0, 0]).reshape(2, 4) for _ in range(30)]
    kept: list[np.ndarray] = []
    for shape in shapes:
        tried = [look_of(drawn(one.tolist())) for one in (*kept, shape)]
        if len(kept) < 10 and not list(look_alikes(tried)):
            kept.append(shape)
    assert len(kept) == 10
    ways = [(12, (10, 10)), (12, (40, 60)), (14, (2, 30)), (24, (9, 20))]
    for number, shape in enumerate(kept):
        for way, (scale, at) in enumerate(ways):
            name = f"{way}-{number}"
            pixels = drawn(shape.tolist(), scale=scale, at=at)
            write(tmp_path, {f"{name}.png": png(pixels), f"{name}.txt": name})
    parts = [set(of_looks(tmp_path, split).texts()) for split in ("train", "valid")]
    numbers = [{name.partition("-")[2] for name in part} for part in parts]
    assert all(parts)
    assert len(parts[0] | parts[1]) == 40
    assert not numbers[0] & numbers[1]
    monkeypatch.setattr(looks, "look_of", lambda pixels: pytest.fail("a look was made again"))
    assert set(of_looks(tmp_path, "valid").texts()) == parts[1]


def test_a_picture_that_cant_be_decoded_is_skipped_at_once(tmp_path: Path) -> None:
    """Its header and checksums are right, so that other splits find it only when they load it."""
    bad = png_header(12, 9) + png_chunk(b"IDAT", b"nothing") + png_chunk(b"IEND", b"")
    write(tmp_path, {"good.png": png(drawn(STEP)), "good.txt": "good", "bad.png": bad})
    write(tmp_path, {"bad.txt": "bad"})
    assert len(folder(tmp_path, split="all")) == 2
    source = of_looks(tmp_path, "all")
    [record] = source.skipped
    assert isinstance(record, SkippedRecord)
    assert record.place == str(tmp_path / "bad.png")
    assert [source.id(index) for index in range(len(source))] == ["good.png"]
    assert len(folder(tmp_path, split="all")) == 1  # recorded for all
