"""Splits of icons, which another corpus may decide."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from cm3icons.data.splits import Decided, assign_splits, decided_by, parts, thing_of
from icon_packages import NAMES

THINGS = st.lists(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True), min_size=1, max_size=60
)


@settings(max_examples=50)
@given(THINGS, THINGS)
def test_nothing_that_is_held_out_is_trained_elsewhere(
    first: list[list[str]], second: list[list[str]]
) -> None:
    words = [[tuple(name) for name in names] for names in (first, second)]
    ids = [[f"set/{'-'.join(n)}-{i}" for i, n in enumerate(names)] for names in words]
    before = assign_splits(ids[0], words[0], {})
    kept = [i for i, split in enumerate(before) if split is not None]
    decided = decided_by(
        [ids[0][i] for i in kept], [words[0][i] for i in kept], [str(before[i]) for i in kept]
    )
    after = assign_splits(ids[1], words[1], {}, decided)
    other = decided_by(
        [id_ for id_, split in zip(ids[1], after, strict=True) if split],
        [name for name, split in zip(words[1], after, strict=True) if split],
        [split for split in after if split],
    )
    for one, two in ((decided, other), (other, decided)):
        assert not one.unseen & two.trained
        assert not one.comp & two.trained_ids
    assert not decided.pairs & other.trained_pairs
    for name, split in zip(words[1], after, strict=True):
        if split == "compose":  # at least one of its pairs is held out in both
            assert not set(combinations(sorted(parts(name)), 2)) <= decided.trained_pairs


def test_near_duplicates_of_what_is_held_out_are_left_out() -> None:
    decided = Decided(unseen=frozenset({"home"}), comp=frozenset({"s/star"}))
    splits = assign_splits(
        ["s/home", "s/house", "s/star", "t/star"],
        [("home",), ("house",), ("star",), ("star",)],
        {0: {1}, 1: {0}},
        decided,
    )
    assert splits == ["unseen", None, "comp", "train"]
    lonely = assign_splits(["s/star"], [("star",)], {}, decided)
    assert lonely == [None]


def test_things_are_the_same_whatever_the_order_of_words() -> None:
    assert thing_of(("lock", "bells")) == thing_of(("bell", "lock")) == "bell lock"
