"""The key-value cache of generation: a pool of slots, segments shared by rows, and attention to them.

A row's keys are, in order, its shared segments (a prompt that several candidates start with, retrieved
documents that guidance streams have in common) and then its own. Own places are adjacent and equally
large, so that on a CPU one batched product covers the own keys of all rows.

On a CPU a shared segment is read once for all of its rows, and the results are merged with the attention to the
rows' own keys by their log-sum-exp (Juravsky et al. 2024, Hydragen, arXiv:2402.05099). Each segment's keys and values
are also copied to a place of equal size when the segment appears: a segment never changes. On a GPU, `segment_decode`
reads the same pool.

Legend: L layers, B rows, T new tokens of each row (queries), K heads, N slots of the pool, S own keys read, or slots
of a segment's place, D head dimension, G segments, n rows of a segment, P slots of a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3core.errors import GenerationError
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import KVCache
from cm3kernels import HeadNorms, Turn, plan_segments, segment_decode, store_heads
from cm3kernels.segment_decode.configs import LARGEST_HEAD_DIM

#: Bytes of keys and values in one layer above which reading them once for several rows outweighs the
#: cost of the extra calls, on a CPU.
SHARING_PAYS = 300_000


@dataclass(frozen=True, eq=False)
class CacheLayout:
    """Shape of keys and values, and the attention backend.

    Each arrangement of a decoder's weights has its own layout, since keys computed with other weights are
    incompatible: caches with the same layout can join.

    Args:
        num_layers, num_heads, head_dim: sizes; heads are those of keys and values.
        dtype, device: of keys and values.
        backend: the attention function.
        on_cpu: attention reads its lengths on the host.
        queries_per_key: query heads that read each key head, adjacent ones.
        keeps_inputs: the input of each layer's attention is kept beside its keys, for the token after it.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    backend: AttentionBackend
    on_cpu: bool
    queries_per_key: int = 1
    keeps_inputs: bool = False

    @property
    def in_parts(self) -> bool:
        """Whether attention runs segment by segment: the backend allows it and, on a GPU, the kernel
        supports these heads. Otherwise each row keeps all of its keys, and the backend attends."""
        return self.backend.is_plain_softmax and (self.on_cpu or self.head_dim <= LARGEST_HEAD_DIM)


