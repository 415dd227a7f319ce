"""Attention to shared segments on a CPU: those of all rows in one call, however many there are.

Each segment's keys and values are also kept in a place of equal size, filled when the segment appears:
what a segment holds never changes. Results are merged with those of the rows' own keys by their
log-sum-exp (Juravsky et al. 2024, Hydragen, arXiv:2402.05099).

Legend: L layers, G segments, S slots of a place, K heads, D head dimension, B rows, n rows of a segment,
T queries of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3plugins.decoders.cm3leon.pool import Row, Segment

#: Maximum bytes of keys and values that are kept twice; beyond it each segment is a call of its own.
MOST_BYTES = 256_000_000
#: Places have a multiple of this many slots, so that they seldom grow.
_ROUNDED = 32


@dataclass(eq=False)
class Sharing:
    """Which rows read which places.

    Args:
        length: slots of the longest segment.
        mask_G11S: of the slots behind a segment's end, float. None: there are none.
        row_Gn: the rows of each segment, flat [G * n]; padded with any.
        place_B: for each segment in turn that rows have, where each row's results are in the flat
            [G * n], and what is added to their log-sum-exp [B, 1, 1]: -inf where a row has none.
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
        """Hold exactly these segments, at least one; False: they would take too many bytes."""
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
            if place < len(self._segments):  # the last one takes its place
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
        """Which rows read which of the segments that are held."""
        place_of = {segment: place for place, segment in enumerate(self._segments)}
        readers: list[list[int]] = [[] for _ in self._segments]
        where: list[list[tuple[int, int]]] = []  # of each row: its segments and its places in them
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
        """The attention of rows to their segments and to what `out_BKTD` and `lse_BKT` are of."""
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

    The function behind scaled_dot_product_attention on a CPU, which does not return the second.
    """
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=mask_B1TS
    )
    return out, lse
