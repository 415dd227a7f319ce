"""Memory of the CM3leon decoder's cache: a pool of slots with own and shared places.

A row's keys are, in order, those of its shared segments (a prompt that several candidates start
with, retrieved documents that guidance streams have in common) and its own. Own places are adjacent
and equally large, so that on a CPU all rows' own keys are one batched product.

Legend: L layers, B rows, K heads, N slots of the pool, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3core.errors import GenerationError
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import KVCache
from cm3kernels.segment_decode.configs import LARGEST_HEAD_DIM

#: Bytes of keys and values in one layer from which reading them once for several rows outweighs the
#: cost of the extra calls, on a CPU.
SHARING_PAYS = 300_000


@dataclass(frozen=True, eq=False)
class CacheLayout:
    """Shape of keys and values, and the attention backend.

    Each arrangement of a decoder's weights has its own layout, since keys of other weights mean
    something else: caches of the same layout can join.

    Args:
        num_layers, num_heads, head_dim: sizes; heads are those of keys and values.
        dtype, device: of keys and values.
        backend: the attention function.
        on_cpu: attention takes its lengths from the host.
        queries_per_key: query heads that read each key head, adjacent ones.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    backend: AttentionBackend
    on_cpu: bool
    queries_per_key: int = 1

    @property
    def in_parts(self) -> bool:
        """Whether attention is computed segment by segment: the backend allows it, and on a GPU the
        kernel takes such heads. Otherwise each row keeps all of its keys, and the backend attends."""
        return self.backend.is_plain_softmax and (self.on_cpu or self.head_dim <= LARGEST_HEAD_DIM)


@dataclass(eq=False)
class Segment:
    """Slots start..start+length-1 of the pool, read by several rows and no longer written."""

    start: int
    length: int


@dataclass(eq=False)
class Row:
    """Content of a row: shared segments in order, then `own` tokens in its own place."""

    segments: tuple[Segment, ...] = ()
    own: int = 0

    @property
    def shared(self) -> int:
        """Tokens in segments."""
        return sum(segment.length for segment in self.segments)


