"""Folders that mix styles: which drawings show the hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3icons.complete import sets
from cm3icons.complete.sets import OwnSet, open_set
from cm3plugins.datasets.svg_folder.names import kind_of
from cm3plugins.datasets.svg_folder.reading import SvgFile

LINES = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="black" stroke-width="2"'
    ' stroke-linecap="round"><path d="M{0} 4V20"/><circle cx="14" cy="12" r="{1}"/></svg>'
)
AREAS = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="M2 2H{0}V{1}H2Z"/></svg>'
)
NOTE = (
    "{0} has {1} drawings; the {2} in the style '{3}' show the hand; --style takes another: '{4}'"
)


def folder_of(folder: Path, lines: int, areas: int) -> Path:
    folder.mkdir()
    for place in range(lines):
        (folder / f"line{place}.svg").write_text(LINES.format(3 + place / 4, 3 + place / 4))
    for place in range(areas):
        (folder / f"area{place}.svg").write_text(AREAS.format(22 - place / 4, 20))
    return folder


def opened(folder: Path, style: str | None = None) -> OwnSet:
    return open_set(str(folder), None, style, None)


def shown(own: OwnSet) -> set[str]:
    return {own.source.id(index)[:4] for index in range(len(own.source))}


def test_the_most_frequent_style_shows_the_hand(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "icons", 8, 6)
    own = opened(folder)
    assert (shown(own), own.style) == ({"line"}, "outline rounded")
    assert own.note == NOTE.format(folder, 14, 8, "outline", "filled")
    assert own.hand.kinds == {"stroke"}
    # the set has all things, also those that don't show the hand
    assert own.has("area 1")
    assert own.index("area 1") is None
    assert own.index("line 1") is not None


def test_a_named_style_is_completed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "icons", 8, 6)
    own = opened(folder, "filled")
    assert (shown(own), own.style) == ({"area"}, "filled")
    assert own.note == NOTE.format(folder, 14, 6, "filled", "outline")
    assert own.source.fingerprint != opened(folder).source.fingerprint


@pytest.mark.parametrize(("lines", "areas", "num"), [(7, 3, 10), (13, 6, 13), (3, 3, 6)])
def test_drawings_of_another_kind_stay_where_one_prevails(
    tmp_path: Path, lines: int, areas: int, num: int
) -> None:
    """From 70% on one kind prevails; fewer than five drawings show no hand."""
    own = opened(folder_of(tmp_path / "icons", lines, areas))
    assert len(own.source) == num
    assert bool(own.note) == (num < lines + areas)


def test_words_that_name_no_kind_choose_nothing(tmp_path: Path) -> None:
    own = opened(folder_of(tmp_path / "icons", 8, 6), "playful")
    assert (shown(own), own.style) == ({"line"}, "playful")


@pytest.mark.parametrize(("lines", "areas", "num"), [(30, 2, 6), (8, 7, 6 + 15)])
def test_a_part_of_a_large_folder_tells_that_one_kind_prevails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int, areas: int, num: int
) -> None:
    """Where no kind prevails, every drawing is looked at."""
    looked_at = []

    def kind(file: SvgFile) -> str:
        looked_at.append(file)
        return kind_of(file)

    monkeypatch.setattr(sets, "_LOOKED_AT", 6)
    monkeypatch.setattr(sets, "kind_of", kind)
    own = opened(folder_of(tmp_path / "icons", lines, areas))
    assert len(looked_at) == num
    assert len(own.source) == (lines if own.note else lines + areas)
