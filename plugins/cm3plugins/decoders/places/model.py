"""`places`: the decoder `cm3leon` on folded sequences, in which a place of a picture is one position.

Sequences stay flat everywhere else: a token is one code. Here the codes of a place are folded into one position before
the blocks, and hidden states are unfolded after them: the hidden state of token t, which predicts token t + 1, is the
output at the position before that of token t + 1. While a place is incomplete, its codes wait in the cache, and a step
that adds one to it runs no block.

Legend: B rows, T tokens, P folded positions, k codes of a place, E model dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3core.errors import GenerationError
from cm3core.interfaces.decoder import InferenceDecoder, KVCache
from cm3kernels import linear_cross_entropy
from cm3plugins.decoders.cm3leon.model import (
    CM3LeonDecoder,
    CM3LeonInference,
    layer_norm,
    truncated_normal_,
)

if TYPE_CHECKING:
    from cm3core.interfaces.attention import AttentionBackend
    from cm3plugins.decoders.cache import CM3LeonCache
    from cm3plugins.decoders.places.settings import PlacesSettings

#: In folded tokens: a slot without a code.
NOTHING = -1


@dataclass(frozen=True, eq=False)
class Folded:
    """Rows of tokens, the codes of a place at one position.

    Args:
        tokens_BPk: int64; `NOTHING` in slots without a token. A token that is no code is in slot 0.
        cells_BP: int64; the place's number in its picture, -1 elsewhere.
        position_BT: int64; the position of each token.
        waits_BT: bool; whether a token's place is incomplete after it.
        slot_BT: int64; the slot of each token.
    """

    tokens_BPk: Tensor
    cells_BP: Tensor
    position_BT: Tensor
    waits_BT: Tensor
    slot_BT: Tensor

    @property
    def predicts_BT(self) -> Tensor:
        """The position whose output predicts the token after each one; -1: the one before the first."""
        return self.position_BT - self.waits_BT.long()


def folded(
    tokens_BT: Tensor, cells_BT: Tensor, depth: int, starts_BT: Tensor | None = None
) -> Folded:
    """Fold rows of tokens.

    A position begins with a token that is no code, with the first code of a place, and with a code that does not
    continue the one before it (a span that was moved).

    Args:
        tokens_BT: int64.
        cells_BT: int64; number of a code in its picture, -1 elsewhere.
        depth: k.
        starts_BT: bool; where a document begins, which no position spans. None: at the first token alone.
    """
    B, _ = tokens_BT.shape
    is_code_BT = cells_BT >= 0
    slot_BT = torch.where(is_code_BT, cells_BT % depth, 0)
    before_BT = torch.cat([cells_BT.new_full((B, 1), -2), cells_BT[:, :-1]], dim=1)
    begins_BT = ~is_code_BT | (slot_BT == 0) | (cells_BT != before_BT + 1)
    if starts_BT is not None:
        begins_BT |= starts_BT
    position_BT = begins_BT.cumsum(1) - 1
    num_positions = int(position_BT[:, -1].max()) + 1
    tokens_BQ = tokens_BT.new_full((B, num_positions * depth), NOTHING)
    tokens_BQ.scatter_(1, position_BT * depth + slot_BT, tokens_BT)
    cells_BP = cells_BT.new_full((B, num_positions), -1)
    cells_BP.scatter_(1, position_BT, torch.where(is_code_BT, cells_BT // depth, -1))
    return Folded(
        tokens_BQ.view(B, num_positions, depth),
        cells_BP,
        position_BT,
        is_code_BT & (slot_BT < depth - 1),
        slot_BT,
    )


class CodesBefore(nn.Module):
    """What the codes before a code in its place add to the state that predicts the place.

    Args:
        width: of the states.
        units: of the hidden layer.
        init_std: of the first layer; the second one starts at zero.
    """

    def __init__(self, width: int, units: int, init_std: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * width, units, bias=False)
        self.fc2 = nn.Linear(units, width, bias=False)
        truncated_normal_(self.fc1.weight, init_std)
        nn.init.zeros_(self.fc2.weight)

    def forward(self, state_nE: Tensor, seen_nE: Tensor) -> Tensor:
        """Returns [n, E] of states and sums of embeddings, both [n, E]."""
        both_n2E = torch.cat([state_nE, layer_norm(seen_nE.to(state_nE.dtype))], dim=-1)
        weight, out = self.fc1.weight.to(both_n2E.dtype), self.fc2.weight.to(both_n2E.dtype)
        return F.linear(F.gelu(F.linear(both_n2E, weight)), out)


class PlacesDecoder(CM3LeonDecoder):
    """The decoder of `PlacesConfig`.

    Args:
        config: sizes and options.
        vocab_size: number of ids.
        attention: attention backend.
        places: (rows, columns) of places of a picture.
        slots: ids of each slot, whose loss covers them alone; or none.
    """

    def __init__(
        self,
        config: PlacesSettings,
        vocab_size: int,
        attention: AttentionBackend,
        places: tuple[int, int],
        slots: tuple[range, ...] = (),
    ) -> None:
        super().__init__(config, vocab_size, attention, places)
        self.depth, self.slots = config.codes_per_place, slots
        self.place: CodesBefore | None = None
        if config.place_units:
            self.place = CodesBefore(config.d_model, config.place_units, config.init_std)

    def embed_ids(self, tokens_BT: Tensor) -> Tensor:
        """The embedding of each token; of folded tokens [B, P, k] the sum of a position's."""
        own = super().embed_ids(tokens_BT.clamp(min=0))
        if tokens_BT.ndim == 2:
            return own
        return (own * (tokens_BT != NOTHING)[..., None].to(own.dtype)).sum(2)

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cells_BT: Tensor | None = None,
        kv_start_BT: Tensor | None = None,
    ) -> Tensor:
        """See `Decoder.hidden_states`. Positions are counted again after folding."""
        if cells_BT is None or self.depth == 1:
            return super().hidden_states(
                tokens_BT, positions_BT=positions_BT, cells_BT=cells_BT, kv_start_BT=kv_start_BT
            )
        B, T = tokens_BT.shape
        number_T = torch.arange(T, device=tokens_BT.device)
        start_BT = torch.zeros_like(tokens_BT) if kv_start_BT is None else kv_start_BT
        fold = folded(tokens_BT, cells_BT.expand(B, T), self.depth, number_T == start_BT)
        # where positions of the row begin: 0 where they are counted from its document's start
        first_BT = start_BT - number_T + (number_T if positions_BT is None else positions_BT)
        starts_BT = fold.position_BT.gather(1, start_BT)
        number_P = torch.arange(fold.cells_BP.shape[1], device=tokens_BT.device)
        # positions that no token is at, of shorter rows, see themselves alone
        start_BP = number_P.repeat(B, 1).scatter_(1, fold.position_BT, starts_BT)
        first_BP = torch.zeros_like(start_BP).scatter_(1, fold.position_BT, first_BT.expand(B, T))
        out_BPE = super().hidden_states(
            fold.tokens_BPk,
            positions_BT=number_P - start_BP + first_BP,
            cells_BT=fold.cells_BP,
            kv_start_BT=None if kv_start_BT is None else start_BP,
        )
        # before the first place of a document there is nothing
        own_BTE = _at(out_BPE, torch.where(fold.predicts_BT < starts_BT, -1, fold.predicts_BT))
        return self.after_codes(own_BTE, fold)

    def after_codes(self, own_BTE: Tensor, fold: Folded, index_BT: Tensor | None = None) -> Tensor:
        """States of tokens that see the codes before them in their place, too.

        Args:
            own_BTE: the states that predict their places.
            fold: the tokens' rows, folded.
            index_BT: which of the rows' tokens these are. None: all.
        """
        if self.place is None:
            return own_BTE
        waits_BT = fold.waits_BT if index_BT is None else fold.waits_BT.gather(1, index_BT)
        row_n, token_n = waits_BT.nonzero(as_tuple=True)
        if not len(row_n):
            return own_BTE
        index_n = token_n if index_BT is None else index_BT[row_n, token_n]
        codes_nk = fold.tokens_BPk[row_n, fold.position_BT[row_n, index_n]]
        slot_n = fold.slot_BT[row_n, index_n]
        later_nk = torch.arange(self.depth, device=slot_n.device) > slot_n[:, None]
        seen_nE = self.embed_ids(codes_nk.masked_fill(later_nk, NOTHING)[:, None])[:, 0]
        own_BTE = own_BTE.to(torch.promote_types(own_BTE.dtype, seen_nE.dtype))
        added_nE = self.place(own_BTE[row_n, token_n], seen_nE)
        return own_BTE.index_put((row_n, token_n), added_nE.to(own_BTE.dtype), accumulate=True)

    def loss_sums(
        self,
        hidden_NE: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        groups_N: Tensor,
        *,
        num_groups: int = 4,
        z_loss: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        if not self.slots:
            return super().loss_sums(
                hidden_NE, targets_N, weights_N, groups_N, num_groups=num_groups, z_loss=z_loss
            )
        head_VE, first, last = self.head_weight(), self.slots[0].start, self.slots[-1].stop
        is_code_N = (targets_N >= first) & (targets_N < last)
        others_VE = torch.cat([head_VE[:first], head_VE[last:]])
        places_N = torch.where(targets_N < last, targets_N, targets_N - (last - first))
        parts = [(~is_code_N, others_VE, places_N)]
        for slot in self.slots:
            is_own_N = (targets_N >= slot.start) & (targets_N < slot.stop)
            parts.append((is_own_N, head_VE[slot.start : slot.stop], targets_N - slot.start))
        found = [
            linear_cross_entropy(
                hidden_NE[chosen_N],
                rows_VE,
                targets[chosen_N],
                weights_N[chosen_N],
                groups_N[chosen_N],
                num_groups=num_groups,
                z_loss=z_loss,
            )
            for chosen_N, rows_VE, targets in parts
        ]
        losses, sums = zip(*found, strict=True)
        return torch.stack(losses).sum(), torch.stack(sums).sum(0)

    def arranged(self, precision: str) -> InferenceDecoder:  # type: ignore[override]  # the engine's own kind
        return PlacesInference(self, CM3LeonInference(self, precision))


def _at(out_BPE: Tensor, position_BT: Tensor) -> Tensor:
    """Rows [B, T, E] of outputs; zeros at position -1."""
    own_BTE = out_BPE.gather(
        1, position_BT.clamp(min=0)[..., None].expand(-1, -1, out_BPE.shape[2])
    )
    return own_BTE * (position_BT >= 0)[..., None].to(own_BTE.dtype)


@dataclass
class Waiting:
    """What a row has read of an incomplete place.

    Args:
        tokens, cells: its codes, at most k - 1.
    """

    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)


