"""Closed splits: what is held out is nowhere in `train` under another name, tag, look or meaning."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cm3core.errors import DataError, RecipeError
from cm3core.plugins import load_registry
from cm3core.plugins.registry import ANYONE
from cm3core.recipe import compose
from cm3core.recipe.merge import stored_recipe
from cm3plugins.datasets import looks
from cm3plugins.datasets.icon_tasks import IconTasksConfig
from cm3plugins.datasets.icons import SPLITS_OF, IconSourceConfig
from cm3plugins.datasets.icons import corpus as corpus_module
from cm3plugins.datasets.icons.closed import (
    CLOSED_SPLITS,
    FILE,
    JUDGED,
    Closed,
    HeldOut,
    read_closed,
)
from cm3plugins.datasets.icons.closed_build import (
    Limits,
    Proof,
    by_looks,
    choose,
)
from cm3plugins.datasets.icons.corpus import IconCorpus, IconEntries, IconEntry
from cm3plugins.datasets.icons.sets import ASSETS
from cm3plugins.datasets.icons.source import is_missing
from icon_corpora import write_corpus

HELD = HeldOut(
    words={"fish": ("salmon",)},
    names=("sea food",),
    kin=(("baby", "buggy"),),
    pairs={("bell", "lock"): (("bell", "alarm"), ("lock", "padlock"))},
    variants={},
    sets=("strange",),
)


@pytest.mark.parametrize(
    ("words", "tags", "split"),
    [
        ("fish", (), "unseen"),
        ("fishes", (), "near"),  # a compound of it
        ("food fish 2", (), "unseen"),  # a longer name
        ("gold starfish", (), "near"),
        ("salmon", (), "near"),  # means it
        ("anchor", ("sea food",), "near"),  # a tag means it
        ("anchor", ("animal", "fish bowl"), "near"),
        ("selfishness", (), "train"),
        ("sea", ("food",), "train"),
        ("anchor", ("fi sh",), "near"),  # written as two words
        ("baby buggy off", (), "near"),  # drawn like it
        ("baby", ("buggy",), "train"),
        ("bell lock 2", (), "compose"),
        ("lock on bells", (), "compose"),
        ("alarm padlock", (), "near"),
        ("alarm", ("bell lock",), "near"),
        ("bell", ("lock",), "train"),  # no name shows both
        ("lock", ("padlock",), "train"),
    ],
)
def test_words_decide_what_shows_a_held_out_thing(
    words: str, tags: tuple[str, ...], split: str
) -> None:
    assert HELD.split_by_words(words, tags) == split


def picture(*rows: str) -> NDArray[np.uint8]:
    """Black squares of two pixels for `#`, in a white picture of 64 pixels."""
    pixels = np.full((64, 64, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, mark in enumerate(row):
            if mark == "#":
                pixels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = 0
    return pixels


RING = ("######", "#....#", "#....#", "######")
BAR = ("#" * 20,) * 3
CROSS = ("#....#", ".#..#.", "..##..", "..##..", ".#..#.", "#....#")


def looks_like(*pictures: NDArray[np.uint8]) -> looks.Looks:
    return looks.Looks(np.stack([looks.cut_out(one) for one in pictures]))


def pairs_in(drawn: looks.Looks) -> set[tuple[int, int]]:
    alike = drawn.graph()
    return {(index, other) for index in range(len(drawn)) for other in alike.to(index)}


def test_looks_are_alike_whatever_their_place_and_size() -> None:
    moved = np.roll(picture(*RING), (9, 20), axis=(0, 1))
    large = np.kron(picture(*RING)[:16, :24], np.ones((2, 2, 1), np.uint8))
    drawn = looks_like(picture(*RING), moved, large, picture(*BAR), picture(*CROSS), picture(""))
    assert pairs_in(drawn) == {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}


def test_what_looks_like_a_held_out_icon_leaves_train_unless_it_is_much() -> None:
    drawn = looks_like(*[picture(*RING)] * 3, *[picture(*BAR)] * 5, picture(*CROSS))
    splits = ["unseen", "train", "train", "variant", "train", "train", "train", "near", "train"]
    alike = drawn.graph()
    assert by_looks(splits, alike, most_alike=2) == [
        *("unseen", "near", "near"),  # two that look like it
        *("near", "train", "train", "train", "near"),  # three: it leaves its own split
        "train",
    ]
    assert by_looks(["strangers", *splits[1:]], alike, 2)[:3] == ["near", "train", "train"]


WORDS = ("fish", "bell", "lock", "off", "starfish", "salmon", "plus", "chart")
SHAPES = (RING, BAR, CROSS, ("##", "##"), ("#....", "##...", "###.."), ("#.#.#.#.#",))


def meaning(texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of which those of `fish` and `salmon` are equal, and those of names near to their words'."""
    axes = np.eye(len(WORDS), dtype=np.float32)
    axes[WORDS.index("salmon")] = axes[WORDS.index("fish")]
    vectors = [
        sum((axes[WORDS.index(word)] for word in text.split()), np.full(len(WORDS), 1e-6))
        for text in texts
    ]
    return np.stack([v / np.linalg.norm(v) for v in vectors]).astype(np.float32)


