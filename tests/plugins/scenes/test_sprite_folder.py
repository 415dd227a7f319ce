"""Sprites in a user's folder: names, styles, cut out pictures, files that can't be used, the order of files."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.dataset import DocumentSource
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.scenes import folder as under_test
from cm3plugins.scenes.config import ScenesConfig
from cm3plugins.scenes.folder import background, cut_out, folder_sprites, resized
from cm3plugins.scenes.sprites import Sprites, composed
from messages import tells

THINGS = (
    "ball",
    "box",
    "fish",
    "flag",
    "gem",
    "hat",
    "key",
    "leaf",
    "moon",
    "star",
    "tree",
    "wing",
)


def shape(number: int, *, paint: str = "red", page: tuple[int, ...] | None = None) -> Image.Image:
    """One of many shapes, on a page, or with alpha."""
    mode = "RGBA" if page is None else "RGB"
    picture = Image.new(mode, (40, 40), page or (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    for bit in range(6):
        if (number + 1) >> bit & 1:
            left, top = 4 + bit % 3 * 12, 4 + bit // 3 * 16
            pen.rectangle((left, top, left + 9, top + 13), fill=paint)
    return picture


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def sprites(folder: Path, *styles: str) -> Sprites:
    return folder_sprites(str(folder), styles, str(folder.parent / "cache"))


def names(found: Sprites) -> list[tuple[str, str, str]]:
    return [(one.concept, one.label, one.style) for one in found.all]


def svg(body: str) -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">{body}</svg>'.encode()


def drawings(prefix: str = "", paint: str = "red") -> dict[str, bytes]:
    return {f"{prefix}{name}.png": encoded(shape(i, paint=paint)) for i, name in enumerate(THINGS)}


class TestScenesOfAFolder(DocumentSourceContract):
    max_examples = 3

    def waive_parts_and_provenances_are_those_of_the_documents(self) -> str:
        return "a scene is made of several drawings, and provenances() counts these"

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = write(tmp_path / "own", drawings() | drawings("pixel_art/", "blue"))

    def make(self) -> DocumentSource:
        cache = str(self.path.parent / "cache")
        return ScenesConfig(sprites=str(self.path), num_scenes=20, cache_dir=cache).build()


def test_names_and_styles(tmp_path: Path) -> None:
    """The file is the thing, its folder the style; deeper folders and hidden files are not read."""
    files = {
        "Red_Car.png": encoded(shape(0)),
        "old  key.GIF": encoded(shape(1, page=(255, 255, 255)), "GIF"),
        "Pixel-Art/red-car.webp": encoded(shape(2), "WEBP"),
        "Pixel-Art/cafe\u0301.jpg": encoded(shape(3, page=(250, 250, 250)), "JPEG"),
        "Pixel-Art/deeper/tree.png": encoded(shape(4)),
        "flat/sun.svg": svg('<circle cx="4" cy="4" r="3" fill="gold"/>'),
        ".hidden.png": b"",
        "notes.txt": b"by me",
    }
    found = sprites(write(tmp_path / "own", files))
    assert sorted(names(found)) == [
        ("café", "café", "pixel art"),
        ("old-key", "old key", "own"),
        ("red-car", "red car", "own"),
        ("red-car", "red car", "pixel art"),
        ("sun", "sun", "flat"),
    ]
    assert list(found.skipped) == []
    index = names(found).index(("sun", "sun", "flat"))
    assert found.provenance(index).title == "sun"
    assert found.provenance(index).collection == "flat"
    assert found.render(index, 8)[4, 4].tolist() == [255, 215, 0, 255]
    assert found.render(index, 8)[0, 0, 3] == 0


def test_chosen_styles(tmp_path: Path) -> None:
    folder = write(tmp_path / "own", {**drawings("a/"), **drawings("b_c/"), "x.png": b""})
    assert {one.style for one in sprites(folder, "b_c").all} == {"b c"}
    assert sprites(folder, "b c").skipped == []  # files of other styles are not read
    with pytest.raises(RecipeError) as error:
        sprites(folder, "a", "b-d")
    assert tells(error.value, "dataset.styles: ... has the style 'b-d'; did you mean 'b c'?")


def test_opaque_picture_by_hand() -> None:
    """The page goes, but not what the drawing encloses; the visible part is in the middle of a square."""
    pixels = np.full((8, 10, 3), 250, np.uint8)
    pixels[2:6, 3:6] = (200, 0, 0)
    pixels[3:5, 4] = 250
    pixels[0, 4] = 240  # as JPEG would have it
    found = cut_out(encoded(Image.fromarray(pixels)), "it")
    assert found.shape == (6, 6, 4)  # four rows, and a margin of one pixel
    expected = np.zeros((6, 6), np.uint8)
    expected[1:5, 1:4] = 255
    assert (found[..., 3] == expected).all()
    assert found[1, 1].tolist() == [200, 0, 0, 255]
    assert found[2, 2].tolist() == [250, 250, 250, 255]


def test_without_a_page_nothing_is_cut() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0, 0] = 255
    assert (cut_out(encoded(Image.fromarray(pixels)), "it")[1:-1, 1:-1, 3] == 255).all()


@given(st.integers(0, 2**36 - 1))
def test_background_is_what_a_flood_reaches(bits: int) -> None:
    """As Pillow's flood fill around the picture finds it."""
    solid = np.array([bits >> place & 1 for place in range(36)], bool).reshape(6, 6)
    solid[[0, 0, -1, -1], [0, -1, 0, -1]] = False
    page = np.where(solid, 0, 255).astype(np.uint8)
    framed = Image.fromarray(np.pad(page, 1, constant_values=255)).copy()
    ImageDraw.floodfill(framed, (0, 0), 99)
    flooded = np.asarray(framed)[1:-1, 1:-1] == 99
    assert (background(np.repeat(page[..., None], 3, 2)) == flooded).all()