@dataclass(eq=False)
class Segment:
    """Slots start..start+length-1 of the pool, read by several rows, read-only."""

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
        num_rows: number of rows, all empty at first.
        capacity: tokens that each of them can hold.
    """

    counts_in_parts = True

    def __init__(self, layout: CacheLayout, num_rows: int, capacity: int) -> None:
        self.layout = layout
        self.rows = [Row() for _ in range(num_rows)]
        self.segments: list[Segment] = []
        # one extra slot receives the padding of ragged chunks
        self._capacity, self._places = capacity + 1, num_rows
        shape = (layout.num_layers, layout.num_heads, num_rows * self._capacity, layout.head_dim)
        #: Keys, values, and inputs if they are kept.
        self.memories = [
            torch.zeros(shape, dtype=layout.dtype, device=layout.device)
            for _ in range(3 if layout.keeps_inputs else 2)
        ]
        self._length_B = torch.zeros(num_rows, dtype=torch.int64, device=layout.device)
        self._forget()

    # ---- contents

    @property
    def keys_LKND(self) -> Tensor:
        """The keys of all slots."""
        return self.memories[0]

    @property
    def values_LKND(self) -> Tensor:
        """The values of all slots."""
        return self.memories[1]

    @property
    def length_B(self) -> Tensor:
        return self._length_B

    def advance(self, count_B: Sequence[int]) -> None:
        for place, (row, count) in enumerate(zip(self.rows, count_B, strict=True)):
            if row.own + count >= self._capacity:
                raise GenerationError(
                    "key-value cache",
                    f"row {place} needs {row.own + count} own tokens, but there is "
                    f"room for {self._capacity - 1}",
                    "reserve room before generating more",
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
        self.segments = self.live_segments()
        for row, number in zip(self.rows, uses, strict=True):
            if number > 1 and self._pays(row.own, number):
                self._share(row)
        chosen = [Row(self.rows[source].segments, self.rows[source].own) for source in rows]
        places, capacity = max(self._places, len(rows)), self._capacity
        if places > self._places:
            # allocated anyway; a fork needs no room for its shared prompt
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
        self.segments = self.live_segments()
        moved = {}
        for segment in other.live_segments():
            moved[segment] = self._new_segment(segment.length)
            for mine, theirs in zip(self.memories, other.memories, strict=True):
                mine[:, :, moved[segment].start :][:, :, : segment.length] = theirs[
                    :, :, segment.start :
                ][:, :, : segment.length]
        for place, row in enumerate(other.rows):
            source, target = place * other._capacity, (before + place) * self._capacity
            for mine, theirs in zip(self.memories, other.memories, strict=True):
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
        for mine, theirs in zip(self.memories, made.memories, strict=True):
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
        for memory in self.memories:
            memory[:, :, segment.start :][:, :, : segment.length] = memory[:, :, start:][
                :, :, : segment.length
            ]
        row.segments, row.own = (*row.segments, segment), 0

    def _new_segment(self, length: int) -> Segment:
        """Allocate a segment after the own places: the first gap that is large enough, or new memory.

        No row reads it yet, so dead segments are dropped before the first of several, not here: the next would take the
        place of the one before it.
        """
        start = self._places * self._capacity
        for place, segment in enumerate(self.segments):
            if segment.start - start >= length:
                self.segments.insert(place, Segment(start, length))
                return self.segments[place]
            start = segment.start + segment.length
        missing = start + length - self.keys_LKND.shape[2]
        if missing > 0:
            self.memories = [F.pad(memory, (0, 0, 0, missing)) for memory in self.memories]
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
            for memory in self.memories:
                memory.index_copy_(2, to, memory.index_select(2, origin))
            return
        live, begin = self.live_segments(), places * capacity
        total = begin + sum(segment.length for segment in live)
        news = [old.new_zeros(*old.shape[:2], total, old.shape[3]) for old in self.memories]
        for new, old in zip(news, self.memories, strict=True):
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
        self.memories = news
        self.segments, self._places, self._capacity = live, places, capacity

    def _slots(self, places: Sequence[int], length: int) -> Tensor:
        """The first `length` slots of some rows' own places, [len(places) * length]."""
        first = (
            torch.tensor(places, dtype=torch.int64, device=self.keys_LKND.device) * self._capacity
        )
        return (first[:, None] + torch.arange(length, device=first.device)).flatten()

    def _forget(self) -> None:
        """Drop derived data, after rows have changed. Subclasses extend this."""


#: Maximum bytes of keys and values kept twice; above it, each segment is attended in its own call.
MOST_BYTES = 256_000_000
#: Places have a multiple of this many slots, so they rarely grow.
_ROUNDED = 32


@dataclass(eq=False)
class Sharing:
    """The segments that each row reads.

    Args:
        length: slots of the longest segment.
        mask_G11S: masks the slots after a segment's end, float. None: there are none.
        row_Gn: the rows of each segment, flat [G * n]; padded with arbitrary rows.
        place_B: one entry for each segment that a row may have, in order: index of each row's results in the
            flat [G * n], and the term added to their log-sum-exp [B, 1, 1]: -inf where a row has no segment.
    """

    length: int
    mask_G11S: Tensor | None
    row_Gn: Tensor
    place_B: list[tuple[Tensor, Tensor]]


