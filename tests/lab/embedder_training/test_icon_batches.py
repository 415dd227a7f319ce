"""Batches on icons: what is drawn together, versions, and the forms of captions."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest

from cm3lab.embedder_training.light_encoder import IconBatches
from cm3plugins.datasets.icons.corpus import IconCorpus, IconEntry

BELL = IconEntry("lucide/bell-off", "bell off", "outline", ("alarm",), "train")


@pytest.fixture(scope="module")
def batches() -> IconBatches:
    entries = [entry for entry in IconCorpus().entries if entry.split == "train"]
    return IconBatches(entries, seed=0)


def test_a_batch_is_of_different_things_that_are_easily_confused(batches: IconBatches):
    rows = batches.rows(256)
    entries = [batches.entries[row] for row in rows]
    assert len({entry.words for entry in entries}) == 256
    near = Counter((entry.set_name, entry.style) for entry in entries[128:])
    assert max(near.values()) > 30  # of one set and style
    sharing = [
        bool(set(one.words.split()) & set(other.words.split()))
        for one, other in pairwise(entries[:128])
    ]
    assert sum(sharing) > 64


def test_a_batch_takes_no_more_things_than_there_are():
    own = IconBatches([BELL, BELL._replace(id="mdi/bell-off"), BELL._replace(words="x")], seed=0)
    assert own.num_things == 2
    assert {own.entries[row].words for row in own.rows(256)} == {"bell off", "x"}


def test_versions_are_mostly_of_the_own_set():
    entries = [BELL] + [BELL._replace(id=f"{name}/bell-off-2") for name in ("lucide", "mdi", "bi")]
    own = IconBatches([*entries, BELL._replace(words="x")], seed=0)
    drawn = Counter(own.other_version(0) for _ in range(1000))
    # 70%, and a third of the rest, are lucide's other one
    assert 760 < drawn[1] < 840
    assert drawn[0] == drawn[4] == 0
    assert {own.of_other_set(0) for _ in range(50)} == {2, 3}
    assert own.other_version(4) == 4  # the only version
    assert own.of_other_set(4) is None


def test_queries_are_of_many_forms():
    own = IconBatches([BELL], seed=0)
    texts = Counter(own.query(0) for _ in range(2000))
    assert len(texts) > 15
    assert all(re.search("bell|alarm", text) for text in texts)
    assert texts["bell off, outline, lucide"] > 600
    for form in ("off bell, outline, lucide", "bell off", "some bell offs, outline"):
        assert texts[form], form


def test_draws_repeat_with_the_seed():
    entries = IconCorpus().entries[:2000]
    one, other = (IconBatches(entries, seed=4) for _ in range(2))
    assert one.rows(64) == other.rows(64)
    assert [one.query(row) for row in range(20)] == [other.query(row) for row in range(20)]


def test_categories_are_no_names():
    """A tag of 21 things is none of their names; one of a single thing is."""
    entries = [
        BELL._replace(
            id=f"mdi/{place}", words=f"thing {place}", tags=("ui actions", f"own {place}")
        )
        for place in range(21)
    ]
    own = IconBatches(entries, seed=0)
    assert [entry.tags for entry in own.entries] == [(f"own {place}",) for place in range(21)]
    assert IconBatches(entries[:20], seed=0).entries == entries[:20]
