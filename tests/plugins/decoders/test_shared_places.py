"""Shared segments in places of equal size: what they hold, and attention to all of them at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cm3plugins.decoders import cache as shared
from cm3plugins.decoders.cache import CacheLayout, Row, Segment, SegmentPool, SharedPlaces, flash

L, K, N, D = 2, 2, 40, 8


@pytest.fixture
def pool() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(L, K, N, D), torch.randn(L, K, N, D)


def whole(pool: tuple[Tensor, Tensor], layer: int, q_KTD: Tensor, slots: list[int]) -> Tensor:
    """Attention of one row to these slots, in one softmax."""
    keys, values = (memory[layer][:, slots] for memory in pool)
    scores = q_KTD @ keys.transpose(1, 2) / D**0.5
    return scores.softmax(-1) @ values


@pytest.mark.parametrize("num_queries", [1, 3])
def test_rows_attend_to_their_segments_and_to_their_own(pool, num_queries):
    """No segment, one, two in a row; segments of several lengths and numbers of rows."""
    first, second, third = Segment(20, 5), Segment(25, 2), Segment(30, 9)
    rows = [
        Row((first, second), 1),
        Row((), 1),
        Row((first,), 1),
        Row((third,), 1),
        Row((first,), 1),
    ]
    places = SharedPlaces(pool[0])
    assert places.update([first, second, third], *pool)
    sharing = places.sharing(rows)
    q = torch.randn(len(rows), K, num_queries, D)
    for layer in range(L):
        own = [memory[layer][:, : len(rows)].transpose(0, 1)[:, :, None] for memory in pool]
        out, lse = flash(q, *own, None)
        merged = places.merge(layer, q, out, lse, sharing)
        for number, row in enumerate(rows):
            slots = [
                slot for one in row.segments for slot in range(one.start, one.start + one.length)
            ]
            expected = whole(pool, layer, q[number], [*slots, number])
            assert torch.allclose(merged[number], expected, atol=1e-5)


def test_places_follow_the_segments_that_live(pool):
    """Ends, moves within the pool and longer ones; what a place holds stays what the segment held."""
    first, second, third = Segment(0, 4), Segment(4, 6), Segment(10, 3)
    places = SharedPlaces(pool[0])
    for live in ([first], [first, second, third], [second, third], [third], [third, second]):
        assert places.update(live, *pool)
        held = places._segments
        assert set(held) == set(live)
        for place, segment in enumerate(held):
            slots = slice(segment.start, segment.start + segment.length)
            assert torch.equal(
                places._keys_LGKSD[:, place, :, : segment.length], pool[0][:, :, slots]
            )
            assert torch.equal(
                places._values_LGKSD[:, place, :, : segment.length], pool[1][:, :, slots]
            )
    long = Segment(0, 40)
    assert places.update([third, long], *pool)
    assert torch.equal(places._keys_LGKSD[:, 1, :, :40], pool[0])


def test_too_many_bytes_are_not_kept_twice(pool, monkeypatch):
    monkeypatch.setattr(shared, "MOST_BYTES", 2 * L * K * 32 * D * 4)
    places = SharedPlaces(pool[0])
    assert places.update([Segment(0, 4)], *pool)
    assert not places.update([Segment(0, 4), Segment(4, 4)], *pool)
    assert places._keys_LGKSD.numel() == 0


def filled(lengths: list[int], seed: int) -> SegmentPool:
    """A pool whose rows hold random keys and values."""
    layout = CacheLayout(L, K, D, torch.float32, torch.device("cpu"), PLAIN, on_cpu=True)
    made = SegmentPool(layout, len(lengths), max(lengths))
    torch.manual_seed(seed)
    for memory in made.memories:
        memory.normal_()
    made.advance(lengths)
    return made


def contents(pool: SegmentPool) -> list[list[Tensor]]:
    """Each row's memories, slot after slot."""
    lengths = [row.shared + row.own for row in pool.rows]
    return [
        [memory[:, :, :length] for memory in pool.copy(place, length).memories]
        for place, length in enumerate(lengths)
    ]


PLAIN = SimpleNamespace(is_plain_softmax=True)
FORKS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(FORKS, FORKS, st.lists(st.integers(0, 5), max_size=6), st.integers(0, 99))
def test_joined_rows_keep_what_they_hold(
    mine: list[int], theirs: list[int], later: list[int], seed: int
) -> None:
    """Rows of three prompts, some of them forked, before and after two pools join, and after another fork."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "SHARING_PAYS", 0)
        one, other = filled([3, 5, 4], seed), filled([6, 2, 7], seed + 1)
        layout = one.layout
        other.layout = layout
        one.select(mine)
        other.select(theirs)
        expected = [*contents(one), *contents(other)]
        one.join(other)
        assert same(contents(one), expected)
        chosen = [place % len(expected) for place in later]
        one.select(chosen)
        assert same(contents(one), [expected[place] for place in chosen])
        assert set(one.live_segments()) == {part for row in one.rows for part in row.segments}


def same(some: list[list[Tensor]], others: list[list[Tensor]]) -> bool:
    return len(some) == len(others) and all(
        torch.equal(a, b)
        for mine, theirs in zip(some, others, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )
