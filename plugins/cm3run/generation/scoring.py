"""Log-probabilities of the tokens of rollouts, with gradients: one forward by teacher forcing.

All guidance streams of many rollouts go through the decoder as padded rows, longest first; the head
runs at the positions that predict a token, over the ids that are legal there, in chunks of tokens
whose logits are computed again in the backward pass: never are all logits in memory. What comes out is
what the engine records when it samples the same tokens, computed in another way.

Legend: B rollouts, N tokens of all rollouts, n of them in a chunk, T tokens fed, G guidance streams, S
stream rows, E model dimension, R legal ids, U hidden states of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cm3core.errors import GenerationError
from cm3core.interfaces.sampler import share_draws
from cm3run.generation.rollouts import TokenLogProbabilities
from cm3run.generation.sampling import reads_stream, stream_weights
from cm3run.generation.teacher_forcing import ForcedRow, check_context, forced_row, padded

if TYPE_CHECKING:
    from cm3core.document import BoolArray
    from cm3core.interfaces.decoder import Decoder
    from cm3core.interfaces.sampler import PromptVariant, Sampler, SamplingPlan
    from cm3core.sequence.grammar import LegalIds
    from cm3core.sequence.serialize import Serializer
    from cm3core.vocab import Vocabulary
    from cm3run.generation.rollouts import Rollout

#: Maximum bytes of float32 logits in memory at once, all streams together.
CHUNK_BYTES = 32 << 20

#: A function that calls another one, now or again in the backward pass.
_Call: TypeAlias = Callable[..., "Tensor | tuple[Tensor, Tensor]"]


@dataclass(frozen=True, eq=False)
class _Token:
    """A token of a rollout.

    Args:
        hidden: for each stream, the index of the hidden state that predicts it; -1: none is needed.
        weights: of the streams.
        token: id of the vocabulary.
        kept: the ids that the filters kept when it was sampled, packed. None: the filters decide.
    """

    hidden: list[int]
    weights: npt.NDArray[np.float32]
    plan: SamplingPlan
    legal: LegalIds
    token: int
    kept: npt.NDArray[np.uint8] | None


class Scoring:
    """Scores rollouts under a decoder's present weights.

    Args:
        decoder, serializer, vocabulary, max_text_tokens: see `Policy`.
        max_tokens: maximum tokens of one forward, padding included.
        recompute: compute each forward again in the backward pass, instead of keeping its activations.
    """

    def __init__(
        self,
        decoder: Decoder,
        serializer: Serializer,
        vocabulary: Vocabulary,
        *,
        max_text_tokens: int | None,
        max_tokens: int,
        recompute: bool = False,
    ) -> None:
        self.decoder, self.serializer, self.vocabulary = decoder, serializer, vocabulary
        self.max_text_tokens, self.max_tokens, self.recompute = (
            max_text_tokens,
            max_tokens,
            recompute,
        )
        self._device = decoder.head_weight().device

    def scores(self, rollouts: Sequence[Rollout], *, use_support: bool) -> TokenLogProbabilities:
        """Log-probabilities of the rollouts' tokens; `use_support`: see `Policy.score`."""
        streams = [self._rows(place, one) for place, one in enumerate(rollouts)]
        hidden_UE, first = self._hidden_states(
            [row for rows in streams for row in rows if row is not None]
        )
        tokens: list[_Token] = []
        samplers: list[Sampler] = []
        for one, rows in zip(rollouts, streams, strict=True):
            tokens += self._tokens(one, rows, first, use_support=use_support)
            samplers += [one.sampler] * len(one.tokens)
        parts: list[tuple[list[int], Tensor, Tensor]] = []
        for index, sampler, ids in _groups(tokens, samplers):
            step = max(1, CHUNK_BYTES // (4 * len(ids) * max(len(tokens[i].hidden) for i in index)))
            for start in range(0, len(index), step):
                some = index[start : start + step]
                raw_n, policy_n = self._chunk(hidden_UE, [tokens[i] for i in some], sampler, ids)
                parts.append((some, raw_n, policy_n))
        order_N = np.argsort(np.concatenate([some for some, _, _ in parts]))
        order = torch.from_numpy(order_N).to(self._device)
        lengths = [len(one.tokens) for one in rollouts]
        return TokenLogProbabilities.stacked(
            torch.cat([raw_n for _, raw_n, _ in parts])[order].split(lengths),
            torch.cat([policy_n for _, _, policy_n in parts])[order].split(lengths),
        )

    # ---- rollouts -> rows

    def _rows(self, place: int, rollout: Rollout) -> list[ForcedRow | None]:
        """The row of each guidance stream; None for streams that no plan needs."""
        request, where = rollout.request, f"rollout {place}"
        plans = {name: rollout.sampler.plan(name) for name in ("text", "image")}

        def row(variant: PromptVariant) -> ForcedRow:
            made = forced_row(
                where,
                self.serializer,
                self.vocabulary,
                request.document,
                rollout.contents,
                retrieved=request.retrieved,
                variant=variant,
                max_text_tokens=self.max_text_tokens,
                control=request.control,
            )
            check_context(where, made, self.decoder.context_length)
            return made

        variants = [guidance.variant for guidance in plans["image"].streams]
        modalities = set(row(variants[0]).modalities)
        rows = [
            row(variant) if any(reads_stream(plans[name], stream) for name in modalities) else None
            for stream, variant in enumerate(variants)
        ]
        present = next(row for row in rows if row is not None)
        if present.targets.tolist() != rollout.tokens.tolist():
            raise GenerationError(
                where,
                f"has {len(rollout.tokens)} tokens that are not those of its contents",
                "make it with Policy.sample or Policy.rollout",
            )
        return rows

    def _hidden_states(self, rows: Sequence[ForcedRow]) -> tuple[Tensor, dict[bytes, int]]:
        """Hidden states [U, E] at the places that predict, each distinct row once.

        Also, by a row's key, the index of its first.
        """
        unique = list({row.key: row for row in rows}.values())
        unique.sort(key=lambda row: len(row.tokens), reverse=True)
        first: dict[bytes, int] = {}
        parts: list[Tensor] = []
        number = 0
        for chunk in self._chunks(unique):
            tokens_BT, cells_BT = (
                torch.from_numpy(array).to(self._device)
                for array in padded(chunk, self.vocabulary.pad)
            )
            hidden_BTE = self._call(self.recompute)(self._forward, tokens_BT, cells_BT)
            assert isinstance(hidden_BTE, Tensor)
            for place, row in enumerate(chunk):
                parts.append(hidden_BTE[place, torch.from_numpy(row.places).to(self._device)])
                first[row.key] = number
                number += len(row.places)
        return torch.cat(parts), first

    def _forward(self, tokens_BT: Tensor, cells_BT: Tensor) -> Tensor:
        return self.decoder.hidden_states(tokens_BT, cells_BT=cells_BT)

    def _chunks(self, rows: Sequence[ForcedRow]) -> Iterator[Sequence[ForcedRow]]:
        """Rows, longest first, in chunks of at most `max_tokens` tokens."""
        start = 0
        while start < len(rows):
            stop = start + max(1, self.max_tokens // len(rows[start].tokens))
            yield rows[start:stop]
            start = stop

    def _call(self, again: bool) -> _Call:
        """How a function is called: with `again`, its results are recomputed in the backward pass."""
        if again and torch.is_grad_enabled():
            return lambda function, *given: checkpoint(function, *given, use_reentrant=False)
        return lambda function, *given: function(*given)

    # ---- rows -> tokens

    def _tokens(
        self,
        rollout: Rollout,
        rows: Sequence[ForcedRow | None],
        first: dict[bytes, int],
        *,
        use_support: bool,
    ) -> Iterator[_Token]:
        present = next(row for row in rows if row is not None)
        starts = [-1 if row is None else first[row.key] for row in rows]
        plans = {name: rollout.sampler.plan(name) for name in set(present.modalities)}
        support = rollout.support if use_support else None
        weights: dict[str, npt.NDArray[np.float32]] = {}
        for place, (modality, token) in enumerate(
            zip(present.modalities, present.targets.tolist(), strict=True)
        ):
            plan = plans[modality]
            hidden = [
                start + place if start >= 0 and reads_stream(plan, stream) else -1
                for stream, start in enumerate(starts)
            ]
            position, last = present.progress[place].tolist() if plan.schedule else (0, 0)
            if plan.schedule or modality not in weights:
                weights[modality] = stream_weights(plan, position, last, 1)[0]
            yield _Token(
                hidden,
                weights[modality],
                plan,
                present.legal[place],
                token,
                None if support is None else support[place],
            )

    # ---- tokens -> log-probabilities

    def _chunk(
        self, hidden_UE: Tensor, tokens: Sequence[_Token], sampler: Sampler, ids: range
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of some tokens of one legal slice: raw [n], policy [n]."""
        n, G = len(tokens), max(len(one.hidden) for one in tokens)
        wanted: dict[int, int] = {}
        stream_rows_nG, weights_nG = np.full((n, G), -1), np.zeros((n, G), np.float32)
        for place, one in enumerate(tokens):
            weights_nG[place, : len(one.weights)] = one.weights
            for stream, index in enumerate(one.hidden):
                if index >= 0:
                    stream_rows_nG[place, stream] = wanted.setdefault(index, len(wanted))
        reference_n = stream_rows_nG[np.arange(n), [one.plan.reference for one in tokens]]
        masks = {legal: _mask(legal, ids) for legal in {one.legal for one in tokens}}
        allowed_nR = np.stack([masks[one.legal] for one in tokens])
        kept_nR = None
        if tokens[0].kept is not None:
            kept_nR = np.stack(
                [np.unpackbits(_kept(one), count=len(ids)).astype(np.bool_) for one in tokens]
            )

        def on_device(array: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(array).to(self._device)

        rows = on_device(np.array(list(wanted), np.int64))
        index_n1 = on_device(np.array([one.token - ids.start for one in tokens], np.int64))[:, None]
        streams, weights, reference = map(on_device, (stream_rows_nG, weights_nG, reference_n))
        allowed = None if allowed_nR.all() else on_device(allowed_nR)
        kept = None if kept_nR is None else on_device(kept_nR)
        plans = tuple(one.plan for one in tokens)

        def log_probabilities(hidden_SE: Tensor) -> tuple[Tensor, Tensor]:
            logits_SR = self.decoder.logits(hidden_SE, ids)
            logits_SR = logits_SR.to(torch.promote_types(logits_SR.dtype, torch.float32))
            policy_nR = sampler.draw_log_probabilities(
                logits_SR,
                streams,
                weights,
                plans,
                first_id=ids.start,
                allowed_nR=allowed,
                kept_nR=kept,
            )
            raw_nR = logits_SR[reference]
            if allowed is not None:
                raw_nR = raw_nR.masked_fill(~allowed, float("-inf"))
            raw_n = raw_nR.gather(1, index_n1)[:, 0] - raw_nR.logsumexp(dim=1)
            return raw_n, policy_nR.gather(1, index_n1)[:, 0]

        raw_n, policy_n = self._call(True)(log_probabilities, hidden_UE[rows])
        return raw_n, policy_n


def _groups(
    tokens: Sequence[_Token], samplers: Sequence[Sampler]
) -> Iterator[tuple[list[int], Sampler, range]]:
    """Tokens whose log-probabilities are computed in one call: of one slice of legal ids, whose support
    is recorded for all or for none, and of samplers that share calls. Their indices, a sampler, the
    slice."""
    groups: dict[tuple[range, bool], list[tuple[Sampler, list[int]]]] = {}
    for index, (one, sampler) in enumerate(zip(tokens, samplers, strict=True)):
        key = range(one.legal[0].start, one.legal[-1].stop), one.kept is None
        shared = groups.setdefault(key, [])
        for other, indices in shared:
            if share_draws(other, sampler):
                indices.append(index)
                break
        else:
            shared.append((sampler, [index]))
    for (ids, _), shared in groups.items():
        for sampler, indices in shared:
            yield indices, sampler, ids


def _mask(legal: LegalIds, ids: range) -> BoolArray:
    """The legal ids of a slice, bool [R]."""
    mask = np.zeros(len(ids), np.bool_)
    for own in legal:
        mask[own.start - ids.start : own.stop - ids.start] = True
    return mask


def _kept(token: _Token) -> npt.NDArray[np.uint8]:
    assert token.kept is not None
    return token.kept