class PlacesCache(KVCache):
    """The cache of the folded sequence, and what each row has read of an incomplete place.

    Args:
        inner: keys and values of complete places and of other tokens.
        num_rows: of the cache.
        last_BE: outputs at each row's last position that is held.
    """

    def __init__(self, inner: KVCache, num_rows: int, last_BE: Tensor) -> None:
        self.inner, self.last_BE = inner, last_BE
        self.waiting = [Waiting() for _ in range(num_rows)]
        self._length_B = torch.zeros(num_rows, dtype=torch.int64, device=last_BE.device)
        #: Of the chunk that was read last: its folded rows with what waited before, their outputs, and its first token.
        self.read: tuple[Folded, Tensor | None, Tensor, Tensor, list[int]] | None = None

    @property
    def length_B(self) -> Tensor:
        """Tokens that each row holds, those of an incomplete place included."""
        return self._length_B

    def select(self, rows: Sequence[int]) -> None:
        """Keep rows, in this order."""
        self.inner.select(rows)
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.last_BE.device)
        self.last_BE, self._length_B = self.last_BE[index], self._length_B[index]
        kept = [self.waiting[row] for row in rows]
        self.waiting = [Waiting(list(one.tokens), list(one.cells)) for one in kept]

    def join(self, other: KVCache) -> None:
        """Append the rows of another one."""
        assert isinstance(other, PlacesCache)
        self.inner.join(other.inner)
        self.last_BE = torch.cat([self.last_BE, other.last_BE])
        self._length_B = torch.cat([self._length_B, other._length_B])
        self.waiting += other.waiting

    def reserve(self, more_B: Sequence[int]) -> None:
        """Make room for so many tokens; places take less."""
        # a place that stays incomplete takes a position, too
        waiting = (bool(one.tokens) for one in self.waiting)
        self.inner.reserve([more + one for more, one in zip(more_B, waiting, strict=True)])

    def advance(self, count_B: Sequence[int]) -> None:
        """Count tokens of the chunk that was read last."""
        if self.read is None or any(
            count > self.read[2].shape[1] - start
            for count, start in zip(count_B, self.read[4], strict=True)
        ):
            raise GenerationError(
                "cache",
                f"was to count {list(count_B)} tokens that were not read",
                "read them first",
            )
        fold, out_BPE, tokens_BT, cells_BT, first = self.read
        last_B = [start + count - 1 for start, count in zip(first, count_B, strict=True)]
        held = [
            int(fold.position_BT[row, last]) + (not bool(fold.waits_BT[row, last])) if count else 0
            for row, (last, count) in enumerate(zip(last_B, count_B, strict=True))
        ]
        if any(held):
            self.inner.advance(held)
        for row, (last, count) in enumerate(zip(last_B, count_B, strict=True)):
            if not count:
                continue
            own_T = fold.position_BT[row, : last + 1] >= held[row]  # those of an incomplete place
            self.waiting[row] = Waiting(
                tokens_BT[row, : last + 1][own_T].tolist(),
                cells_BT[row, : last + 1][own_T].tolist(),
            )
            if held[row]:
                assert out_BPE is not None
                self.last_BE[row] = out_BPE[row, held[row] - 1]
        self.read = None
        self._length_B += torch.tensor(list(count_B), device=self._length_B.device)


