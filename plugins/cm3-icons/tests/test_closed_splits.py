"""Closed splits: what is held out is nowhere in `train` under another name, tag, look or meaning."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from closed_proof import Proof
from cm3core.errors import DataError, RecipeError
from cm3core.plugins import load_registry
from cm3core.plugins.registry import ANYONE
from cm3core.recipe import compose
from cm3core.recipe.merge import stored_recipe
from cm3icons.data import IconSourceConfig
from cm3icons.data import corpus as corpus_module
from cm3icons.data.closed import (
    FILE,
    JUDGED,
    HeldOut,
    read_closed,
)
from cm3icons.data.copies_build import looks_of
from cm3icons.data.corpus import IconCorpus
from cm3icons.data.sets import ASSETS
from cm3icons.data.source import is_missing
from cm3icons.tasks import IconTasksConfig
from cm3plugins.datasets import looks
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


SHIPPED = read_closed(ASSETS, "")
FOREIGN = lzma.decompress((ASSETS / FILE).read_bytes()).replace(SHIPPED.data_sha256.encode(), b"0")


@pytest.mark.parametrize(
    ("content", "cause"), [(b"no xz", "damaged"), (lzma.compress(FOREIGN), "belongs")]
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


def test_a_leak_is_found() -> None:
    corpus, splits = IconCorpus(), list(SHIPPED.splits)
    moved = {split: splits.index(split) for split in ("unseen", "compose", "strangers")}
    for index in moved.values():
        splits[index] = "train"
    moved["variant"] = splits.index("train")
    splits[moved["variant"]] = "unseen"
    found = Proof(corpus, replace(SHIPPED, splits=splits)).by_words()
    assert all(
        any(line.startswith(f"{corpus.entries.ids[i]} ") for line in found) for i in moved.values()
    )


def test_looks_that_leak_are_found() -> None:
    """Of three icons, all rings, one is held out and two are in `train`."""
    corpus = IconCorpus()
    splits = ["unseen", "train", "train", *["near"] * (len(corpus) - 3)]
    drawn = looks_like(*[picture(*RING)] * 3)
    assert len(Proof(corpus, replace(SHIPPED, splits=splits)).by_looks(drawn)) == 2


@pytest.mark.slow
def test_the_shipped_splits_are_closed_by_looks() -> None:
    corpus = IconCorpus()
    assert Proof(corpus, SHIPPED).by_looks(looks_of(corpus)) == []


def test_the_shipped_splits_are_closed_by_words() -> None:
    corpus = IconCorpus()
    assert Proof(corpus, SHIPPED).by_words() == []
    numbers = Counter(SHIPPED.splits)
    assert numbers["train"] >= 0.8 * len(corpus)
    assert all(numbers[split] >= 200 for split in JUDGED)
