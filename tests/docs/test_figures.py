"""The figures of the pages are those of the evaluations that are stored."""

from __future__ import annotations

from pathlib import Path

import _closed
import _figures
import _held_out
import pytest

from cm3icons.data.corpus import IconCorpus

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_have_the_figures_that_are_stored(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- figures: ") == len(_figures.MARKER.findall(text)), "a comment is broken"
    for source, key, figure, below in _figures.markers(text):
        assert _figures.shown(source, key, figure) == figure, f"{source}: {key}"
        assert figure in below, f"{source}: {key} = {figure} is not in the paragraph"


def test_some_sentences_are_checked() -> None:
    found = [one for page in PAGES for one in _figures.markers(page.read_text(encoding="utf-8"))]
    assert len(found) >= 10


def test_a_wrong_figure_is_found() -> None:
    page = (
        "<!-- figures: held-out.json; names.things = 688;\n     names.things_tagged / names.things = 12% -->\n"
        "Of 688 things 12% are tags.\n\nMore."
    )
    (first, second) = _figures.markers(page)
    assert first == ("held-out.json", "names.things", "688", "Of 688 things 12% are tags.")
    assert _figures.shown(*first[:3]) == "687"
    assert _figures.shown(*second[:3]) == "12%"
    with pytest.raises(KeyError):
        _figures.value_of("held-out.json", "names.thing")


def test_a_card_has_its_figures() -> None:
    card = "icons64-tuned/CARD.md"
    assert _figures.shown(card, "Edits > comp & drawn > R@5", "87%") == "87%"
    assert _figures.shown(card, "Captions > unseen & told > name", "0.6") == "0.6"


@pytest.mark.slow
def test_what_names_tell_of_the_splits_is_so() -> None:
    found = _held_out.of_names(IconCorpus().entries)
    assert found == _figures.stored("held-out.json")["names"]


@pytest.mark.slow
def test_what_copies_score_is_so() -> None:
    found = _closed.copied(IconCorpus(held_out="closed"), "unseen")
    said = _figures.stored("closed.json")["copied"]["closed"]["unseen"]
    assert found == pytest.approx(said, abs=0.02)


@pytest.mark.extended
def test_what_pictures_tell_of_the_splits_is_so() -> None:
    """All pairs of a held-out icon and one of `train`."""
    found = _held_out.of_pictures(IconCorpus())
    said = _figures.stored("held-out.json")["pictures"]
    assert found["near_duplicates"] == said["near_duplicates"]
    assert found["held_out_icons"] == said["held_out_icons"]
    assert found["comp_same_drawing"] == pytest.approx(said["comp_same_drawing"], abs=5)