class PlacesInference(InferenceDecoder):
    """`PlacesDecoder` for generation.

    Args:
        decoder: the decoder that owns the weights.
        inner: reads folded positions.
    """

    def __init__(self, decoder: PlacesDecoder, inner: CM3LeonInference) -> None:
        self.decoder, self.inner, self.depth = decoder, inner, decoder.depth
        self.context_length, self.vocab_size = inner.context_length, inner.vocab_size

    @property
    def device(self) -> torch.device:
        """The inner decoder's."""
        return self.inner.device

    def allocate_cache(self, num_rows: int, max_length: int) -> PlacesCache:
        """An empty cache of rows of at most so many tokens."""
        inner: CM3LeonCache = self.inner.allocate_cache(num_rows, max_length)
        width = self.inner.decoder.config.d_model
        return PlacesCache(inner, num_rows, torch.zeros(num_rows, width, device=self.device))

    def cache_bytes(self, num_tokens: int) -> int:
        """An upper bound: each token a position of its own."""
        return self.inner.cache_bytes(num_tokens)

    def weight_bytes(self) -> int | None:
        """The inner decoder's."""
        return self.inner.weight_bytes()

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        cache: KVCache,
        positions_BT: Tensor | None = None,
        cells_BT: Tensor | None = None,
    ) -> Tensor:
        """See `InferenceDecoder.hidden_states`. Positions are those of the folded sequence, and can't be given."""
        assert isinstance(cache, PlacesCache)
        assert positions_BT is None, "positions follow from the folded sequence"
        B, T = tokens_BT.shape
        device = tokens_BT.device
        if cells_BT is None:
            cells_BT = torch.full_like(tokens_BT, -1)
        first = [len(one.tokens) for one in cache.waiting]
        longest = max(first)
        whole_BT = torch.zeros(B, longest + T, dtype=torch.int64, device=device)
        whole_cells_BT = torch.full_like(whole_BT, -1)
        for row, one in enumerate(cache.waiting):
            start = first[row]
            if start:
                whole_BT[row, :start] = torch.tensor(one.tokens, device=device)
                whole_cells_BT[row, :start] = torch.tensor(one.cells, device=device)
            whole_BT[row, start : start + T] = tokens_BT[row]
            whole_cells_BT[row, start : start + T] = cells_BT[row]
        fold = folded(whole_BT, whole_cells_BT, self.depth)
        place_BT = torch.tensor(first, device=device)[:, None] + torch.arange(T, device=device)
        predicts_BT = fold.predicts_BT.gather(1, place_BT)
        out_BPE: Tensor | None = None
        # a copy, because `advance` writes to it in place
        before_BTE = cache.last_BE[:, None].repeat(1, T, 1)
        if bool((predicts_BT >= 0).any()):
            out_BPE = self.inner.hidden_states(
                fold.tokens_BPk, cache=cache.inner, cells_BT=fold.cells_BP
            )
            cache.last_BE = cache.last_BE.to(out_BPE.dtype)
            own_BTE = _at(out_BPE, predicts_BT)
            before_BTE = torch.where((predicts_BT >= 0)[..., None], own_BTE, before_BTE.to(own_BTE))
        cache.read = fold, out_BPE, whole_BT, whole_cells_BT, first
        return self.decoder.after_codes(before_BTE, fold, place_BT)

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        """The inner decoder's."""
        return self.inner.logits(hidden, ids)