class SharedPlaces:
    """Keys and values of shared segments, in places of equal size.

    Args:
        keys_LKND, values_LKND: the pool, for sizes and types.
    """

    def __init__(self, keys_LKND: Tensor) -> None:
        L, K, _, D = keys_LKND.shape
        self._keys_LGKSD = keys_LKND.new_zeros(L, 0, K, 0, D)
        self._values_LGKSD = self._keys_LGKSD
        self._segments: list[Segment] = []

    def update(self, segments: Sequence[Segment], keys_LKND: Tensor, values_LKND: Tensor) -> bool:
        """Hold exactly these segments (at least one); returns False if they take too many bytes."""
        length = max(segment.length for segment in segments)
        length += -length % _ROUNDED
        L, K, _, D = keys_LKND.shape
        if 2 * L * len(segments) * K * length * D * keys_LKND.element_size() > MOST_BYTES:
            self.__init__(keys_LKND)  # type: ignore[misc]  # empty again
            return False
        live = set(segments)
        for place in reversed(range(len(self._segments))):
            if self._segments[place] in live:
                continue
            last = self._segments.pop()
            if place < len(self._segments):  # the last one moves here
                self._segments[place] = last
                for memory in (self._keys_LGKSD, self._values_LGKSD):
                    memory[:, place] = memory[:, len(self._segments)]
        places, slots = self._keys_LGKSD.shape[1], self._keys_LGKSD.shape[3]
        if len(segments) > places or length > slots:
            places, slots = max(len(segments), places), max(length, slots)
            held = len(self._segments)
            new = [keys_LKND.new_zeros(L, places, K, slots, D) for _ in range(2)]
            for memory, old in zip(new, (self._keys_LGKSD, self._values_LGKSD), strict=True):
                memory[:, :held, :, : old.shape[3]] = old[:, :held]
            self._keys_LGKSD, self._values_LGKSD = new
        known = set(self._segments)
        for segment in segments:
            if segment in known:
                continue
            place = len(self._segments)
            self._segments.append(segment)
            for memory, pool in (
                (self._keys_LGKSD, keys_LKND),
                (self._values_LGKSD, values_LKND),
            ):
                memory[:, place, :, : segment.length] = pool[:, :, segment.start :][
                    :, :, : segment.length
                ]
        return True

    def sharing(self, rows: Sequence[Row]) -> Sharing:
        """Return which rows read which segments."""
        place_of = {segment: place for place, segment in enumerate(self._segments)}
        readers: list[list[int]] = [[] for _ in self._segments]
        where: list[list[tuple[int, int]]] = []  # per row: its segments and its places in them
        for number, row in enumerate(rows):
            own = []
            for segment in row.segments:
                readers[place_of[segment]].append(number)
                own.append((place_of[segment], len(readers[place_of[segment]]) - 1))
            where.append(own)
        most = max(map(len, readers))
        row_Gn = torch.tensor([one + [one[0]] * (most - len(one)) for one in readers]).flatten()
        place_B = []
        for turn in range(max(map(len, where))):
            has = [len(own) > turn for own in where]
            flat = [own[turn][0] * most + own[turn][1] if len(own) > turn else 0 for own in where]
            bias = torch.zeros(len(rows), 1, 1)
            bias[~torch.tensor(has)] = -torch.inf
            place_B.append((torch.tensor(flat), bias))
        lengths = [segment.length for segment in self._segments]
        longest, mask = max(lengths), None
        if min(lengths) < longest:
            behind = torch.arange(longest) >= torch.tensor(lengths)[:, None]
            mask = torch.zeros(len(lengths), 1, 1, longest, dtype=self._keys_LGKSD.dtype)
            mask.masked_fill_(behind[:, None, None], -torch.inf)
        return Sharing(longest, mask, row_Gn, place_B)

    def merge(
        self, layer: int, q_BKTD: Tensor, out_BKTD: Tensor, lse_BKT: Tensor, sharing: Sharing
    ) -> Tensor:
        """Merge the rows' attention to their segments with the partial result `out_BKTD`, `lse_BKT`."""
        G = len(self._segments)
        _, K, T, D = q_BKTD.shape
        n = len(sharing.row_Gn) // G
        q_GKnD = (
            q_BKTD.index_select(0, sharing.row_Gn)
            .view(G, n, K, T, D)
            .transpose(1, 2)
            .reshape(G, K, n * T, D)
        )
        part_GKnD, lse_GKn = flash(
            q_GKnD,
            self._keys_LGKSD[layer, :G, :, : sharing.length],
            self._values_LGKSD[layer, :G, :, : sharing.length],
            sharing.mask_G11S,
        )
        # [G, K, n * T, ...] -> rows of [G * n, K, T, ...]
        parts = part_GKnD.view(G, K, n, T, D).transpose(1, 2).reshape(G * n, K, T, D)
        lses = lse_GKn.view(G, K, n, T).transpose(1, 2).reshape(G * n, K, T)
        for turn, (place_B, bias_B11) in enumerate(sharing.place_B):
            part_BKTD, own_BKT = parts.index_select(0, place_B), lses.index_select(0, place_B)
            own_BKT = own_BKT + bias_B11
            share_BKT1 = torch.sigmoid(own_BKT - lse_BKT)[..., None].to(out_BKTD.dtype)
            out_BKTD = torch.lerp(out_BKTD, part_BKTD, share_BKT1)
            if turn + 1 < len(sharing.place_B):
                lse_BKT = torch.logaddexp(lse_BKT, own_BKT)
        return out_BKTD


