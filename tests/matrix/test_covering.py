"""The combinations contain all pairs, in few cells, and what can't be combined is never combined with more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapping.covering import Pair, Part, covering, pairs_of


def anything(parts: Sequence[Part]) -> bool:
    return True


def test_by_hand() -> None:
    kinds = {"a": ["1", "2"], "b": ["1", "2"], "c": ["1"]}
    assert set(pairs_of([("b", "1"), ("a", "1"), ("a", "2")])) == {
        (("a", "1"), ("b", "1")),
        (("a", "2"), ("b", "1")),
    }
    # each of the four pairs of a and b needs a combination, which takes c along
    assert len(list(covering(kinds, anything))) == 4


def test_pairs_that_do_not_fit_are_alone() -> None:
    wrong = (("a", "1"), ("b", "1"))
    kinds = {"a": ["1", "2"], "b": ["1", "2"], "c": ["1", "2"]}
    found = list(covering(kinds, lambda parts: not set(wrong) <= set(parts)))
    assert [parts for parts in found if set(wrong) <= set(parts)] == [wrong]


def test_few_combinations() -> None:
    """Six kinds of four: 240 pairs; no array has fewer than 16."""
    kinds = {kind: list("1234") for kind in "abcdef"}
    found = list(covering(kinds, anything, most=6))
    assert 16 <= len(found) <= 36
    assert found == list(covering(kinds, anything, most=6))
    assert found != list(covering(kinds, anything, most=6, seed=1))


@given(st.data(), st.integers(0, 3), st.integers(2, 5))
def test_every_pair_is_covered(data: st.DataObject, seed: int, most: int) -> None:
    kinds = data.draw(
        st.dictionaries(
            st.sampled_from("abcde"), st.lists(st.sampled_from("123"), unique=True, min_size=1)
        )
    )
    pairs = list(pairs_of([(kind, name) for kind, names in kinds.items() for name in names]))
    wrong: set[Pair] = set(data.draw(st.lists(st.sampled_from(pairs)))) if pairs else set()

    def fits(parts: Sequence[Part]) -> bool:
        return wrong.isdisjoint(pairs_of(parts))

    found = list(covering(kinds, fits, seed=seed, most=most))
    covered = {pair for parts in found for pair in pairs_of(parts)}
    assert covered == set(pairs)
    for parts in found:
        assert len(parts) <= most
        assert len({kind for kind, _ in parts}) == len(parts)
        assert fits(parts) or len(parts) == 2
    assert len(found) <= len(pairs)


def test_three_that_only_do_not_fit_together() -> None:
    parts = [("a", "1"), ("b", "1"), ("c", "1")]
    kinds = {kind: [name] for kind, name in parts}
    found = list(covering(kinds, lambda chosen: len(chosen) < 3))
    assert sorted(map(len, found)) == [2, 2, 2]


@pytest.mark.parametrize("kinds", [{}, {"a": ["1", "2"]}])
def test_no_pairs(kinds: dict[str, list[str]]) -> None:
    assert list(covering(kinds, anything)) == []
