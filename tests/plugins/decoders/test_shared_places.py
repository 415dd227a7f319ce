"""Shared segments in places of equal size: what they hold, and attention to all of them at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cm3plugins.decoders import cache as shared
from cm3plugins.decoders.cache import Row, Segment, SharedPlaces, flash

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
