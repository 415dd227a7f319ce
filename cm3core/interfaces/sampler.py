"""Kind `sampler`: logits of the guidance streams -> the next token.

A sampler's plan lists the guidance streams that a request needs (what each one sees of the prompt),
how their logits are mixed, and which filters follow. The engine runs the plans of a mixed batch in
one call of `draw`. Source: CM3leon paper section 3.1; order of filters: mix -> legal ids ->
plausible ids of the reference stream -> temperature -> top-k -> top-p -> min-p -> typical -> draw.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import GenerationError
from cm3core.interfaces.component import ComponentConfig
from cm3core.interfaces.sampler_state import (
    DrawState,
    InitialState,
    RequestStart,
    flat_state,
    stacked,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.sampler_state import DrawState
    from cm3core.vocab import Vocabulary


@dataclass(frozen=True)
class PromptVariant:
    """What a guidance stream sees of the prompt; the default sees everything.

    Args:
        hide_text: "none", "all" (every text of the query document is replaced by one mask sentinel,
            the form that the CM3 objective trains; beside a hole of the same text, by the hole's)
            or "last" (only the last text; the
            image-conditioned stream of editing).
        drop_text: omit the hidden text entirely instead of inserting a sentinel.
        drop_retrieved: omit the retrieved documents.
        replace_text: use this text instead of the query document's (a negative prompt).
        hide_images: hide the query document's pictures that have nothing missing. Adjacent hidden
            segments become one sentinel: with `hide_text` "all" this is the unconditional stream
            of editing.
    """

    hide_text: str = "none"
    drop_text: bool = False
    drop_retrieved: bool = False
    replace_text: str | None = None
    hide_images: bool = False


@dataclass(frozen=True)
class GuidanceStream:
    """One stream and the weight of its logits in the mix."""

    variant: PromptVariant
    weight: float


@dataclass(frozen=True)
class Filters:
    """Filters for the logits after mixing; by default all are off.

    A sampler with its own filter derives a frozen dataclass from this one, with a field whose
    default also switches the filter off.

    Args:
        temperature: > 0 divides the mixed logits; 0 takes the largest (lowest id on a tie).
        top_k, top_p: of the mixed distribution; 0 and 1.0 are off. Ties with the threshold are
            kept; the set is never empty.
        plausible_top_k, plausible_top_p: the same, for the reference stream's distribution at
            temperature 1, before mixing.
        plausible_alpha: CD-K's set: reference probability >= alpha * its k-th largest, k =
            `plausible_k` (paper eq. 3); 0 is off. With k = 1 it is the alpha-max set of contrastive
            decoding (Li et al. 2022).
        plausible_k: see `plausible_alpha`.
        min_p: keep ids with at least this fraction of the most probable id's probability; 0 is off
            (Nguyen et al. 2024).
        typical_p: smallest set of ids with at least this probability whose surprise is nearest to
            the distribution's entropy; 1.0 is off (Meister et al. 2022, locally typical sampling).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    plausible_top_k: int = 0
    plausible_top_p: float = 1.0
    plausible_alpha: float = 0.0
    plausible_k: int = 1
    min_p: float = 0.0
    typical_p: float = 1.0


@dataclass(frozen=True)
class GuidanceSchedule:
    """How much of the guidance applies at each position of a hole: a share m in [0, 1].

    With stream weights w, and the reference stream alone at m = 0, a position's weights are
    (1 - m) * one_hot(reference) + m * w: a guidance scale s becomes 1 + m (s - 1). Progress is 0 at
    a hole's first token and 1 at its last.

    Args:
        start, stop: guidance applies where start <= progress <= stop, 0..1 (an interval;
            Kynkäänniemi et al. 2024, for diffusion).
        ramp: "constant" (m = 1 inside), "up" (m grows from 0 at start to 1 at stop) or "down"
            (falls from 1 to 0).
    """

    start: float = 0.0
    stop: float = 1.0
    ramp: str = "constant"

    def share(self, progress: float) -> float:
        """Return m at `progress` (0..1).

        >>> GuidanceSchedule(0.2, 0.6, "up").share(0.4)
        0.5
        >>> GuidanceSchedule(0.2, 0.6).share(0.7)
        0.0
        """
        if not self.start <= progress <= self.stop:
            return 0.0
        if self.ramp == "constant":
            return 1.0
        inside = (
            (progress - self.start) / (self.stop - self.start) if self.stop > self.start else 1.0
        )
        return round(inside if self.ramp == "up" else 1.0 - inside, 12)


@dataclass(frozen=True)
class SamplingPlan:
    """What a request needs at each position of one modality.

    Args:
        streams: at least one; the mixed logits are the weighted sum of theirs.
        reference: index of the stream whose distribution decides plausibility (the conditional
            one).
        filters: see `Filters`.
        schedule: guidance over the positions of a hole; None: constant. The engine
            applies it.
        repetition_penalty: above 1 lowers the probability of ids that the request has read or drawn, in every
            stream, before mixing, see `cm3run.generation.groups`; 1.0 is off. The engine applies it.
    """

    streams: tuple[GuidanceStream, ...]
    reference: int = 0
    filters: Filters = Filters()
    schedule: GuidanceSchedule | None = None
    repetition_penalty: float = 1.0


@dataclass(kw_only=True)
class SamplerConfig(ComponentConfig):
    """Base of samplers' configs."""

    kind: ClassVar[str] = "sampler"
    #: Whether it is made for editing a picture by an instruction (`Model.edit`, `cm3 edit`). A
    #: subclass inherits the value, but becomes the default for editing only if it sets it itself.
    edits: ClassVar[bool] = False
    #: Whether it is made for drawing after a structure (`condition`, `cm3 generate --condition`); like `edits`.
    structures: ClassVar[bool] = False
    #: Whether it needs the image tokenizer's code vectors (`ImageTokenizer.codebook`).
    needs_codebook: ClassVar[bool] = False

    def requires(self) -> tuple[str, ...]:
        """Vectors of codes, if `needs_codebook`."""
        return ("code_vectors",) if self.needs_codebook else ()

    def check_pictures(self, grid: tuple[int, int], codebook_size: int) -> None:
        """Raise `RecipeError` if the sampler can't draw such pictures. By default it can draw all.

        Light, and called before anything is built.

        Args:
            grid: the image tokenizer's (rows, codes of a row).
            codebook_size: its number of codes.
        """

    def build(self) -> Sampler:
        """Return the sampler."""
        raise NotImplementedError

    def build_for(self, parts: ModelParts) -> Sampler:
        """Return the sampler for a model; by default `build()`, which is enough for most.

        Override it for a sampler that needs the model's image tokenizer, vocabulary or memory, and
        for one that wraps another, to pass `parts` on. It is called for every call of the model, so
        cache slow work by `parts`, which is always the same object."""
        return self.build()


class Sampler(ABC):
    """States what it needs (`plan`) and draws tokens (`draw`).

    Legend: n requests, S stream rows, G streams, R ids of the legal slice."""

    @abstractmethod
    def plan(self, modality: str) -> SamplingPlan:
        """Return the plan for "text" or "image" positions; constant for the sampler's life.

        Both modalities' plans use the same variants in the same order (the streams are prefilled
        once); weights and filters may differ."""

    def for_candidate(self, index: int) -> Sampler:
        """Return the sampler of a request's candidate `index` (0, 1, ...).

        By default this sampler. Mixtures of methods return a different one."""
        return self

    def draws_with(self, other: Sampler) -> bool:
        """Whether this sampler's `draw` may also draw for requests of `other`, using their plans.

        The default is no. Samplers that are fully described by their plans return True for each
        other, so that requests with different guidance share one call per step. Both must agree, each
        in its own class: an inherited answer was about the base's `draw`, see `share_draws`."""
        return other is self

    @abstractmethod
    def draw(
        self,
        logits_SR: Tensor,
        stream_rows_nG: Tensor,
        weights_nG: Tensor,
        plans: Sequence[SamplingPlan],
        *,
        first_id: int,
        allowed_nR: Tensor | None,
        seed_n: Tensor,
        position_n: Tensor,
    ) -> Tensor:
        """Return the next token of each request, int64 [n], as ids of the whole vocabulary.

        Args:
            logits_SR: logits of every stream row over the ids first_id..first_id+R-1.
            stream_rows_nG: int64; rows of `logits_SR` that belong to each request, in its plan's
                order; -1 after the last stream of a request with fewer than G.
            weights_nG: float32; the streams' weights at this position: the plan's, scaled by its
                schedule if it has one; 0 where there is no stream.
            plans: one for each request.
            allowed_nR: bool; legal ids of each request, at least one each. None: all R.
            seed_n: int64; each request's seed. The draw depends only on (seed, position, token id),
                never on the place in the batch, the batch size or R.
            position_n: int64; number of tokens the request has generated so far.
        """

    def draw_log_probabilities(
        self,
        logits_SR: Tensor,
        stream_rows_nG: Tensor,
        weights_nG: Tensor,
        plans: Sequence[SamplingPlan],
        *,
        first_id: int,
        allowed_nR: Tensor | None,
        kept_nR: Tensor | None = None,
    ) -> Tensor:
        """Return the log-probabilities of the distribution that `draw` draws from, float32 [n, R] (float64 for float64
        logits).

        In nats, -inf for ids that are never drawn; differentiable with respect to the logits, within
        the set of ids that pass the filters. Optional: needed for reinforcement learning. The default
        raises.

        Args:
            logits_SR, stream_rows_nG, weights_nG, plans, first_id, allowed_nR: see `draw`.
            kept_nR: bool; the ids that passed the filters when a token was drawn. They replace
                the filters, so that later weights are evaluated on the same set. None: apply the
                filters.

        Raises:
            GenerationError: this sampler can't compute them.
        """
        raise GenerationError(
            f"sampler {type(self).__name__}",
            "can't compute the log-probabilities of its draws",
            "use a sampler that defines draw_log_probabilities",
        )

    def draw_with_state(
        self,
        logits_SR: Tensor,
        stream_rows_nG: Tensor,
        weights_nG: Tensor,
        plans: Sequence[SamplingPlan],
        *,
        first_id: int,
        allowed_nR: Tensor | None,
        seed_n: Tensor,
        position_n: Tensor,
        state: DrawState,
    ) -> Tensor:
        """Like `draw`, with the requests' state; by default `draw`, which ignores it.

        The engine calls it for a `StatefulSampler`; a sampler that wraps another always calls it.

        Args:
            logits_SR, stream_rows_nG, weights_nG, plans, first_id, allowed_nR, seed_n, position_n:
                see `draw`.
            state: a row for each request, see `DrawState`. Values assigned to it are passed to the
                request's next draw.
        """
        return self.draw(
            logits_SR,
            stream_rows_nG,
            weights_nG,
            plans,
            first_id=first_id,
            allowed_nR=allowed_nR,
            seed_n=seed_n,
            position_n=position_n,
        )


def share_draws(one: Sampler, other: Sampler) -> bool:
    """Whether either sampler may draw for requests of the other: they are the same object, or both agree
    (`Sampler.draws_with`) in their own classes.

    A subclass that changes its base's `draw` but inherits its `draws_with` draws alone.
    """
    return one is other or (
        _speaks_for_itself(one)
        and _speaks_for_itself(other)
        and bool(one.draws_with(other))
        and bool(other.draws_with(one))
    )


def _speaks_for_itself(sampler: Sampler) -> bool:
    return "draws_with" in vars(type(sampler))


def tells_log_probabilities(sampler: Sampler) -> bool:
    """Whether a sampler defines `draw_log_probabilities`."""
    return type(sampler).draw_log_probabilities is not Sampler.draw_log_probabilities


# Samplers with state; the engine keeps it, see `cm3core.interfaces.sampler_state`.


class StatefulSampler(Sampler):
    """A sampler that keeps state for each request, or looks at what a request has drawn.

    Everything that changes from draw to draw is in the state: an instance serves many requests at
    once, in any order, and results must not depend on which. A sampler that wraps others is stateful,
    too: it puts their `initial_state` under a name each, and passes them `state.part(name)`.
    """

    def initial_state(self, request: RequestStart) -> InitialState:
        """The state of a request that starts; by default empty, with only the tokens drawn.

        Equal requests start equally. Samplers that share a call (`draws_with`) must have states with the
        same names, shapes and types.
        """
        return {}

    @abstractmethod
    def draw_with_state(
        self,
        logits_SR: Tensor,
        stream_rows_nG: Tensor,
        weights_nG: Tensor,
        plans: Sequence[SamplingPlan],
        *,
        first_id: int,
        allowed_nR: Tensor | None,
        seed_n: Tensor,
        position_n: Tensor,
        state: DrawState,
    ) -> Tensor:
        """See `Sampler.draw_with_state`."""

    def draw(
        self,
        logits_SR: Tensor,
        stream_rows_nG: Tensor,
        weights_nG: Tensor,
        plans: Sequence[SamplingPlan],
        *,
        first_id: int,
        allowed_nR: Tensor | None,
        seed_n: Tensor,
        position_n: Tensor,
    ) -> Tensor:
        """Draw for requests that have just started. The engine calls `draw_with_state`."""
        starts = [
            flat_state(self.initial_state(RequestStart(seed=seed))) for seed in seed_n.tolist()
        ]
        none_n = seed_n.new_full((len(starts),), -1)
        state = DrawState(
            stacked(starts),
            grid=(0, 0),
            cell_n=none_n,
            codes_nC=none_n[:, None][:, :0],
            drawn_nT=none_n[:, None][:, :0],
        )
        return self.draw_with_state(
            logits_SR,
            stream_rows_nG,
            weights_nG,
            plans,
            first_id=first_id,
            allowed_nR=allowed_nR,
            seed_n=seed_n,
            position_n=position_n,
            state=state,
        )


@dataclass(frozen=True, eq=False)
class ModelParts:
    """The parts of one model, the same object for all of its samplers.

    Args:
        image_tokenizer: the model's.
        vocabulary: the model's; `of_codes` and `to_codes` turn image codes into ids and back.
        open_memory: returns `memory`.
    """

    image_tokenizer: ImageTokenizer
    vocabulary: Vocabulary
    open_memory: Callable[[], DocumentSource]

    @cached_property
    def memory(self) -> DocumentSource:
        """The documents that the model can retrieve: those of its recipe's bank, or its training
        documents. Opened on first use.

        Raises:
            CM3Error: there are none, or they can't be opened.
        """
        return self.open_memory()
