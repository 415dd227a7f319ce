"""Data set `svg_folder`: laws, files by hand, what is refused of a stranger's files, names and styles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Image, text_of
from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.dataset import DocumentSource
from cm3icons.data import IconSourceConfig
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.datasets.svg_folder import SvgFolderConfig
from cm3plugins.datasets.svg_folder.names import names_of
from cm3plugins.datasets.svg_folder.reading import parsed
from messages import tells

OWN = Path(__file__).parents[2] / "fixtures" / "own_icons"
LUCIDE = IconSourceConfig(sets=["lucide"], held_out="by_name")
BODY = '<path d="M4 4h16v16z"/>'


def svg(body: str, attributes: str = 'viewBox="0 0 24 24"') -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{body}</svg>'


class TestSvgFolder(DocumentSourceContract):
    max_examples = 3

    def make(self) -> DocumentSource:
        return SvgFolderConfig(path=str(OWN)).build()


def test_own_icons() -> None:
    """Words that all names have are no part of them, and the one colour is black."""
    source = SvgFolderConfig(path=str(OWN), split="all", title="mine").build()
    documents = {source.id(index): source.document(index) for index in range(len(source))}
    assert {key: text_of(one) for key, one in documents.items()}["ico_bar-chart_20"] == (
        "bar chart, outline, mine"
    )
    [picture] = [one for one in documents["ico_minus_20"] if isinstance(one, Image)]
    assert set(np.unique(picture.load())) == {0, 255} or picture.load().min() == 0
    assert picture.drawing is not None
    assert "currentColor" in picture.drawing()
    assert source.skipped == []
    assert source.original(0).content.startswith(b"<svg")


def test_splits_are_parts_of_all() -> None:
    parts = [
        SvgFolderConfig(path=str(OWN), split=split, valid=0.4).build()
        for split in ("train", "valid")
    ]
    ids = [[part.id(index) for index in range(len(part))] for part in parts]
    assert sorted([*ids[0], *ids[1]]) == sorted(path.stem for path in OWN.glob("*.svg"))
    assert all(ids)


class TestWithThings(DocumentSourceContract):
    max_examples = 3

    def make(self) -> DocumentSource:
        return SvgFolderConfig(path=str(OWN), split="memory", things=LUCIDE).build()


def test_a_memory_has_what_another_data_set_shows_of_the_same_things() -> None:
    config = SvgFolderConfig(path=str(OWN), things=LUCIDE, title="mine", valid=0)
    memory = config.memory_config().build()
    texts = {text_of(memory.document(index)) for index in range(len(memory))}
    assert {"bell, outline, mine", "bell, outline rounded, lucide"} <= texts
    assert len(config.build()) == 12
    assert 12 < len(memory) < 30
    assert SvgFolderConfig(path=str(OWN)).memory_config().split == "train"


def test_styles_become_attributes() -> None:
    """Of classes, of `style`, and of groups; what an editor adds and a clip path around everything are left out."""
    one = parsed(
        b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "svg11.dtd">'
        + svg(
            "<style>.a { stroke: red; fill: none }</style><title>x</title>"
            '<e:view xmlns:e="urn:editor"/><g clip-path="url(#c)" stroke-width="2" onclick="x()">'
            '<path class="a" d="M0 0h4" style="stroke-linecap: round; font: x"/></g>'
            '<defs><clipPath id="c"><rect width="30" height="20"/></clipPath></defs>',
            'viewBox="0 0 30 20" fill="#fff" onload="x()"',
        ).encode()
    )
    assert one.svg == (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -5 30 30"><g><path d="M0 0h4" fill="none" '
        'stroke-width="2" stroke="currentColor" stroke-linecap="round" /></g></svg>'
    )
    assert (one.box, one.paint) == ((0, 0, 30, 20), "red")


def test_greys_stay_beside_black() -> None:
    assert '"#888"' in parsed(svg(BODY + '<path d="M0 0h1v1z" fill="#888"/>').encode()).svg


def test_nearly_equal_colours_are_one() -> None:
    """As in Adwaita's symbolic icons."""
    one = parsed(
        svg('<path d="M0 0h1v1z" fill="#2e3434"/><path d="M1 1h1v1z" fill="#2e3436"/>').encode()
    )
    assert one.svg.count("currentColor") == 2
    assert one.paint == "#2e3434"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("", "is not well-formed XML"),
        ("<svg", "is not well-formed XML"),
        ("<html/>", "has no <svg> at its root"),
        (svg(BODY, ""), "has neither a viewBox nor a width and a height"),
        (svg(BODY, 'viewBox="0 0 0 24"'), "has an empty or huge viewBox"),
        (svg(BODY, 'viewBox="0 0 nan 24"'), "has neither a viewBox nor a width and a height"),
        ('<!DOCTYPE svg [<!ENTITY a "b">]>' + svg(BODY), "declares entities or attributes"),
        (svg("<script>x</script>"), "has <script>, which is no plain shape"),
        (svg('<image href="/etc/passwd"/>'), "has <image>, which is no plain shape"),
        (svg('<use href="other.svg#a"/>'), "has <use>, which is no plain shape"),
        (svg(BODY + '<path d="M0 0h1z" fill="red"/>'), "has 2 colours; drawings in several"),
        (svg('<path d="M0 0h1z" fill="url(#a)"/>'), "is painted with a gradient or a pattern"),
        (
            svg('<mask id="m"><path d="M4 4h4v4z"/></mask><path mask="url(#m)" d="M0 0h9v9z"/>'),
            "has a mask, which is not possible yet",
        ),
        (
            svg(
                '<clipPath id="c"><circle r="4"/></clipPath><g clip-path="url(#c)"><path d="M0 0h9"/></g>'
            ),
            "has a clip-path, which is not possible yet",
        ),
        (svg('<path d="M0 0h9v9z" filter="url(#f)"/>'), "has a filter, which is not possible yet"),
        (svg("<g>" * 60 + BODY + "</g>" * 60), "has elements nested deeper than 50 levels"),
        (svg(BODY * 2001), "has more than 2,000 elements"),
    ],
)
def test_refused(content: str, cause: str) -> None:
    with pytest.raises(DataError) as error:
        parsed(content.encode())
    assert tells(error.value, f"SVG: {cause}")


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_or_a_drawing(content: bytes) -> None:
    """A property: no other exception."""
    for one in (content, svg(content.decode("latin-1")).encode()):
        try:
            parsed(one)
        except DataError:
            continue