def flash(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask_B1TS: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention and natural log-sum-exp [B, H, T].

    The function behind scaled_dot_product_attention on a CPU, which doesn't return the log-sum-exp.
    """
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=mask_B1TS
    )
    return out, lse


@dataclass(eq=False)
class Reading:
    """Data shared by the layers of one forward pass: where new tokens are written, what each row sees."""

    num_tokens: int
    num_own: int  # S, the new tokens included
    slots: Tensor  # [B * T]
    mask_B1TS: Tensor | None  # of own keys, float; None: every query sees all of them
    groups: list[tuple[Segment, Tensor | slice]]  # a shared segment and its rows
    sharing: Sharing | None  # of all segments at once, on a CPU; None: as in `groups`
    fresh: bool  # the cache was empty: new tokens see only new tokens
    offset_B: Tensor
    gather_BS: Tensor | None = None  # slots of whole rows, if keys must be contiguous
    plan: Any = None
    prepared: dict[str, Any] = field(default_factory=dict)
    by_runs: bool = False  # the layers read `CM3LeonCache.runs`, and nothing else
    last_B: Tensor | None = None  # slot of each row's last token; only if inputs are kept
    begun_B11: Tensor | None = None  # whether a row has tokens; None: all have

    @property
    def by_turns(self) -> bool:
        """Whether `CM3LeonCache.attend_heads` can read it: few new tokens of each row, on a device."""
        return "lengths" in self.prepared


@dataclass(frozen=True, eq=False)
class Heads:
    """What is done to the heads of a layer's product.

    Args:
        norms: of queries and keys. None: they aren't normalised.
        bias_C: of the product. None: it has none.
    """

    norms: HeadNorms | None = None
    bias_C: Tensor | None = None


class CM3LeonCache(SegmentPool):
    """See `KVCache`; made by `allocate_cache`."""

    _shared_places: SharedPlaces | None = None

    def _forget(self) -> None:
        self._sharing: tuple[Sharing | None] | None = None
        self._groups: list[tuple[Segment, Tensor | slice]] | None = None
        #: New tokens per row -> plan of `segment_decode`, and lengths of segments.
        self._decode_plans: dict[int, tuple[Any, Tensor]] = {}
        self._shared_B: Tensor | None = None
        self._last_shared_B: Tensor | None = None

    def begin(
        self, num_tokens: int, *, by_runs: bool = False, by_turns: bool = False
    ) -> tuple[Tensor, Reading]:
        """Return positions [B, T] of `num_tokens` new tokens per row, and the data for the layers.

        Args:
            num_tokens: T.
            by_runs: the layers read only `runs`.
            by_turns: on a device, each new token reads its row like a row of its own, whose length is on the device:
                few tokens are read that way without the host, so that the pass can be recorded.
        """
        B, T, S = len(self.rows), num_tokens, self._capacity
        device = self.keys_LKND.device
        positions_BT = self._length_B[:, None]
        if T > 1:
            positions_BT = positions_BT + torch.arange(T, device=device)
        if by_runs:
            return positions_BT, Reading(
                T, 0, self._length_B, None, [], None, False, self._length_B, by_runs=True
            )
        own = [row.own for row in self.rows]
        if self._shared_B is None:
            self._shared_B = torch.tensor(
                [row.shared for row in self.rows], dtype=torch.int64, device=device
            )
        # on the device: each replay of a recorded step reads it again
        own_B = self._length_B - self._shared_B
        first_B1 = torch.arange(0, B * S, S, device=device)[:, None]
        slots_BT = first_B1 + (own_B[:, None] + torch.arange(T, device=device)).clamp(max=S - 1)
        longest = min(max(own, default=0) + T, S)
        by_turns = (by_turns or T == 1) and self.layout.in_parts and not self.layout.on_cpu
        mask = None if by_turns else self._mask(own, own_B, T, longest)
        fresh = not any(own) and not any(row.segments for row in self.rows)
        reading = Reading(
            T,
            longest,
            slots_BT.flatten(),
            mask,
            self._segment_groups(),
            self._shared(),
            fresh,
            self._length_B,
        )
        if self.layout.keeps_inputs:
            reading.last_B = self._last(own_B)
            if not all(row.own or row.segments for row in self.rows):
                reading.begun_B11 = (self._length_B > 0)[:, None, None]
        if not fresh and not self.layout.in_parts:
            reading.plan = self.layout.backend.plan(
                num_queries=T, num_keys=longest, offset_B=self._length_B
            )
        elif not fresh and not self.layout.on_cpu:
            if by_turns:
                self._prepare_turns(reading, own_B)
            else:
                self._prepare_rows(reading)
        return positions_BT, reading

    def _mask(self, own: list[int], own_B: Tensor, num_tokens: int, longest: int) -> Tensor | None:
        """Which own keys new tokens see, float [B, 1, T, S]; None: every token sees all of them."""
        B, T, device = len(own), num_tokens, own_B.device
        if T == 1 and not (len(set(own)) > 1 and self.layout.on_cpu):
            return None
        see_BTS = (
            torch.arange(longest, device=device)
            <= (own_B[:, None] + torch.arange(T, device=device))[..., None]
        )
        mask = torch.zeros(B, 1, T, longest, dtype=self.layout.dtype, device=device)
        mask.masked_fill_(~see_BTS[:, None], -torch.inf)
        if self.layout.on_cpu:  # as grouped by `_attend_cpu`
            mask = mask.repeat(1, 1, self.layout.queries_per_key, 1)
        return mask

    def _last(self, own_B: Tensor) -> Tensor:
        """Slot of each row's last token: its own, or the last one of its segments; any slot of an empty row."""
        if self._last_shared_B is None:
            ends = [row.segments[-1:] for row in self.rows]
            last = [end[0].start + end[0].length - 1 if end else 0 for end in ends]
            self._last_shared_B = torch.tensor(last, dtype=torch.int64, device=own_B.device)
        first_B = torch.arange(len(own_B), device=own_B.device) * self._capacity
        return torch.where(own_B > 0, first_B + own_B - 1, self._last_shared_B)

    def before(self, layer: int, x_BTKD: Tensor, reading: Reading) -> Tensor:
        """Keep one layer's inputs of the new tokens; return those of the token before each, [B, T, K, D]: zeros before
        the first token of a row."""
        assert reading.last_B is not None
        memory_KND = self.memories[2][layer]
        last_BKD = memory_KND.index_select(1, reading.last_B).transpose(0, 1).to(x_BTKD.dtype)
        if reading.begun_B11 is not None:
            last_BKD = last_BKD * reading.begun_B11
        memory_KND.index_copy_(
            1, reading.slots, x_BTKD.flatten(0, 1).transpose(0, 1).to(memory_KND.dtype)
        )
        if reading.num_tokens == 1:
            return last_BKD[:, None]
        return torch.cat([last_BKD[:, None], x_BTKD[:, :-1]], dim=1)

    def runs(self, num_tokens: int) -> list[list[range]]:
        """For each new token, row by row, the slots that it sees: those of its row's segments, then its row's own; the
        last slot is the token's."""
        return [
            [
                *(range(one.start, one.start + one.length) for one in row.segments),
                range(
                    place * self._capacity,
                    place * self._capacity + min(row.own + turn, self._capacity),
                ),
            ]
            for place, row in enumerate(self.rows)
            for turn in range(1, num_tokens + 1)
        ]

    def _segment_groups(self) -> list[tuple[Segment, Tensor | slice]]:
        if self._groups is None:
            self._groups = []
            for segment in self.live_segments():
                rows = [place for place, row in enumerate(self.rows) if segment in row.segments]
                side_by_side = rows == list(range(rows[0], rows[-1] + 1))
                index = (
                    slice(rows[0], rows[-1] + 1)
                    if side_by_side
                    else torch.tensor(rows, device=self.keys_LKND.device)
                )
                self._groups.append((segment, index))
        return self._groups

    def _shared(self) -> Sharing | None:
        """Indices to read the segments of all rows in one call, on a CPU; cached until rows change."""
        if self._sharing is None:
            sharing = None
            segments = self.live_segments() if self.layout.on_cpu and self.layout.in_parts else []
            if segments:
                if self._shared_places is None:
                    self._shared_places = SharedPlaces(self.keys_LKND)
                if self._shared_places.update(segments, self.keys_LKND, self.values_LKND):
                    sharing = self._shared_places.sharing(self.rows)
            self._sharing = (sharing,)
        return self._sharing[0]

    def attend(
        self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, reading: Reading
    ) -> Tensor:
        """Write one layer's new keys and values, and attend from the new tokens to their rows."""
        keys_KND, values_KND = self.keys_LKND[layer], self.values_LKND[layer]
        for memory_KND, new_BTKD in ((keys_KND, k_BTKD), (values_KND, v_BTKD)):
            memory_KND.index_copy_(
                1, reading.slots, new_BTKD.flatten(0, 1).transpose(0, 1).to(memory_KND.dtype)
            )
        if reading.fresh:
            return self.layout.backend.attend(q_BTHD, k_BTKD, v_BTKD)
        if not self.layout.in_parts:
            k_BSKD, v_BSKD = (
                self._own(memory_KND, reading.num_own).transpose(1, 2).to(q_BTHD.dtype)
                for memory_KND in (keys_KND, values_KND)
            )
            return self.layout.backend.attend(
                q_BTHD, k_BSKD, v_BSKD, offset_B=reading.offset_B, plan=reading.plan
            )
        if not self.layout.on_cpu:
            return self._attend_device(q_BTHD, keys_KND, values_KND, reading)
        return self._attend_cpu(layer, q_BTHD, keys_KND, values_KND, reading)

    def _own(self, memory_KND: Tensor, length: int) -> Tensor:
        """View of the first slots of the rows' own places, [B, K, S, D]."""
        _, N, D = memory_KND.shape
        return memory_KND.as_strided(
            (len(self.rows), memory_KND.shape[0], length, D),
            (self._capacity * D, N * D, D, 1),
            memory_KND.storage_offset(),
        )

    def _attend_cpu(
        self,
        layer: int,
        q_BTHD: Tensor,
        keys_KND: Tensor,
        values_KND: Tensor,
        reading: Reading,
    ) -> Tensor:
        """Attend to the own keys of all rows in one product and to shared segments in another.

        Query heads that read the same key head are treated as more queries of that head (T here counts
        them all), so that its keys are read once.
        """
        B, T, H, D = q_BTHD.shape
        group = self.layout.queries_per_key
        q_BHTD = q_BTHD.transpose(1, 2).to(keys_KND.dtype)
        q_BHTD = q_BHTD.reshape(B, H // group, group * T, D)
        out_BHTD = self._attend_grouped(layer, q_BHTD, keys_KND, values_KND, reading)
        return out_BHTD.reshape(B, H, T, D).transpose(1, 2)

    def _attend_grouped(
        self,
        layer: int,
        q_BHTD: Tensor,
        keys_KND: Tensor,
        values_KND: Tensor,
        reading: Reading,
    ) -> Tensor:
        """Attend where keys have as many heads as queries, [B, H, T, D]."""
        own_keys, own_values = (
            self._own(keys_KND, reading.num_own),
            self._own(values_KND, reading.num_own),
        )
        if not reading.groups:
            out_BHTD = F.scaled_dot_product_attention(
                q_BHTD, own_keys, own_values, attn_mask=reading.mask_B1TS
            )
            return out_BHTD
        out_BHTD, lse_BHT = flash(q_BHTD, own_keys, own_values, reading.mask_B1TS)
        if reading.sharing is not None:
            assert self._shared_places is not None
            return self._shared_places.merge(layer, q_BHTD, out_BHTD, lse_BHT, reading.sharing)
        H, T, D = q_BHTD.shape[1:]
        for segment, rows in reading.groups:
            q_1HMD = q_BHTD[rows].transpose(0, 1).reshape(1, H, -1, D)
            shared = slice(segment.start, segment.start + segment.length)
            part_1HMD, lse_1HM = flash(
                q_1HMD, keys_KND[None, :, shared], values_KND[None, :, shared], None
            )
            part_nHTD, lse_nHT = (
                x[0].unflatten(1, (-1, T)).transpose(0, 1) for x in (part_1HMD, lse_1HM)
            )
            before_nHT = lse_BHT[rows]
            share_nHT1 = torch.sigmoid(lse_nHT - before_nHT)[..., None].to(out_BHTD.dtype)
            out_BHTD[rows] = torch.lerp(out_BHTD[rows], part_nHTD, share_nHT1)
            lse_BHT[rows] = torch.logaddexp(before_nHT, lse_nHT)
        return out_BHTD

    # ---- on a device

    def _prepare_rows(self, reading: Reading) -> None:
        """Gather whole rows, for many new tokens on a device."""
        longest = max(row.shared + row.own for row in self.rows) + reading.num_tokens
        gather = torch.zeros(len(self.rows), longest, dtype=torch.int64)
        for place, row in enumerate(self.rows):
            runs = [
                torch.arange(segment.start, segment.start + segment.length)
                for segment in row.segments
            ]
            own = min(row.own + reading.num_tokens, self._capacity)
            runs.append(torch.arange(place * self._capacity, place * self._capacity + own))
            whole = torch.cat(runs)[:longest]
            gather[place, : len(whole)] = whole
        reading.gather_BS = gather.to(self.keys_LKND.device)
        reading.plan = self.layout.backend.plan(
            num_queries=reading.num_tokens, num_keys=longest, offset_B=reading.offset_B
        )

    def _prepare_turns(self, reading: Reading, own_B: Tensor) -> None:
        """Build the work list of `segment_decode` for few new tokens per row; lengths stay on the device."""
        device, T, B = self.keys_LKND.device, reading.num_tokens, len(self.rows)
        if T not in self._decode_plans:
            live = self.live_segments()
            number = {segment: place for place, segment in enumerate(live)}
            places = [place for place in range(B) for _ in range(T)]
            starts = [segment.start for segment in live]
            starts += [place * self._capacity for place in places]
            capacities = [segment.length for segment in live] + [self._capacity] * len(places)
            reads = [
                [*(number[segment] for segment in self.rows[place].segments), len(live) + turn]
                for turn, place in enumerate(places)
            ]
            plan = plan_segments(
                starts,
                capacities,
                reads,
                num_query_heads=self.layout.num_heads * self.layout.queries_per_key,
                num_key_heads=self.layout.num_heads,
                device=device,
            )
            fixed = torch.tensor(
                [segment.length for segment in live], dtype=torch.int32, device=device
            )
            self._decode_plans[T] = plan, fixed
        reading.plan, fixed = self._decode_plans[T]
        seen = own_B + 1
        if T > 1:  # padding reaches past the end of a row
            turns_T = torch.arange(T, device=device)
            seen = (seen[:, None] + turns_T).clamp(max=self._capacity).flatten()
        reading.prepared["lengths"] = torch.cat([fixed, seen.to(torch.int32)])

    def attend_heads(
        self, layer: int, qkv_MC: Tensor, heads: Heads, turn: Turn | None, reading: Reading
    ) -> Tensor:
        """As `attend`, from the product of queries, keys and values and without copies: one launch writes the heads, and
        `segment_decode` reads them. For a reading `by_turns`.

        Args:
            layer: index of the layer.
            qkv_MC: heads of queries, keys and values of the new tokens, row by row.
            heads: what is done to them.
            turn: rotary positions of the new tokens.

        Returns:
            Attention [M, H * D], in the dtype of the cache.
        """
        keys_NKD, values_NKD = (
            memory_LKND[layer].transpose(0, 1) for memory_LKND in self.memories[:2]
        )
        q_MHD = store_heads(
            qkv_MC,
            keys_NKD,
            values_NKD,
            reading.slots,
            bias=heads.bias_C,
            norms=heads.norms,
            turn=turn,
        )
        lengths = reading.prepared["lengths"]
        return segment_decode(q_MHD, keys_NKD, values_NKD, lengths, reading.plan).flatten(1)

    def _attend_device(
        self, q_BTHD: Tensor, keys_KND: Tensor, values_KND: Tensor, reading: Reading
    ) -> Tensor:
        if reading.gather_BS is not None:
            k_BSKD, v_BSKD = (
                memory_KND.transpose(0, 1)[reading.gather_BS].to(q_BTHD.dtype)
                for memory_KND in (keys_KND, values_KND)
            )
            return self.layout.backend.attend(
                q_BTHD, k_BSKD, v_BSKD, offset_B=reading.offset_B, plan=reading.plan
            )
        q_RHD = q_BTHD.flatten(0, 1).to(keys_KND.dtype)
        return segment_decode(
            q_RHD,
            keys_KND.transpose(0, 1),
            values_KND.transpose(0, 1),
            reading.prepared["lengths"],
            reading.plan,
        ).view(q_BTHD.shape)