PURE = st.tuples(*[st.sampled_from((0, 255))] * 3)


@given(st.integers(8, 255), PURE, PURE, st.integers(1, 40))
def test_alpha_is_kept_without_a_halo(
    alpha: int, colour: tuple[int, ...], stored: tuple[int, ...], side: int
) -> None:
    """Whatever colour is stored in transparent pixels, no size of a drawing of one colour shows another."""
    pixels = np.zeros((12, 12, 4), np.uint8)
    pixels[...] = (*stored, 0)
    pixels[3:9, 2:10] = (*colour, alpha)
    cut = cut_out(encoded(Image.fromarray(pixels)), "it")
    assert cut[5, 5].tolist() == [*colour, alpha]
    for page in ((255, 255, 255), (252, 214, 226)):
        shown = composed(resized(cut, side)[None], page)[0].astype(int)
        both = np.array([colour, page])
        assert (shown >= both.min(0) - 1).all()
        assert (shown <= both.max(0) + 1).all()


def test_large_picture_is_reduced(tmp_path: Path) -> None:
    middling, large = (
        shape(6).resize((side, side), Image.Resampling.NEAREST) for side in (400, 2100)
    )
    assert max(cut_out(encoded(large), "it").shape) < 1100
    [found] = sprites(write(tmp_path / "own", {"a.png": encoded(large)})).pixels(20)
    small = resized(cut_out(encoded(middling), "it"), 20)
    assert np.abs(found.astype(int) - small)[..., 3].mean() < 6


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "is empty (0 bytes)"),
    "empty.svg": (b"", "is empty (0 bytes)"),
    "cut.png": (encoded(shape(5))[:-30], "is truncated"),
    "text.jpg": (b"not a picture at all", "is not a picture"),
    "clear.png": (encoded(Image.new("RGBA", (9, 9))), "is transparent everywhere"),
    "plain.jpg": (encoded(Image.new("RGB", (9, 9), "red"), "JPEG"), "has one colour alone"),
    "huge.png": (encoded(Image.new("1", (9000, 9000))), "has 9000 x 9000 pixels"),
    "shade.svg": (svg('<path d="M0 0h8v8z" fill="url(#a)"/>'), "is painted with a gradient"),
    "shade2.svg": (svg('<path d="M0 0h8v8z" style="fill: URL(#a)"/>'), "is painted with a grad"),
    "script.svg": (svg("<script/>"), "has <script>, which is no plain shape"),
    "bomb.svg": (b'<!DOCTYPE svg [<!ENTITY a "b">]>' + svg("&a;"), "declares entities"),
    "blank.svg": (svg(""), "shows nothing"),
    "phone.heic": (b"x", "pictures of type .heic are not supported"),
    "--_.png": (encoded(shape(5)), "its name has no letter or digit"),
    "!/a.png": (encoded(shape(5)), "its folder's name has no letter or digit"),
}


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Each is skipped with its place, cause and next step; the rest is used."""
    files = {"good.png": encoded(shape(3)), **{name: data for name, (data, _) in BROKEN.items()}}
    folder = write(tmp_path / "own", files)
    found = sprites(folder)
    assert names(found) == [("good", "good", "own")]
    by_place = {one.place: one for one in found.skipped}
    assert len(by_place) == len(BROKEN)
    for name, (_, cause) in BROKEN.items():
        one = by_place[str(folder / name)]
        assert tells(DataError(one.place, one.cause, one.next_step), f"{folder / name}: {cause}")
    source = ScenesConfig(sprites=str(write(folder, drawings())), cache_dir=str(tmp_path)).build()
    assert len(source.skipped) == len(BROKEN)


def test_second_of_a_name_is_skipped(tmp_path: Path) -> None:
    """The first in the order of names that can be used is kept."""
    files = {
        "RED CAR.png": b"",
        "Red Car.png": encoded(shape(1)),
        "red_car.webp": encoded(shape(2), "WEBP"),
        "own/red-car.png": encoded(shape(3)),
    }
    folder = write(tmp_path / "own", files)
    found = sprites(folder)
    assert names(found) == [("red-car", "red car", "own")]
    assert [one.place for one in found.skipped] == [
        str(folder / name) for name in ("RED CAR.png", "own/red-car.png", "red_car.webp")
    ]
    assert found.skipped[1].cause == "has the name of Red Car.png, 'red car'"


def test_links_out_are_not_followed(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"secret.png": encoded(shape(1))})
    folder = write(tmp_path / "own", {"a.png": encoded(shape(0)), "s/b.png": encoded(shape(2))})
    (folder / "c.png").symlink_to(outside / "secret.png")
    (folder / "more").symlink_to(outside)
    (folder / "d.png").symlink_to(folder / "a.png")
    (folder / "again").symlink_to(folder / "s")
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    found = sprites(folder)
    assert [one.label for one in found.all] == ["a", "d", "b"]
    causes = {Path(one.place).name: one.cause for one in found.skipped}
    assert causes.keys() == {"c.png", "more", "gone.png", "pipe.png"}
    assert causes["c.png"] == causes["more"] == "is a link out of the folder, which is not read"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "dataset.sprites ... there is no such folder"),
        (lambda path: path.write_bytes(b""), "dataset.sprites ... is a file, not a folder"),
        (lambda path: path.mkdir(), "dataset.sprites ... neither it nor its subfolders hold"),
        (
            lambda path: write(path, {"a.png": b"", "b.png": b"x"}),
            "dataset.sprites ... no file can be used; the first: ... a.png is empty (0 bytes)",
        ),
        (
            lambda path: write(path, {"a.heic": b"x"}),
            "dataset.sprites ... hold a drawing ... a.heic pictures of type .heic are not",
        ),
    ],
)
def test_bad_folders(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "own")
    with pytest.raises(DataError) as error:
        sprites(tmp_path / "own")
    assert tells(error.value, words)


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "MOST_FILES", 11)
    with pytest.raises(DataError) as error:
        sprites(write(tmp_path / "own", drawings()))
    assert tells(error.value, "dataset.sprites ... holds more than 11 drawings")


def test_too_few_concepts(tmp_path: Path) -> None:
    three = dict(list(drawings().items())[:3])
    with pytest.raises(DataError) as error:
        ScenesConfig(sprites=str(write(tmp_path / "own", three)), cache_dir=str(tmp_path)).build()
    assert tells(error.value, "dataset, style 'own': has ... scenes need 4")


def test_order_of_the_file_system_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal content in another order, and elsewhere, gives equal sprites, and another content others."""
    files = {**drawings(), **drawings("b/"), "Ball.png": encoded(shape(30)), "c.png": b""}
    first = sprites(write(tmp_path / "one", files))
    there = write(tmp_path / "two", dict(reversed(files.items())))
    iterdir = Path.iterdir
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda path: reversed(list(iterdir(path))))
        patch.setattr(under_test, "sorted", lambda found, **by: sorted(found, **by), raising=False)
        second = sprites(there)
    assert first.all == second.all
    assert first.sha256 == second.sha256
    assert (first.pixels(12) == second.pixels(12)).all()
    relative = [
        [one.place.removeprefix(str(root)) for one in found.skipped]
        for root, found in ((tmp_path / "one", first), (there, second))
    ]
    assert relative[0] == relative[1] == ["/ball.png", "/c.png"]
    write(there, {"b/ball.png": encoded(shape(30))})
    assert sprites(there).sha256 != first.sha256


def test_read_once(tmp_path: Path) -> None:
    """Equal files are read once a process; a file that changes meanwhile is not drawn."""
    folder = write(tmp_path / "own", drawings())
    found = sprites(folder)
    assert sprites(folder) is found
    write(folder, {"ball.png": encoded(shape(40))})
    assert sprites(folder) is not found
    with pytest.raises(DataError) as error:
        found.pixels(10)
    assert tells(error.value, f"{folder / 'ball.png'}: has changed since the folder was read")


def test_sha256_by_hand(tmp_path: Path) -> None:
    content = encoded(shape(0))
    found = sprites(write(tmp_path / "own", {"a/b.png": content, "a/c.png": b""}))
    row = f"1\na/b.png\0{hashlib.sha256(content).hexdigest()}"
    assert found.sha256 == hashlib.sha256(row.encode()).hexdigest()
    assert found.name == "sprites"
