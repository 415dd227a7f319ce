"""The CM3leon decoder's cache: attention of new tokens to the keys of their rows in the pool.

On a CPU a shared segment is read once for all of its rows, and the results are merged by their
log-sum-exp (Juravsky et al. 2024, Hydragen, arXiv:2402.05099); on a device `segment_decode` reads
the same pool.

Legend: L layers, B rows, T new tokens of each row, K heads, N slots of the pool, S own keys that are
read, D head dimension, n rows of a segment, P slots of a segment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3kernels import plan_segments, segment_decode
from cm3plugins.decoders.cm3leon.pool import Segment, SegmentPool
from cm3plugins.decoders.cm3leon.shared import SharedPlaces, Sharing, flash


@dataclass(eq=False)
class Reading:
    """Shared by the layers of one forward: where new tokens go, what each row sees."""

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


class CM3LeonCache(SegmentPool):
    """See `KVCache`; made by `allocate_cache`."""

    _shared_places: SharedPlaces | None = None

    def _forget(self) -> None:
        self._sharing: tuple[Sharing | None] | None = None
        self._groups: list[tuple[Segment, Tensor | slice]] | None = None
        self._decode_plan: tuple[Any, Tensor] | None = None
        self._shared_B: Tensor | None = None

    def begin(self, num_tokens: int, *, by_runs: bool = False) -> tuple[Tensor, Reading]:
        """Positions [B, T] of `num_tokens` new tokens per row, and the data for the layers.

        Args:
            num_tokens: T.
            by_runs: the layers read `runs`, and nothing else; T is 1.
        """
        B, T, S = len(self.rows), num_tokens, self._capacity
        device = self.keys_LKND.device
        if by_runs:
            return self._length_B[:, None], Reading(
                1, 0, self._length_B, None, [], None, False, self._length_B
            )
        positions_BT = self._length_B[:, None] + torch.arange(T, device=device)
        own = [row.own for row in self.rows]
        if self._shared_B is None:
            self._shared_B = torch.tensor(
                [row.shared for row in self.rows], dtype=torch.int64, device=device
            )
        # on the device: a recorded step reads it again on each replay
        own_B = self._length_B - self._shared_B
        first_B1 = torch.arange(0, B * S, S, device=device)[:, None]
        slots_BT = first_B1 + (own_B[:, None] + torch.arange(T, device=device)).clamp(max=S - 1)
        longest = min(max(own, default=0) + T, S)
        mask = None
        if T > 1 or (len(set(own)) > 1 and self.layout.on_cpu):
            see_BTS = (
                torch.arange(longest, device=device)
                <= (own_B[:, None] + torch.arange(T, device=device))[..., None]
            )
            mask = torch.zeros(B, 1, T, longest, dtype=self.layout.dtype, device=device)
            mask.masked_fill_(~see_BTS[:, None], -torch.inf)
            if self.layout.on_cpu:  # as `_attend_cpu` groups its queries
                mask = mask.repeat(1, 1, self.layout.queries_per_key, 1)
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
        if not fresh and not self.layout.in_parts:
            reading.plan = self.layout.backend.plan(
                num_queries=T, num_keys=longest, offset_B=self._length_B
            )
        elif not fresh and not self.layout.on_cpu:
            self._prepare_device(reading)
        return positions_BT, reading

    def runs(self) -> list[list[range]]:
        """Of each row, the slots that one new token of it sees: its segments', then its own, the last of
        which is the new token's."""
        return [
            [
                *(range(one.start, one.start + one.length) for one in row.segments),
                range(place * self._capacity, place * self._capacity + row.own + 1),
            ]
            for place, row in enumerate(self.rows)
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
        """How the segments of all rows are read in one call, on a CPU; kept until rows change."""
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
        """The first slots of the rows' own places, a view [B, K, S, D]."""
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
        """Own keys of all rows in one product, shared segments in another one.

        Query heads that read the same key head become more queries of that head (T here counts
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
        """Attention where keys have as many heads as queries, [B, H, T, D]."""
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

    def _prepare_device(self, reading: Reading) -> None:
        """Prepare attention on a device.

        One new token per row: the work list of `segment_decode`; lengths stay on the device. More:
        whole rows, gathered.
        """
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
            reading.plan = self.layout.backend.plan(
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
                num_query_heads=self.layout.num_heads * self.layout.queries_per_key,
                num_key_heads=self.layout.num_heads,
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
            return self.layout.backend.attend(
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
