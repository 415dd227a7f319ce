"""Shared by the layers of a forward pass: which query sees which keys, in the form needed by each
implementation, computed once and only on demand.

Legend: B rows, T queries, S keys, M tiles of queries, N tiles of keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Above any token's position, and far enough below int32's maximum for additions.
FAR = 2**30


class AttentionPlan:
    """Query i of row b sees the keys max(kv_start[b, i], 0) <= j <= min(offset[b] + i, S - 1).

    Args:
        num_queries: T.
        num_keys: S.
        kv_start: int32 or int64 [B, T]; None: 0.
        offset: int32 or int64 [B]; None: 0 for all.
    """

    def __init__(
        self,
        num_queries: int,
        num_keys: int,
        kv_start: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> None:
        self.num_queries, self.num_keys, self.kv_start, self.offset = (
            num_queries,
            num_keys,
            kv_start,
            offset,
        )
        self._mask: Tensor | None = None
        self._segments: tuple[int, ...] | None = None
        self._looked_for_segments = False
        self._narrow: dict[str, Tensor] = {}
        self._query_tiles: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @property
    def plain(self) -> bool:
        """Whether this is plain causal attention of whole rows."""
        return self.kv_start is None and self.offset is None

    def mask(self) -> Tensor | None:
        """Bool [B, 1, T, S], True where visible; None for plain causal attention."""
        if self._mask is None and not self.plain:
            self._mask = visible_mask(self.num_queries, self.num_keys, self.kv_start, self.offset)
        return self._mask

    def segments(self) -> tuple[int, ...] | None:
        """Lengths of the documents of all rows, in order (they sum to B * T), if rows are packed documents that
        each see only themselves; otherwise None, also if reading the values would wait for a device or break a
        compiled graph."""
        if not self._looked_for_segments and not torch.compiler.is_compiling():
            self._looked_for_segments = True
            if (
                self.kv_start is not None
                and self.offset is None
                and self.kv_start.device.type == "cpu"
            ):
                self._segments = segments(self.kv_start)
        return self._segments

    def narrow_start(self) -> Tensor | None:
        """`kv_start` as contiguous int32."""
        return self._as_int32("kv_start", self.kv_start)

    def narrow_offset(self) -> Tensor | None:
        """`offset` as contiguous int32."""
        return self._as_int32("offset", self.offset)

    def _as_int32(self, name: str, values: Tensor | None) -> Tensor | None:
        if values is not None and name not in self._narrow:
            self._narrow[name] = values.clamp(-FAR, FAR).to(torch.int32).contiguous()
        return self._narrow.get(name)

    def query_tiles(self, block_q: int, block_k: int) -> tuple[Tensor, Tensor] | None:
        """Return `query_tiles` of this plan; None if every query starts at key 0."""
        start = self.narrow_start()
        if start is None:
            return None
        if (block_q, block_k) not in self._query_tiles:
            self._query_tiles[block_q, block_k] = query_tiles(start, block_q, block_k)
        return self._query_tiles[block_q, block_k]


def visible_mask(
    num_queries: int, num_keys: int, kv_start: Tensor | None, offset: Tensor | None
) -> Tensor:
    """Return bool [B, 1, T, S], which query sees which key; B is 1 without `kv_start` and `offset`."""
    device = (
        kv_start.device if kv_start is not None else offset.device if offset is not None else None
    )
    key_S = torch.arange(num_keys, device=device)
    last_BT = torch.arange(num_queries, device=device)[None]
    if offset is not None:
        last_BT = last_BT + offset[:, None]
    mask_BTS = key_S <= last_BT[..., None]
    if kv_start is not None:
        mask_BTS = mask_BTS & (key_S >= kv_start[..., None])
    return mask_BTS[:, None]


def segments(kv_start_BT: Tensor) -> tuple[int, ...] | None:
    """See `AttentionPlan.segments`. Reads the values, so it needs the CPU."""
    B, T = kv_start_BT.shape
    if B * T == 0:
        return None
    position_T = torch.arange(T)
    start_BT = kv_start_BT.clamp(min=0).to(position_T.dtype)
    opens_BT = start_BT == position_T
    # Packed documents: every query has the same start as the latest query that starts at itself.
    begun_BT = torch.where(opens_BT, position_T, -1).cummax(1).values
    if not torch.equal(begun_BT, start_BT):
        return None
    first = opens_BT.flatten().nonzero().flatten()
    return tuple(torch.diff(first, append=torch.tensor([B * T])).tolist())


def query_tiles(start_BT: Tensor, block_q: int, block_k: int) -> tuple[Tensor, Tensor]:
    """Return, for each tile of keys, the tiles of queries that see any of it: first those that see all of it,
    then the others.

    Args:
        start_BT: int32 [B, T]; there are also T keys.
        block_q: queries per tile.
        block_k: keys per tile; a multiple or a divisor of `block_q`.

    Returns:
        tiles: int32 [B, N, M], each row a permutation of the tiles of queries in that order, ascending
        within each part. counts: int32 [B, N, 2], how many see all of the tile, and how many see any of
        it (including the former). The former have `block_q` queries each. Exact for block_k >= block_q,
        otherwise a superset on the diagonal.
    """
    B, T = start_BT.shape
    device = start_BT.device
    num_m, num_n = -(-T // block_q), -(-T // block_k)
    spare = num_m * block_q - T
    position_T = torch.arange(T, device=device, dtype=torch.int32)
    sees_BT = start_BT <= position_T
    start_BT = torch.where(sees_BT, start_BT, FAR)
    last_BT = torch.where(sees_BT, position_T, -1)
    # Missing queries see nothing, so a ragged tile never counts as seeing all.
    start_BMQ, last_BMQ = (
        pad(x, (0, spare), value=value).view(B, num_m, block_q)
        for x, value in ((start_BT, FAR), (last_BT, -1))
    )
    lowest_BM, highest_BM, last_BM = start_BMQ.amin(2), start_BMQ.amax(2), last_BMQ.amax(2)

    key_N1 = (torch.arange(num_n, device=device, dtype=torch.int32) * block_k)[:, None]
    query_M = torch.arange(num_m, device=device, dtype=torch.int32) * block_q
    some_BNM = (lowest_BM[:, None] < key_N1 + block_k) & (last_BM[:, None] >= key_N1)
    whole_BNM = (highest_BM[:, None] <= key_N1) & (query_M >= key_N1 + block_k - 1)
    rank_BNM = 2 - some_BNM.to(torch.int32) - whole_BNM.to(torch.int32)
    tiles_BNM = rank_BNM.argsort(dim=2, stable=True).to(torch.int32)
    return tiles_BNM, torch.stack([whole_BNM.sum(2), some_BNM.sum(2)], dim=2).to(torch.int32)