@st.composite
def corpora(draw: st.DrawFn) -> Any:
    """A corpus of four sets, and looks."""
    names = st.lists(st.sampled_from(WORDS), min_size=1, max_size=2, unique=True).map(" ".join)
    rows = draw(st.lists(st.tuples(names, st.lists(names, max_size=1)), min_size=8, max_size=60))
    entries = [
        IconEntry(f"set{i % 5}/{i}", name, ("outline", "filled")[i % 2], tuple(tags), "train")
        for i, (name, tags) in enumerate(rows)
    ]
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=len(rows), max_size=len(rows)))
    corpus = SimpleNamespace(
        entries=IconEntries.of(entries),
        data_sha256="0",
        manifest=SimpleNamespace(source=lambda name: ("", "", name)),
    )
    return corpus, looks_like(*[picture(*shape) for shape in shapes])


@settings(max_examples=40, deadline=None)
@given(corpora())
def test_nothing_leaks_and_closing_again_changes_nothing(made: Any) -> None:
    corpus, drawn = made
    limits = Limits(most_near=9, unseen=5, compose=5, restyle=5, variant=5)
    closed = choose(corpus, drawn, meaning, limits, ["set4"])
    proof = Proof(corpus, closed)
    assert proof.by_words() == proof.by_looks(drawn) == proof.by_meaning(meaning) == []
    assert by_looks(closed.splits, drawn.graph(), limits.most_alike) == closed.splits
    judged = {i for i, split in enumerate(closed.splits) if split in JUDGED}
    for index in judged:  # each of them in train is found
        wrong = [*closed.splits[:index], "train", *closed.splits[index + 1 :]]
        if closed.splits[index] in ("unseen", "compose", "strangers"):
            assert Proof(corpus, replace(closed, splits=wrong)).by_words()


def test_a_designers_memory_lacks_what_is_missing() -> None:
    """Half of the things of each set that is held out, in all versions; the other half is beside `train`."""
    sources = {
        split: IconSourceConfig(split=split).build()
        for split in ("train", "strangers", "missing", "available")
    }
    ids = {split: [own.id(index) for index in range(len(own))] for split, own in sources.items()}
    assert set(ids["missing"]) < set(ids["strangers"])
    assert set(ids["available"]) == {*ids["train"], *ids["strangers"]} - {*ids["missing"]}
    entries, strangers = sources["strangers"].corpus.entries, set(ids["strangers"])
    sides: dict[tuple[str, str], set[bool]] = {}
    for name, words in zip(entries.ids, entries.words, strict=True):
        if name in strangers:
            side = sides.setdefault((name.partition("/")[0], words), set())
            side.add(is_missing(name, words))
    assert all(len(side) == 1 for side in sides.values())
    for one in {name for name, _ in sides}:
        share = [next(iter(side)) for (own, _), side in sides.items() if own == one]
        assert 0.35 < sum(share) / len(share) < 0.65, one