def test_bad_files_are_skipped_with_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, content in {
        "a.svg": svg(BODY),
        "deep/a.svg": svg('<path d="M1 1h2v2z"/>'),
        "deep/b.SVG": svg(BODY),
        "c.svg": "no",
        "d.svg": svg(BODY) + " " * (1 << 18),
        ".hidden.svg": svg(BODY),
        "e.png": "no",
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "link.svg").symlink_to(OWN / "ico_bell_20.svg")
    source = SvgFolderConfig(path=str(tmp_path), split="all").build()
    assert [source.id(index) for index in range(len(source))] == ["a"]
    skipped = {
        Path(one.place).relative_to(tmp_path).as_posix(): one.cause for one in source.skipped
    }
    assert {key: cause.split(" (")[0] for key, cause in skipped.items()} == {
        "c.svg": "is not well-formed XML",
        "d.svg": "has more than 262,144 bytes",
        "deep/a.svg": "has the name of a.svg",
        "deep/b.SVG": "has the drawing of a.svg",
    }
    assert set(source.names) == {"a", "b", "c", "d"}


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        SvgFolderConfig(path=str(tmp_path)).build()
    assert tells(error.value, f"dataset.path {tmp_path}: holds no SVG file")
    with pytest.raises(DataError) as error:
        SvgFolderConfig(path=str(tmp_path / "x")).build()
    assert tells(error.value, f"dataset.path {tmp_path}/x: there is no such folder")
    with pytest.raises(RecipeError) as wrong:
        SvgFolderConfig(path=str(OWN), split="test").build()
    assert tells(wrong.value, "dataset.split: is 'test'")


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("bell-off", "bell off"),
        ("BellOff", "bell off"),
        ("arrow_up2", "arrow up 2"),
        ("HTMLFile", "html file"),
        ("größe", "größe"),
        ("___", "___"),
    ],
)
def test_names(stem: str, name: str) -> None:
    assert names_of([stem]) == [name]


def test_sizes_are_no_part_of_names() -> None:
    things = ["bell", "bell-off", "sun", "moon", "star", "cup", "pen", "key"]
    both = [f"{thing}-{size}" for thing in things for size in (16, 24)]
    assert names_of(both)[:4] == ["bell", "bell", "bell off", "bell off"]
    assert names_of([f"ic_{one}_regular" for one in both])[:3] == ["bell", "bell", "bell off"]
    # numbers that tell drawings apart stay
    numbered = [f"{thing}-{place}" for place in range(8) for thing in ("shape", "form")]
    assert names_of(numbered)[:2] == ["shape 0", "form 0"]
    levels = [*things, "battery-1", "battery-2", "clock-1", "clock-2"]
    assert names_of(levels)[-1] == "clock 2"


def test_one_size_of_each_drawing_is_read(tmp_path: Path) -> None:
    for place, thing in enumerate(["bell", "sun", "moon", "star", "cup", "pen", "key", "box"]):
        for size in (16, 24):
            (tmp_path / f"{thing}-{size}.svg").write_text(
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}">'
                f'<path d="M1 1H{8 + place / 2}V{size / 2}H1Z"/></svg>'
            )
    own = SvgFolderConfig(path=str(tmp_path)).build()
    assert sorted(own.id(index) for index in range(len(own)))[:2] == ["bell-16", "box-16"]
    assert {one.cause for one in own.skipped if one.place.endswith("bell-24.svg")} == {
        "has the name of bell-16.svg"
    }


def test_the_style_is_told_from_the_ink(tmp_path: Path) -> None:
    """Lines that were converted to areas are lines."""
    for number, (path, style) in enumerate(
        (
            ("M2 2h20v20h-20zM4 4v16h16v-16z", "outline"),
            ("M2 2h20v20h-20z", "filled"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.svg").write_text(svg(f'<path fill-rule="evenodd" d="{path}"/>'))
        assert SvgFolderConfig(path=str(folder)).build().style == style