class SegmentPool(KVCache):
    """Rows with segments, in one memory; see `KVCache` for the calls.

    Args:
        layout: sizes, and the weights that the keys belong to.
        num_rows: rows, all empty.
        capacity: tokens that each of them can hold.
    """

    def __init__(self, layout: CacheLayout, num_rows: int, capacity: int) -> None:
        self.layout = layout
        self.rows = [Row() for _ in range(num_rows)]
        self.segments: list[Segment] = []
        # one extra slot takes the padding of ragged chunks
        self._capacity, self._places = capacity + 1, num_rows
        shape = (layout.num_layers, layout.num_heads, num_rows * self._capacity, layout.head_dim)
        self.keys_LKND = torch.zeros(shape, dtype=layout.dtype, device=layout.device)
        self.values_LKND = torch.zeros_like(self.keys_LKND)
        self._length_B = torch.zeros(num_rows, dtype=torch.int64, device=layout.device)
        self._forget()

    # ---- what is held

    @property
    def length_B(self) -> Tensor:
        return self._length_B

    def advance(self, count_B: Sequence[int]) -> None:
        for place, (row, count) in enumerate(zip(self.rows, count_B, strict=True)):
            if row.own + count >= self._capacity:
                raise GenerationError(
                    "key-value cache",
                    f"row {place} would hold {row.own + count} own tokens, but there is "
                    f"room for {self._capacity - 1}",
                    "reserve room before more is generated",
                )
        for row, count in zip(self.rows, count_B, strict=True):
            row.own += count
        if len(set(count_B)) == 1:
            self._length_B += count_B[0]
        else:
            self._length_B += torch.tensor(count_B, device=self._length_B.device)

    @property
    def can_be_recorded(self) -> bool:  # type: ignore[override]  # true if attention is ours
        return not self.layout.on_cpu and self.layout.in_parts

    def count_on_device(self) -> None:
        self._length_B += 1

    def count_on_host(self) -> None:
        for row in self.rows:
            row.own += 1

    def select(self, rows: Sequence[int]) -> None:
        uses = [rows.count(place) for place in range(len(self.rows))]
        for row, number in zip(self.rows, uses, strict=True):
            if number > 1 and self._pays(row.own, number):
                self._share(row)
        chosen = [Row(self.rows[source].segments, self.rows[source].own) for source in rows]
        places, capacity = max(self._places, len(rows)), self._capacity
        if places > self._places:
            # memory is allocated anyway; a fork needs no room for the prompt that it shares
            capacity = max(row.own for row in chosen) + 1
        self._move(list(rows), places, capacity)
        self.rows = chosen
        self._length_B = self._length_B[
            torch.tensor(rows, dtype=torch.int64, device=self._length_B.device)
        ]
        self._forget()

    def join(self, other: KVCache) -> None:
        assert isinstance(other, SegmentPool)
        assert other.layout is self.layout, "only caches of one decoder can join"
        before = len(self.rows)
        capacity = max(self._capacity, other._capacity)
        self._move(list(range(before)), max(self._places, before + len(other.rows)), capacity)
        moved = {}
        for segment in other.live_segments():
            moved[segment] = self._new_segment(segment.length)
            for mine, theirs in self._memories(other):
                mine[:, :, moved[segment].start :][:, :, : segment.length] = theirs[
                    :, :, segment.start :
                ][:, :, : segment.length]
        for place, row in enumerate(other.rows):
            source, target = place * other._capacity, (before + place) * self._capacity
            for mine, theirs in self._memories(other):
                mine[:, :, target : target + row.own] = theirs[:, :, source : source + row.own]
            self.rows.append(Row(tuple(moved[segment] for segment in row.segments), row.own))
        self._length_B = torch.cat([self._length_B, other.length_B])
        self._forget()

    def reserve(self, more_B: Sequence[int]) -> None:
        wanted = (
            max((row.own + more for row, more in zip(self.rows, more_B, strict=True)), default=0)
            + 1
        )
        if wanted > self._capacity:
            self._move(list(range(len(self.rows))), self._places, wanted)
            self._forget()

    can_be_copied = True

    def copy(self, row: int, length: int) -> SegmentPool:
        source = self.rows[row]
        runs = [(segment.start, segment.length) for segment in source.segments]
        runs.append((row * self._capacity, source.own))
        assert 0 < length <= sum(size for _, size in runs)
        made = type(self)(self.layout, 1, length)
        for mine, theirs in self._memories(made):
            written = 0
            for start, size in runs:
                taken = min(size, length - written)
                theirs[:, :, written : written + taken] = mine[:, :, start : start + taken]
                written += taken
        made.rows[0].own = length
        made._length_B += length
        return made

    # ---- the pool

    def live_segments(self) -> list[Segment]:
        """Segments that rows still read, in the order of the pool."""
        used = {segment for row in self.rows for segment in row.segments}
        return [segment for segment in self.segments if segment in used]

    def _memories(self, other: SegmentPool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (self.keys_LKND, other.keys_LKND), (self.values_LKND, other.values_LKND)

    def _pays(self, length: int, uses: int) -> bool:
        if not self.layout.in_parts or length == 0:
            return False
        heads, size = (
            self.keys_LKND.shape[1] * self.keys_LKND.shape[3],
            self.keys_LKND.element_size(),
        )
        return not self.layout.on_cpu or 2 * heads * size * length * (uses - 1) >= SHARING_PAYS

    def _share(self, row: Row) -> None:
        """Turn a row's own tokens into a segment."""
        start = self.rows.index(row) * self._capacity
        segment = self._new_segment(row.own)
        for memory in (self.keys_LKND, self.values_LKND):
            memory[:, :, segment.start :][:, :, : segment.length] = memory[:, :, start:][
                :, :, : segment.length
            ]
        row.segments, row.own = (*row.segments, segment), 0

    def _new_segment(self, length: int) -> Segment:
        """Allocate a segment after the own places: the first large enough gap, or more memory."""
        self.segments = self.live_segments()
        start = self._places * self._capacity
        for place, segment in enumerate(self.segments):
            if segment.start - start >= length:
                self.segments.insert(place, Segment(start, length))
                return self.segments[place]
            start = segment.start + segment.length
        missing = start + length - self.keys_LKND.shape[2]
        if missing > 0:
            self.keys_LKND = F.pad(self.keys_LKND, (0, 0, 0, missing))
            self.values_LKND = F.pad(self.values_LKND, (0, 0, 0, missing))
        self.segments.append(Segment(start, length))
        return self.segments[-1]

    def _move(self, sources: list[int], places: int, capacity: int) -> None:
        """Move the own tokens of row sources[i] to place i.

        If the number of places or their capacity grows, new memory is allocated.
        """
        if (places, capacity) == (self._places, self._capacity):
            moves = [
                (place, source)
                for place, source in enumerate(sources)
                if place != source and self.rows[source].own
            ]
            if not moves:
                return
            longest = max(self.rows[source].own for _, source in moves)
            to, origin = (self._slots([move[side] for move in moves], longest) for side in (0, 1))
            for memory in (self.keys_LKND, self.values_LKND):
                memory.index_copy_(2, to, memory.index_select(2, origin))
            return
        live, begin = self.live_segments(), places * capacity
        total = begin + sum(segment.length for segment in live)
        olds = self.keys_LKND, self.values_LKND
        news = [old.new_zeros(*old.shape[:2], total, old.shape[3]) for old in olds]
        for new, old in zip(news, olds, strict=True):
            for place, source in enumerate(sources):
                own = self.rows[source].own
                new[:, :, place * capacity :][:, :, :own] = old[:, :, source * self._capacity :][
                    :, :, :own
                ]
            start = begin
            for segment in live:
                new[:, :, start:][:, :, : segment.length] = old[:, :, segment.start :][
                    :, :, : segment.length
                ]
                start += segment.length
        for segment in live:
            segment.start, begin = begin, begin + segment.length
        self.keys_LKND, self.values_LKND = news
        self.segments, self._places, self._capacity = live, places, capacity

    def _slots(self, places: Sequence[int], length: int) -> Tensor:
        """The first `length` slots of some rows' own places, [len(places) * length]."""
        first = (
            torch.tensor(places, dtype=torch.int64, device=self.keys_LKND.device) * self._capacity
        )
        return (first[:, None] + torch.arange(length, device=first.device)).flatten()

    def _forget(self) -> None:
        """Rows have changed: derived data is no longer valid. Subclasses extend this."""
