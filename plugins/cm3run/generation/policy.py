"""A decoder as a policy: sample documents, and score them under weights that have changed since.

    rollouts = policy.sample(requests, num=8)      8 candidates of each request, their tokens recorded
    old = recorded(rollouts)                       log-probabilities at sampling
    new = policy.score(rollouts)                   the same under the present weights, with gradients
    ratio_BP = (new.policy_BP - old.policy_BP).exp()

Both have the same form, and are equal as long as the weights are: what the engine samples by a cache,
token after token, `score` computes in one forward. Sources: PPO (Schulman et al. 2017,
arXiv:1707.06347) for the ratio, GRPO (Shao et al. 2024, arXiv:2402.03300) for groups of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import numpy as np

from cm3core.arguments import Range, checked
from cm3core.document import has_holes
from cm3core.errors import GenerationError
from cm3core.interfaces.sampler import Sampler, StatefulSampler, tells_log_probabilities
from cm3core.sequence.segments import modality_of
from cm3run.generation.engine import Completion, Engine, Progress, Request, candidates
from cm3run.generation.likelihood import MAX_TOKENS
from cm3run.generation.rollouts import Rollout, TokenLogProbabilities, check_some
from cm3run.generation.scoring import Scoring
from cm3run.generation.teacher_forcing import forced_row

if TYPE_CHECKING:
    from cm3core.document import Document, IntArray
    from cm3core.interfaces.decoder import Decoder
    from cm3core.sequence.serialize import Serializer
    from cm3core.vocab import Vocabulary

#: Documents of one group: all are kept, with every token's log-probabilities.
GroupSize = Annotated[int, Range(1, 100_000)]


class Policy:
    """The distribution of documents that a decoder and a sampler define.

    Args:
        decoder: on any device; its present weights are the policy, in `sample` as in `score`. Put it
            into evaluation mode (`eval()`): dropout would make the two differ.
        serializer: documents -> prompts.
        sampler: for requests that name none. It must tell its log-probabilities
            (`Sampler.draw_log_probabilities`) and keep no state between draws.
        vocabulary: the decoder's.
        max_text_tokens, max_rows, num_threads, precision: see `Engine`. With "bf16" or "int8" sampling
            differs from scoring by the rounding of its weights.
        max_tokens: maximum tokens of one forward of `score`, padding included.
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
        """The engine of the decoder's present weights; made again when these have changed."""
        version = sum(parameter._version for parameter in self.decoder.module.parameters())
        if self._engine is None or self._engine[0] != version:
            engine = Engine(
                self.decoder,
                self.serializer,
                self.sampler,
                self.vocabulary,
                max_text_tokens=self.max_text_tokens,
                max_rows=self.max_rows,
                num_threads=self.num_threads,
                precision=self.precision,
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

        A group's prompt is read once, and its rows share the keys and values (see
        `KVCache.select`). Equal requests give equal rollouts as long as the weights are equal.

        Args:
            requests: documents with holes, pictures as `Codes`; of any kinds in one batch.
            num: documents for each request, 1 or more; each has its own seed (`candidate_seed`).
            keep_support: record which ids the filters kept at each token, one bit an id: 1 KiB a token
                of 8,192 codes. Without it `score` decides that anew.
            progress: see `Engine.complete`.

        Returns:
            `num` rollouts for each request, in order.

        Raises:
            GenerationError: a sampler has state or can't tell its log-probabilities, `num` is less
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
        """A document that was not sampled here, to be scored: real data, or another model's.

        Args:
            request: with the document's holes, and the sampler to score it with.
            filled: the same document with its holes filled, pictures as `Codes`.
            contents: int32; each hole's tokens, without end tokens. None: those of `filled`, its
                texts encoded.

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
            self.vocabulary,
            request.document,
            contents,
            retrieved=request.retrieved,
            variant=sampler.plan("image").streams[0].variant,
            max_text_tokens=self.max_text_tokens,
            control=request.control,
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
        """Log-probabilities of the rollouts' tokens under the present weights.

        Gradients flow to the decoder's weights, through all guidance streams, unless torch's are off
        (`torch.no_grad()`). Memory: logits are computed in chunks, and again in the backward pass;
        activations are kept for all rollouts of the call, unless they are recomputed. To have less,
        give a part of the rollouts at a time and accumulate gradients.

        Args:
            rollouts: at least one, of `sample` or `rollout`, of any kinds and samplers.
            use_support: take the ids that the filters kept at sampling, where they were recorded, in
                place of those that they would keep under the present weights: the policy is then
                defined on the same ids as at sampling, and no token of a rollout becomes impossible.
            recompute: keep the activations of no more than `max_tokens` tokens, and compute each
                forward again in the backward pass.

        Returns:
            float32 (float64 for a float64 decoder) on the decoder's device.

        Raises:
            GenerationError: there is no rollout; a sampler has state or can't tell its
                log-probabilities; contents that the holes can't hold, or more tokens than the
                decoder's context.
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
            why = "can't tell the log-probabilities of its draws"
        if why is not None:
            raise GenerationError(
                f"sampler {type(sampler).__name__}",
                why,
                "use a sampler without state that defines draw_log_probabilities",
            )
        return sampler


def _check_penalties(requests: Sequence[Request]) -> None:
    """Raise for a penalty on repeated tokens: a forward pass over all of them knows none."""
    for request in requests:
        assert request.sampler is not None
        kinds = {modality_of(segment) for segment in request.document if has_holes([segment])}
        if any(request.sampler.plan(kind).repetition_penalty != 1 for kind in sorted(kinds)):
            raise GenerationError(
                f"sampler {type(request.sampler).__name__}",
                "makes repeated tokens less likely, which scoring can't replay",
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
