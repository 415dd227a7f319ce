"""Parts of things that nobody has drawn: which drawings of a set show them, and what is drawn after them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3apps.cli.main import main
from cm3icons.complete.drawing import Completer
from cm3icons.complete.parts import Parts, parts_of
from cm3icons.complete.sets import open_set
from cm3plugins.datasets.svg_folder.reading import parsed
from cm3plugins.svg import render_svg
from cm3run.model.model import Model, load
from cm3run.words import words_of
from drawing_models import OWN_ICONS
from messages import tells

MODEL = "bundled:icons64-hands"
NAMES = ("bell", "bell off", "car", "mail", "mail off", "off", "power switch off", "car")


def test_a_base_and_examples_that_the_set_has_without_the_words_too() -> None:
    """No example: "power switch off", of which there is no power switch, and "off" itself."""
    assert parts_of("car off", NAMES) == [Parts((2, 7), {1: 0, 4: 3})]
    assert parts_of("car off", NAMES, left_out=(2, 4)) == [Parts((7,), {1: 0})]


def test_without_a_base_or_an_example_there_are_none() -> None:
    assert parts_of("bus off", NAMES) == []
    assert parts_of("car alarm", NAMES) == []
    assert parts_of("car", NAMES) == []
    assert parts_of("car off", NAMES, left_out=(2, 7)) == []


def test_the_thing_itself_is_no_part() -> None:
    assert parts_of("bell off", NAMES) == [Parts((0,), {4: 3})]
    assert parts_of("bell off", NAMES[:3]) == []


def test_words_keep_their_places() -> None:
    """As in "arrow up wide" after "arrow down wide"; "lock open" shows no "open" before a name."""
    assert parts_of("arrow up wide", ["down", "up", "arrow down wide"]) == [Parts((1,), {2: 0})]
    assert parts_of("open box", ["box", "lock", "lock open"]) == []


def test_every_way_is_found() -> None:
    names = ["file", "minus", "file plus", "plus", "user", "user minus"]
    assert parts_of("file minus", names) == [Parts((0,), {5: 4}), Parts((1,), {2: 3})]


@given(
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3).map(" ".join), max_size=9),
    st.lists(st.sampled_from("abcde"), min_size=1, max_size=3).map(" ".join),
)
def test_an_examples_own_thing_replaced_by_the_base_has_the_name(
    names: list[str], name: str
) -> None:
    for parts in parts_of(name, names):
        [base] = {names[one] for one in parts.base}
        for whole, without in parts.examples.items():
            assert base not in (name, names[without])
            stem, longer = words_of(names[without]), words_of(names[whole])
            places = [
                place for place in range(len(longer)) if longer[place : place + len(stem)] == stem
            ]
            replaced = [
                [*longer[:place], *words_of(base), *longer[place + len(stem) :]] for place in places
            ]
            assert words_of(name) in replaced


@pytest.fixture(scope="module")
def model() -> Model:
    return load(MODEL)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Own icons, some with a bar below them ("zorp"), which "quux" lacks. "quux wib" looks like neither of its words."""
    folder = tmp_path / "own"
    shutil.copytree(OWN_ICONS, folder)
    drawings = {
        "quux": "M4 4h12v7H4z",
        "blip": "M4 4l12 3-6 5z",
        "blip zorp": "M4 4l12 3-6 5zM3 17h14",
        "flum": "M10 3l6 9H4z",
        "flum zorp": "M10 3l6 9H4zM3 17h14",
        "zorp": "M2 2l3 16M18 9H8",
        "quux wib": "M3 3v14M9 9l6 6",
        "wib": "M12 3h4M4 16l8-4",
    }
    for name, path in drawings.items():
        (folder / f"ico_{name.replace(' ', '-')}_20.svg").write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20" fill="none" stroke="#2b5d9c" stroke-width="1.5">'
            f'<path d="{path}"/></svg>'
        )
    return folder


def test_documents_are_the_base_and_examples(model: Model, own: Path) -> None:
    """Of the two ways, "quux" with "zorp" and "zorp" with "quux", the one whose words leave the examples as they are."""
    completer = Completer(model, open_set(str(own), None, None, None), None, {})
    documents = completer.documents("quux zorp", 2)
    assert documents.kind == "composed"
    assert [one.id for one in documents.things] == ["ico_quux_20"]
    pairs = zip(documents.hands, documents.without, strict=True)
    assert sorted((with_it.thing, one.thing) for with_it, one in pairs) == [
        ("blip zorp", "blip"),
        ("flum zorp", "flum"),
    ]
    assert completer.adaptation(documents) is None
    assert len(completer.job(documents, 2, seed=0).requests) == 8


def test_things_of_the_memory_and_those_without_parts_are_not_composed_of_them(
    model: Model, own: Path
) -> None:
    completer = Completer(model, open_set(str(own), None, None, None), None, {})
    for name in ("umbrella", "zorp blip"):
        assert completer.documents(name, 1).without == ()
    assert completer.documents("umbrella", 1).kind == "restyled"


def test_those_most_like_the_base_with_what_is_added_come_first(
    model: Model, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report has the examples, the terminal the first of them; and the likeness, once more from the files."""
    out = tmp_path / "out"
    command = ["complete", str(own), "quux zorp", "-o", str(out), "-n", "2", "--threads", "1"]
    assert main([*command, "--model", MODEL]) == 0
    told = capsys.readouterr().err
    assert tells(
        told, "note: the index has no 'quux zorp'; what is drawn, after the set's 'quux' ..."
    )
    [entry] = json.loads((out / "report.json").read_text())["things"]
    assert (entry["kind"], entry["thing"]) == ("composed", "quux")
    assert sorted(entry["examples"]) == ["blip zorp", "flum zorp"]
    completer = Completer(model, open_set(str(own), None, None, None), None, {})
    documents = completer.documents("quux zorp", 2)
    embedder = model.components.embedder
    assert embedder is not None
    [base, *rest] = embedder.embed_images(
        [one.pixels for one in (*documents.things, *documents.hands, *documents.without)]
    )
    order = [
        (one["copy"], -round(one["paint"], 1), -one["likeness"]) for one in entry["candidates"]
    ]
    assert order == sorted(order)
    added = np.mean(rest[:2], axis=0) - np.mean(rest[2:], axis=0)
    for one in entry["candidates"]:
        drawn = render_svg(parsed((out / one["file"]).read_bytes()).svg, 64)
        [made] = embedder.embed_images([drawn])
        assert one["likeness"] == pytest.approx(float(made @ (base + added)), abs=2e-4)
