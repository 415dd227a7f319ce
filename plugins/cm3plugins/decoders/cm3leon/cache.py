"""The CM3leon decoder's cache: one pool of slots, in which each row has its own place and reads
what it shares with others.

A row's keys are, in order, those of its shared segments (a prompt that several candidates start
with, retrieved documents that guidance streams have in common) and its own. Own places stand side
by side and are equally large, so that on a CPU all rows' own keys are one batched product; a shared
segment is read once for all of its rows, and the results are merged by their log-sum-exp (Juravsky
et al. 2024, Hydragen, arXiv:2402.05099).

Legend: L layers, B rows, T new tokens of each row, K heads, N slots of the pool, S own keys that
are read, D head dimension, n rows of a segment, P slots of a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3core.errors import GenerationError
from cm3core.interfaces.decoder import KVCache
from cm3kernels import plan_segments, segment_decode

if TYPE_CHECKING:
    from cm3plugins.decoders.cm3leon.inference import CM3LeonInference

#: Bytes of keys and values in one layer from which reading them once for several rows pays for the
#: calls that it takes, on a CPU.
SHARING_PAYS = 1_000_000


@dataclass(eq=False)
class Segment:
    """Slots start..start+length-1 of the pool, read by several rows and written no more."""

    start: int
    length: int


@dataclass(eq=False)
class Row:
    """What a row holds: shared segments in order, then `own` tokens of its own place."""

    segments: tuple[Segment, ...] = ()
    own: int = 0

    @property
    def shared(self) -> int:
        """Tokens in segments."""
        return sum(segment.length for segment in self.segments)


@dataclass(eq=False)
class Reading:
    """What the layers of one forward share: where new tokens go, what each row sees."""

    num_tokens: int
    num_own: int  # S, the new tokens included
    slots: Tensor  # [B * T]
    mask_B1TS: Tensor | None  # of own keys, float; None: every query sees all of them
    groups: list[tuple[Segment, Tensor | slice]]  # a shared segment and its rows
    fresh: bool  # nothing was held before: new tokens see new tokens only
    offset_B: Tensor
    gather_BS: Tensor | None = None  # slots of whole rows, where keys have to stand side by side
    plan: Any = None
    prepared: dict[str, Any] = field(default_factory=dict)


class CM3LeonCache(KVCache):
    """See `KVCache`; made by `allocate_cache`.

    Args:
        decoder: whose keys and values they are; a cache belongs to the weights that filled it.
        num_rows: rows, all empty.
        capacity: tokens that each of them can take.
    """

    def __init__(self, decoder: CM3LeonInference, num_rows: int, capacity: int) -> None:
        self.decoder = decoder
        self.rows = [Row() for _ in range(num_rows)]
        self.segments: list[Segment] = []
        # one slot more takes the padding of ragged chunks
        self._capacity, self._places = capacity + 1, num_rows
        shape = (decoder.num_layers, decoder.num_heads, num_rows * self._capacity, decoder.head_dim)
        self.keys_LKND = torch.zeros(shape, dtype=decoder.cache_dtype, device=decoder.device)
        self.values_LKND = torch.zeros_like(self.keys_LKND)
        self._length_B = torch.zeros(num_rows, dtype=torch.int64, device=decoder.device)
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
                    f"row {place} would hold {row.own + count} tokens of its own, there is "
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
    def can_be_recorded(self) -> bool:  # type: ignore[override]  # on a device that holds as long as attention is ours
        return not self.decoder.on_cpu and self.decoder.backend.is_plain_softmax

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
        self._move(list(rows), max(self._places, len(rows)), self._capacity)
        self.rows = chosen
        self._length_B = self._length_B[
            torch.tensor(rows, dtype=torch.int64, device=self._length_B.device)
        ]
        self._forget()

    def join(self, other: KVCache) -> None:
        assert isinstance(other, CM3LeonCache)
        assert other.decoder is self.decoder, "caches of one decoder can join"
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

    # ---- the pool

    def live_segments(self) -> list[Segment]:
        """Segments that rows still read, in the order of the pool."""
        used = {segment for row in self.rows for segment in row.segments}
        return [segment for segment in self.segments if segment in used]

    def _memories(self, other: CM3LeonCache) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (self.keys_LKND, other.keys_LKND), (self.values_LKND, other.values_LKND)

    def _pays(self, length: int, uses: int) -> bool:
        if not self.decoder.backend.is_plain_softmax or length == 0:
            return False
        heads, size = (
            self.keys_LKND.shape[1] * self.keys_LKND.shape[3],
            self.keys_LKND.element_size(),
        )
        return not self.decoder.on_cpu or 2 * heads * size * length * (uses - 1) >= SHARING_PAYS

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
        """A place behind the own places and all segments: the first gap that is large enough, or
        more memory."""
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
        """Put the own tokens of row sources[i] into place i; where places or their capacity grow,
        into new memory."""
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

    # ---- reading and writing

    def _forget(self) -> None:
        """Rows have changed: what was worked out about them no longer holds."""
        self._groups: list[tuple[Segment, Tensor | slice]] | None = None
        self._decode_plan: tuple[Any, Tensor] | None = None
        self._shared_B: Tensor | None = None

    def begin(self, num_tokens: int) -> tuple[Tensor, Reading]:
        """Of the `num_tokens` about to be written to each row: positions [B, T], and what the
        layers need to know."""
        B, T, S = len(self.rows), num_tokens, self._capacity
        device = self.keys_LKND.device
        positions_BT = self._length_B[:, None] + torch.arange(T, device=device)
        own = [row.own for row in self.rows]
        if self._shared_B is None:
            self._shared_B = torch.tensor(
                [row.shared for row in self.rows], dtype=torch.int64, device=device
            )
        # on the device: a step that is recorded once reads it anew each time
        own_B = self._length_B - self._shared_B
        first_B1 = torch.arange(0, B * S, S, device=device)[:, None]
        slots_BT = first_B1 + (own_B[:, None] + torch.arange(T, device=device)).clamp(max=S - 1)
        longest = min(max(own, default=0) + T, S)
        mask = None
        if T > 1 or (len(set(own)) > 1 and self.decoder.on_cpu):
            see_BTS = (
                torch.arange(longest, device=device)
                <= (own_B[:, None] + torch.arange(T, device=device))[..., None]
            )
            mask = torch.zeros(B, 1, T, longest, dtype=self.decoder.cache_dtype, device=device)
            mask.masked_fill_(~see_BTS[:, None], -torch.inf)
        fresh = not any(own) and not any(row.segments for row in self.rows)
        reading = Reading(
            T, longest, slots_BT.flatten(), mask, self._segment_groups(), fresh, self._length_B
        )
        if not fresh and not self.decoder.backend.is_plain_softmax:
            reading.plan = self.decoder.backend.plan(
                num_queries=T, num_keys=longest, offset_B=self._length_B
            )
        elif not fresh and not self.decoder.on_cpu:
            self._prepare_device(reading)
        return positions_BT, reading

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

    def attend(
        self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, reading: Reading
    ) -> Tensor:
        """Write one layer's new keys and values; attention of the new tokens on them and on all
        that their rows hold."""
        keys_KND, values_KND = self.keys_LKND[layer], self.values_LKND[layer]
        for memory_KND, new_BTKD in ((keys_KND, k_BTKD), (values_KND, v_BTKD)):
            memory_KND.index_copy_(
                1, reading.slots, new_BTKD.flatten(0, 1).transpose(0, 1).to(memory_KND.dtype)
            )
        if reading.fresh:
            return self.decoder.backend.attend(q_BTHD, k_BTKD, v_BTKD)
        if not self.decoder.backend.is_plain_softmax:
            k_BSKD, v_BSKD = (
                self._own(memory_KND, reading.num_own).transpose(1, 2).to(q_BTHD.dtype)
                for memory_KND in (keys_KND, values_KND)
            )
            return self.decoder.backend.attend(
                q_BTHD, k_BSKD, v_BSKD, offset_B=reading.offset_B, plan=reading.plan
            )
        if not self.decoder.on_cpu:
            return self._attend_device(q_BTHD, keys_KND, values_KND, reading)
        return self._attend_cpu(q_BTHD, keys_KND, values_KND, reading)

    def _own(self, memory_KND: Tensor, length: int) -> Tensor:
        """The first slots of all own places, a view [B, K, S, D]."""
        _, N, D = memory_KND.shape
        return memory_KND.as_strided(
            (len(self.rows), memory_KND.shape[0], length, D),
            (self._capacity * D, N * D, D, 1),
            memory_KND.storage_offset(),
        )

    def _attend_cpu(
        self, q_BTHD: Tensor, keys_KND: Tensor, values_KND: Tensor, reading: Reading
    ) -> Tensor:
        """Own keys of all rows in one product, each shared segment in one for its rows."""
        q_BHTD = q_BTHD.transpose(1, 2).to(keys_KND.dtype)
        own_keys, own_values = (
            self._own(keys_KND, reading.num_own),
            self._own(values_KND, reading.num_own),
        )
        if not reading.groups:
            out_BHTD = F.scaled_dot_product_attention(
                q_BHTD, own_keys, own_values, attn_mask=reading.mask_B1TS
            )
            return out_BHTD.transpose(1, 2)
        out_BHTD, lse_BHT = _flash(q_BHTD, own_keys, own_values, reading.mask_B1TS)
        H, T, D = q_BHTD.shape[1:]
        for segment, rows in reading.groups:
            q_1HMD = q_BHTD[rows].transpose(0, 1).reshape(1, H, -1, D)
            shared = slice(segment.start, segment.start + segment.length)
            part_1HMD, lse_1HM = _flash(
                q_1HMD, keys_KND[None, :, shared], values_KND[None, :, shared], None
            )
            part_nHTD, lse_nHT = (
                x[0].unflatten(1, (-1, T)).transpose(0, 1) for x in (part_1HMD, lse_1HM)
            )
            before_nHT = lse_BHT[rows]
            share_nHT1 = torch.sigmoid(lse_nHT - before_nHT)[..., None].to(out_BHTD.dtype)
            out_BHTD[rows] = torch.lerp(out_BHTD[rows], part_nHTD, share_nHT1)
            lse_BHT[rows] = torch.logaddexp(before_nHT, lse_nHT)
        return out_BHTD.transpose(1, 2)

    # ---- on a device

    def _prepare_device(self, reading: Reading) -> None:
        """One new token a row: the work list of `segment_decode`; lengths stay on the device. More:
        whole rows, gathered."""
        device = self.keys_LKND.device
        assert self._shared_B is not None
        if reading.num_tokens > 1:
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
            reading.gather_BS = gather.to(device)
            reading.plan = self.decoder.backend.plan(
                num_queries=reading.num_tokens, num_keys=longest, offset_B=reading.offset_B
            )
            return
        if self._decode_plan is None:
            live = self.live_segments()
            number = {segment: place for place, segment in enumerate(live)}
            starts = [segment.start for segment in live] + [
                place * self._capacity for place in range(len(self.rows))
            ]
            capacities = [segment.length for segment in live] + [self._capacity] * len(self.rows)
            reads = [
                [*(number[segment] for segment in row.segments), len(live) + place]
                for place, row in enumerate(self.rows)
            ]
            plan = plan_segments(
                starts,
                capacities,
                reads,
                num_query_heads=self.decoder.num_heads,
                num_key_heads=self.decoder.num_heads,
                device=device,
            )
            fixed = torch.tensor(
                [segment.length for segment in live], dtype=torch.int32, device=device
            )
            self._decode_plan = plan, fixed
        plan, fixed = self._decode_plan
        reading.plan = plan
        reading.prepared["lengths"] = torch.cat(
            [fixed, (self._length_B + 1 - self._shared_B).to(torch.int32)]
        )

    def _attend_device(
        self, q_BTHD: Tensor, keys_KND: Tensor, values_KND: Tensor, reading: Reading
    ) -> Tensor:
        if reading.gather_BS is not None:
            k_BSKD, v_BSKD = (
                memory_KND.transpose(0, 1)[reading.gather_BS].to(q_BTHD.dtype)
                for memory_KND in (keys_KND, values_KND)
            )
            return self.decoder.backend.attend(
                q_BTHD, k_BSKD, v_BSKD, offset_B=reading.offset_B, plan=reading.plan
            )
        q_RHD = q_BTHD[:, 0].to(keys_KND.dtype)
        return segment_decode(
            q_RHD,
            keys_KND.transpose(0, 1),
            values_KND.transpose(0, 1),
            reading.prepared["lengths"],
            reading.plan,
        )[:, None]


def _flash(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask_B1TS: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention and natural log-sum-exp [B, H, T]: the function behind scaled_dot_product_attention
    on a CPU, which keeps the second to itself."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=mask_B1TS
    )
    return out, lse
