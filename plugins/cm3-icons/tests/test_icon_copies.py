"""Copies among the bundled icons: groups by hand, the file, and what is never retrieved."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cm3core.errors import DataError
from cm3icons.data import IconSourceConfig
from cm3icons.data.copies import FILE, read_copies, written
from cm3icons.data.copies_build import grouped
from cm3icons.facets import FacetsRetrieverConfig
from cm3plugins.datasets.looks import Alike
from messages import tells


class Pairs(Alike):
    """Drawings that look like each other, given as pairs."""

    def __init__(self, *pairs: tuple[int, int]) -> None:
        self.pairs = pairs

    def to(self, index: int) -> list[int]:
        return [sum(pair) - index for pair in self.pairs if index in pair]


def test_groups_by_hand() -> None:
    """0, 2 and 4 are connected; 1 looks like 3, which shows another thing; 5 looks like nothing."""
    words = ["bell", "bell", "bell", "plug", "bell", "bell"]
    assert grouped(words, Pairs((4, 2), (0, 2), (1, 3))) == [[0, 2, 4]]


def test_the_file_comes_back(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(written("abc", [[0, 2, 4], [7, 1000]]))
    assert read_copies(tmp_path, "abc", "") == {0: 0, 2: 0, 4: 0, 7: 7, 1000: 7}
    with pytest.raises(DataError) as error:
        read_copies(tmp_path, "other", "reinstall cm3leon")
    assert tells(error.value, "... belongs to other data than the corpus beside it ... reinstall")
    (tmp_path / FILE).write_bytes(written("abc", [])[:-9])
    with pytest.raises(DataError) as error:
        read_copies(tmp_path, "abc", "reinstall cm3leon")
    assert tells(error.value, "... reinstall cm3leon")


def test_a_copy_is_never_retrieved_with_closed_splits() -> None:
    """With those by name it is, since the bundled models were trained that way."""
    icons = {"sets": ["ic"], "split": "all"}
    closed = IconSourceConfig(held_out="closed", **icons).build()
    copies = closed.corpus.copies
    firsts = Counter(
        copies.get(closed.corpus.index(closed.id(index))) for index in range(len(closed))
    )
    first = next(one for one, number in firsts.items() if one is not None and number > 1)
    place = next(
        index
        for index in range(len(closed))
        if copies.get(closed.corpus.index(closed.id(index))) == first
    )
    query = closed.document(place)[:1]
    own = {closed.id(place), *closed.content_keys(place)}
    [found] = FacetsRetrieverConfig().build(closed, None).retrieve([query], 20, [own])
    assert found
    assert all(closed.content_keys(one.index).isdisjoint(own) for one in found)
    by_name = IconSourceConfig(held_out="by_name", **icons).build()
    assert by_name.corpus.copies == {}
    assert len(by_name.content_keys(place)) < len(own) - 1