def test_an_unknown_split_names_those_of_its_way_of_holding_out() -> None:
    with pytest.raises(RecipeError) as caught:
        IconSourceConfig(split="comp").check()
    assert str(caught.value) == (
        "dataset.split: dataset.held_out=closed has no split 'comp'; by_name has\n"
        "  next: use one of train, unseen, compose, restyle, variant, strangers, near, missing, available, all; "
        "or set dataset.held_out=by_name"
    )
    with pytest.raises(RecipeError, match="by_name has no split 'restyle'; closed has"):
        IconTasksConfig(split="restyle", held_out="by_name").check()
    with pytest.raises(RecipeError, match="by_name has no split 'missing'; closed has"):
        IconSourceConfig(split="missing", held_out="by_name").check()
    with pytest.raises(RecipeError, match="split: is 'missing'; known"):  # tasks have none of it
        IconTasksConfig(split="missing", held_out="by_name").check()
    with pytest.raises(RecipeError, match="must be closed or by_name"):
        compose("icons", ["dataset.held_out=closd"], registry=load_registry())


def test_a_recipe_that_was_stored_without_the_key_holds_out_by_name(tmp_path: Path) -> None:
    registry = load_registry()
    recipe = compose("outlines-tiny", registry=registry)
    assert recipe.flat()["dataset.held_out"] == "closed"
    text = "".join(line + "\n" for line in recipe.to_yaml().splitlines() if "held_out" not in line)
    stored = stored_recipe(text, registry, label="recipe.yaml", writer=ANYONE)
    assert stored.flat()["dataset.held_out"] == "by_name"
    protocol = stored_recipe(
        json.dumps({"dataset": {"name": "icons"}}), registry, label="protocol", writer=ANYONE
    )
    assert protocol.flat()["dataset.held_out"] == "by_name"
    (tmp_path / "recipe.yaml").write_text(text)
    assert compose(str(tmp_path / "recipe.yaml"), registry=registry).flat()["dataset.held_out"] == (
        "closed"
    )
    (tmp_path / "plugins.json").write_text('{"cm3plugins": "1"}')  # as beside a run's recipe
    assert compose(str(tmp_path / "recipe.yaml"), registry=registry).flat()["dataset.held_out"] == (
        "by_name"
    )


def test_another_corpus_is_closed_by_its_names(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    held = read_closed(ASSETS, "").held_out
    by_name, closed = IconCorpus(folder), IconCorpus(folder, "closed")
    assert [entry.split for entry in by_name.entries] == ["train", "comp", "unseen"]
    assert [entry.split for entry in closed.entries] == [
        held.split_by_words(entry.words, entry.tags) for entry in by_name.entries
    ]
    assert closed.entries[0][:4] == by_name.entries[0][:4]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"no xz", "damaged"),
        (
            Closed(data_sha256="0", made_with={}, held_out=HELD, splits=["train"]).to_bytes(),
            "belongs",
        ),
    ],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, cause: str
) -> None:
    (tmp_path / FILE).write_bytes(content)
    monkeypatch.setattr(
        corpus_module, "read_closed", lambda folder, step: read_closed(tmp_path, step)
    )
    corpus_module._closed_entries_of.cache_clear()
    with pytest.raises(DataError, match=cause):
        IconCorpus(held_out="closed")


def test_the_file_says_what_it_was_given(tmp_path: Path) -> None:
    splits = [*CLOSED_SPLITS, "train"]
    closed = Closed(data_sha256="0", made_with={"sharp": 0.5}, held_out=HELD, splits=splits)
    (tmp_path / FILE).write_bytes(closed.to_bytes())
    assert read_closed(tmp_path, "") == closed
    assert SPLITS_OF["closed"] == (*CLOSED_SPLITS, "all")


def test_the_shipped_splits_are_closed_by_words() -> None:
    corpus = IconCorpus()
    closed = read_closed(ASSETS, "")
    assert Proof(corpus, closed).by_words() == []
    numbers = Counter(closed.splits)
    assert numbers["train"] >= 0.8 * len(corpus)
    assert all(numbers[split] >= 200 for split in JUDGED)
