"""A decoder as a policy: sample documents, and score them later under changed weights.

    rollouts = policy.sample(requests, num=8)      8 candidates of each request, their tokens recorded
    old = recorded(rollouts)                       log-probabilities at sampling
    new = policy.score(rollouts)                   the same under the current weights, with gradients
    ratio_BP = (new.policy_BP - old.policy_BP).exp()

Both have the same form, and are equal while the weights are unchanged: `score` computes in one forward pass what the
engine samples token by token with a cache. Sources: PPO (Schulman et al. 2017, arXiv:1707.06347) for the ratio, GRPO
(Shao et al. 2024, arXiv:2402.03300) for groups that share a prompt.

For scoring, all guidance streams of many rollouts go through the decoder as padded rows, longest first. The head runs
at the positions that predict a token, over the ids that are legal there. It runs in chunks whose logits are recomputed
in the backward pass, so all logits are never in memory at once.

Legend: B rollouts, P tokens of the longest, N tokens of all rollouts, n of them in a chunk, T tokens fed, G guidance
streams, S stream rows, E model dimension, R legal ids, U hidden states of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from cm3core.arguments import Range, checked
from cm3core.document import has_holes
from cm3core.errors import GenerationError
from cm3core.interfaces.sampler import (
    Sampler,
    StatefulSampler,
    share_draws,
    tells_log_probabilities,
)
from cm3core.sequence.segments import modality_of
from cm3run.generation.engine import (
    Completion,
    Engine,
    EngineOptions,
    Progress,
    Request,
    candidates,
)
from cm3run.generation.likelihood import MAX_TOKENS, ForcedRow, check_context, forced_row, padded
from cm3run.generation.sampling import reads_stream, stream_weights

if TYPE_CHECKING:
    from cm3core.document import BoolArray, Document, IntArray
    from cm3core.interfaces.decoder import Decoder
    from cm3core.interfaces.sampler import PromptVariant, SamplingPlan
    from cm3core.sequence.grammar import LegalIds
    from cm3core.sequence.serialize import Serializer
    from cm3core.vocab import Vocabulary


@dataclass(frozen=True, eq=False)
class Rollout:
    """A document with its holes filled, to be scored by a policy.

    Args:
        request: its seed, and its document with every size decided.
        document: the same with each hole filled.
        contents: int32 vocabulary ids; each hole's tokens, without end tokens.
        sampler: the sampler that draws such documents.
        tokens: int32 [P]; the freely chosen tokens, in order: contents, and end tokens of texts that could have
            gone on.
        raw, policy: float32 [P], recorded at sampling, see `TokenLogProbabilities`. None: sampled elsewhere.
        support: for each token, the ids of its legal slice that passed the filters: `packbits` of bool
            [R]. None: not recorded.
    """

    request: Request
    document: Document
    contents: tuple[IntArray, ...]
    sampler: Sampler
    tokens: IntArray = field(repr=False)
    raw: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    policy: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    support: Sequence[npt.NDArray[np.uint8]] | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class TokenLogProbabilities:
    """Log-probabilities of the tokens of B rollouts, in nats, padded on the right with zeros.

    Args:
        raw_BP: float32; under the model: the conditional stream alone, at temperature 1, over the legal ids.
            Their sum is `Completion.log_probability`.
        policy_BP: float32; under the sampling policy: guidance, temperature and filters, over the legal ids.
            -inf for a token that the filters reject.
        mask_BP: bool; true where there is a token.
    """

    raw_BP: Tensor
    policy_BP: Tensor
    mask_BP: Tensor

    @cached_property
    def num_tokens_B(self) -> Tensor:
        """Number of tokens of each rollout, int64 [B]."""
        return self.mask_BP.sum(dim=1)

    @staticmethod
    def stacked(raw: Sequence[Tensor], policy: Sequence[Tensor]) -> TokenLogProbabilities:
        """Stack the log-probabilities of rollouts of different lengths, each [P]."""
        lengths_B = torch.tensor([len(own) for own in raw], device=raw[0].device)
        place_P = torch.arange(int(lengths_B.max()), device=raw[0].device)
        return TokenLogProbabilities(
            pad_sequence(list(raw), batch_first=True),
            pad_sequence(list(policy), batch_first=True),
            place_P < lengths_B[:, None],
        )


@checked(GenerationError)
def recorded(
    rollouts: Sequence[Rollout], device: torch.device | str = "cpu"
) -> TokenLogProbabilities:
    """The log-probabilities recorded at sampling, under the weights of that time.

    Args:
        rollouts: at least one, all made by `Policy.sample`.
        device: of the tensors.

    Raises:
        GenerationError: there are no rollouts, or one was not sampled here.
    """
    check_some(rollouts)
    raw: list[Tensor] = []
    policy: list[Tensor] = []
    for place, one in enumerate(rollouts):
        if one.raw is None or one.policy is None:
            raise GenerationError(
                f"rollout {place}",
                "was not sampled here, so it has no recorded log-probabilities",
                "compute its log-probabilities with Policy.score",
            )
        raw.append(torch.from_numpy(one.raw).to(device))
        policy.append(torch.from_numpy(one.policy).to(device))
    return TokenLogProbabilities.stacked(raw, policy)


def check_some(rollouts: Sequence[Rollout]) -> None:
    """Raise `GenerationError` for an empty sequence, which would give no tensors to return."""
    if not rollouts:
        raise GenerationError("rollouts", "are empty", "give at least one")


#: Maximum bytes of float32 logits in memory at once, all streams together.
CHUNK_BYTES = 32 << 20

#: A function that calls another one; its result may be recomputed in the backward pass.
_Call: TypeAlias = Callable[..., "Tensor | tuple[Tensor, Tensor]"]


@dataclass(frozen=True, eq=False)
class _Token:
    """A token of a rollout.

    Args:
        hidden: for each stream, the index of the hidden state that predicts it; -1: not needed.
        weights: of the streams.
        token: id of the vocabulary.
        kept: the ids that passed the filters when it was sampled, packed. None: apply the filters now.
    """

    hidden: list[int]
    weights: npt.NDArray[np.float32]
    plan: SamplingPlan
    legal: LegalIds
    token: int
    kept: npt.NDArray[np.uint8] | None


class Scoring:
    """Scores rollouts under a decoder's current weights.

    Args:
        decoder, serializer, vocabulary, max_text_tokens: see `Policy`.
        max_tokens: maximum tokens of one forward, padding included.
        recompute: recompute each forward pass in the backward pass instead of keeping its activations.
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
                request,
                rollout.contents,
                variant=variant,
                max_text_tokens=self.max_text_tokens,
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
                f"has {len(rollout.tokens)} tokens that don't match its contents",
                "make it with Policy.sample or Policy.rollout",
            )
        return rows

    def _hidden_states(self, rows: Sequence[ForcedRow]) -> tuple[Tensor, dict[bytes, int]]:
        """Hidden states [U, E] at the predicting positions, computed once for each distinct row.

        Also returns the index of each row's first state, by the row's key.
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
        """Wrapper that calls a function; with `again`, its results are recomputed in the backward pass."""
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
    """Group tokens whose log-probabilities can be computed in one call: they share a slice of legal ids, all or none
    have recorded support, and their samplers share calls. Yields their indices, a sampler and the slice."""
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


#: Documents in one group: all of them are kept in memory, with every token's log-probabilities.
GroupSize = Annotated[int, Range(1, 100_000)]


class Policy:
    """The distribution of documents that a decoder and a sampler define.

    Args:
        decoder: on any device; both `sample` and `score` use its current weights. Put it into evaluation mode
            (`eval()`): dropout would make the two differ.
        serializer: documents -> prompts.
        sampler: for requests that name none. It must support `Sampler.draw_log_probabilities` and keep no state
            between draws.
        vocabulary: the decoder's.
        max_text_tokens, max_rows, num_threads, precision: see `Engine`. With "bf16" or "int8", sampling differs
            from scoring by the rounding of the weights.
        max_tokens: maximum tokens of one forward pass of `score`, padding included.
    """

    def __init__(
        self,
        decoder: Decoder,
        serializer: Serializer,
        sampler: Sampler,
        vocabulary: Vocabulary,
        *,
        max_text_tokens: int | None = None,
        max_rows: int = 64,
        num_threads: int | None = None,
        precision: str = "auto",
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self.decoder, self.serializer, self.sampler = decoder, serializer, sampler
        self.vocabulary, self.max_text_tokens = vocabulary, max_text_tokens
        self.max_rows, self.num_threads, self.precision = max_rows, num_threads, precision
        self.max_tokens = max_tokens
        self._engine: tuple[int, Engine] | None = None  # with the version of its weights

    @property
    def engine(self) -> Engine:
        """The engine for the decoder's current weights; rebuilt when they change."""
        version = sum(parameter._version for parameter in self.decoder.module.parameters())
        if self._engine is None or self._engine[0] != version:
            engine = Engine(
                self.decoder,
                self.serializer,
                self.sampler,
                self.vocabulary,
                EngineOptions(
                    max_text_tokens=self.max_text_tokens,
                    max_rows=self.max_rows,
                    num_threads=self.num_threads,
                    precision=self.precision,
                ),
            )
            self._engine = version, engine
        return self._engine[1]

    @checked(GenerationError)
    def sample(
        self,
        requests: Sequence[Request],
        num: GroupSize = 1,
        *,
        keep_support: bool = True,
        progress: Progress | None = None,
    ) -> list[Rollout]:
        """Sample a group of documents for each request.

        A group's prompt is prefilled once, and its rows share the keys and values (see `KVCache.select`). Equal
        requests give equal rollouts while the weights are unchanged.

        Args:
            requests: documents with holes, pictures as `Codes`; different kinds may be mixed.
            num: documents for each request, 1 or more; each has its own seed (`candidate_seed`).
            keep_support: record which ids passed the filters at each token, one bit per id: 1 KiB per token for
                8,192 codes. Without it `score` applies the filters again.
            progress: see `Engine.complete`.

        Returns:
            `num` rollouts for each request, in order.

        Raises:
            GenerationError: a sampler has state or can't compute its log-probabilities, `num` is less
                than 1, or a request can't be completed.
            DocumentError: a document can't be serialised.
        """
        asked = [
            replace(one, sampler=self._checked(one.sampler))
            for request in requests
            for one in candidates(request, num, self.sampler)
        ]
        _check_penalties(asked)
        completions = self.engine.complete(asked, progress=progress, record=True)
        return [
            _rollout(request, completion, keep_support=keep_support)
            for request, completion in zip(asked, completions, strict=True)
        ]

    @checked(GenerationError)
    def rollout(
        self,
        request: Request,
        filled: Document,
        contents: Sequence[IntArray] | None = None,
    ) -> Rollout:
        """Make a rollout of a document that was not sampled here: real data, or another model's output.

        Args:
            request: with the document's holes, and the sampler to score it with.
            filled: the same document with its holes filled, pictures as `Codes`.
            contents: int32; each hole's tokens, without end tokens. None: taken from `filled`, with its texts
                encoded again.

        Raises:
            GenerationError: `filled` isn't the document with its holes filled, or a sampler can't be
                scored.
            DocumentError: a document can't be serialised.
        """
        sampler = self._checked(request.sampler)
        if contents is None:
            contents = self.serializer.contents_of(request.document, filled)
        row = forced_row(
            "document",
            self.serializer,
            request,
            contents,
            variant=sampler.plan("image").streams[0].variant,
            max_text_tokens=self.max_text_tokens,
        )
        tokens = row.targets.astype(np.int32)
        return Rollout(replace(request, sampler=sampler), filled, tuple(contents), sampler, tokens)

    @checked(GenerationError)
    def score(
        self,
        rollouts: Sequence[Rollout],
        *,
        use_support: bool = True,
        recompute: bool = False,
    ) -> TokenLogProbabilities:
        """Compute the log-probabilities of the rollouts' tokens under the current weights.

        Gradients flow to the decoder's weights through all guidance streams, unless they are disabled
        (`torch.no_grad()`). Logits are computed in chunks and again in the backward pass; the activations of all
        rollouts of the call are kept unless `recompute` is set. To use less memory, score a part of the rollouts at a
        time and accumulate gradients.

        Args:
            rollouts: at least one, from `sample` or `rollout`, of any kinds and samplers.
            use_support: where recorded, use the ids that passed the filters at sampling instead of filtering again
                under the current weights. The policy then keeps the same support, and no token of a rollout becomes
                impossible.
            recompute: keep the activations of at most `max_tokens` tokens, and recompute each forward pass in the
                backward pass.

        Returns:
            float32 (float64 for a float64 decoder) on the decoder's device.

        Raises:
            GenerationError: there are no rollouts; a sampler has state or can't compute its log-probabilities; the
                contents don't fit the holes, or the tokens exceed the decoder's context.
            DocumentError: a document can't be serialised.
        """
        check_some(rollouts)
        for one in rollouts:
            self._checked(one.sampler)
        _check_penalties([replace(one.request, sampler=one.sampler) for one in rollouts])
        scoring = Scoring(
            self.decoder,
            self.serializer,
            self.vocabulary,
            max_text_tokens=self.max_text_tokens,
            max_tokens=self.max_tokens,
            recompute=recompute,
        )
        return scoring.scores(rollouts, use_support=use_support)

    def _checked(self, sampler: Sampler | None) -> Sampler:
        """The sampler, or the policy's own; raises if its draws can't be scored."""
        sampler = self.sampler if sampler is None else sampler
        why = None
        if isinstance(sampler, StatefulSampler):
            why = (
                "keeps state from draw to draw, so that its draws can't be replayed token by token"
            )
        elif not tells_log_probabilities(sampler):
            why = "can't compute the log-probabilities of its draws"
        if why is not None:
            raise GenerationError(
                f"sampler {type(sampler).__name__}",
                why,
                "use a sampler without state that defines draw_log_probabilities",
            )
        return sampler


def _check_penalties(requests: Sequence[Request]) -> None:
    """Raise for a repetition penalty, which a single forward pass over all tokens can't replay."""
    for request in requests:
        assert request.sampler is not None
        kinds = {modality_of(segment) for segment in request.document if has_holes([segment])}
        if any(request.sampler.plan(kind).repetition_penalty != 1 for kind in sorted(kinds)):
            raise GenerationError(
                f"sampler {type(request.sampler).__name__}",
                "penalises repeated tokens, which scoring can't replay",
                "set its repetition_penalty to 1",
            )


def _rollout(request: Request, completion: Completion, *, keep_support: bool) -> Rollout:
    trace = completion.trace
    assert trace is not None
    assert request.sampler is not None
    return Rollout(
        replace(request, document=trace.document),
        completion.document,
        trace.contents,
        request.sampler,
        np.concatenate(trace.tokens),
        np.concatenate(trace.raw).astype(np.float32),
        np.concatenate(trace.policy).astype(np.float32),
        tuple(trace.support) if keep_support else None,
    )
