"""Draws what a set lacks: candidates after different pairs of documents, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cm3core.document import Codes, ImageHole, PixelArray, Text
from cm3icons.complete.adapting import Adaptation, adaptation
from cm3icons.complete.canvas import within
from cm3icons.complete.documents import Documents, Shown
from cm3icons.complete.finding import Finder
from cm3icons.complete.paint import in_paint_of
from cm3icons.complete.sets import OwnSet
from cm3icons.complete.tracing import traced
from cm3plugins.datasets.svg_folder.reading import parsed
from cm3plugins.svg import render_svg
from cm3run.attribution import Credit
from cm3run.generation.engine import Completion, Request, candidate_seed
from cm3run.model.jobs import Job
from cm3run.model.loaded import sampler_of
from cm3run.nearness import NEARLY_A_COPY, nearness

if TYPE_CHECKING:
    from cm3run.model.model import Model

#: Drawings for each candidate that is kept: copies come last, and likeness tells better from worse.
DRAWN = 4


@dataclass(frozen=True, eq=False)
class Drawn:
    """A candidate.

    Args:
        svg: as a file of the set.
        pixels: rendered, in black.
        seed: of the candidate.
        documents: that were prepended.
        nats: negative log-likelihood for each token, given the prompt and the documents.
        paint: share of its elements that are painted as the set paints.
        nearness: to the nearest of the documents and of the memory's versions of the thing.
        likeness: how much more it is like these versions than like the set's other drawings, by the model's embedder; None:
            it has none, or the memory no version.
    """

    svg: str
    pixels: PixelArray
    seed: int
    documents: tuple[Shown, ...]
    nats: float
    paint: float
    nearness: float
    likeness: float | None = None

    @property
    def is_copy(self) -> bool:
        """Whether it is nearly a copy of one of them."""
        return self.nearness >= NEARLY_A_COPY

    @property
    def credits(self) -> tuple[Credit, ...]:
        """Credits of its documents, each with its nearness; a user's own drawings need none."""
        return tuple(
            replace(one.credit, nearness=nearness(self.pixels, one.pixels))
            for one in self.documents
            if one.credit is not None
        )

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Sorts candidates, the best first: copies last, then by paint, then by likeness, or without it by likelihood."""
        worse = self.nats if self.likeness is None else -self.likeness
        return self.is_copy, -round(self.paint, 1), worse


class Completer:
    """Draws things after documents that it finds.

    Args:
        model: writes drawings, or draws pixels, which are traced.
        own: the set.
        sampling: keys of the sampler to change.
        sampler: its name; None: the recipe's.
        memory: the model whose memory has the things; None: the same.
    """

    def __init__(
        self,
        model: Model,
        own: OwnSet,
        sampler: str | None,
        sampling: dict[str, object],
        memory: Model | None = None,
    ) -> None:
        self.model, self.own = in_paint_of(model, own.hand), own
        self._sampler = sampler_of(model, sampler, **sampling)
        self._finder = Finder(self.model, own, model if memory is None else memory)

    def documents(self, name: str, number: int) -> Documents:
        """The documents for a thing, for so many candidates."""
        return self._finder.documents(name, DRAWN * number)

    def adaptation(self, documents: Documents) -> Adaptation | None:
        """A version of the thing in the set's form; None: the memory has none that can be given it."""
        if documents.kind != "restyled":
            return None
        side = self.model.components.image_tokenizer.image_size[0]
        return adaptation(documents.things, self.own.hand, self.own.style, side)

    def job(self, documents: Documents, number: int, seed: int) -> Job[list[Drawn]]:
        """The job that draws a thing `DRAWN` times for each candidate, and returns so many, the best first."""
        prompt = self.own.caption(documents.name)
        asked = Request((Text(prompt), ImageHole()), sampler=self._sampler, truncate=True)
        pairs = [self._fitting(asked, pair) for pair in documents.pairs(DRAWN * number)]
        requests = [
            replace(
                asked,
                retrieved=[one.document for one in pair],
                seed=candidate_seed(seed, place),
                sampler=self._sampler.for_candidate(place),
            )
            for place, pair in enumerate(pairs)
        ]

        def finish(completions: Sequence[Completion]) -> list[Drawn]:
            drawn = [
                self._drawn(completion, request.seed, pair, documents)
                for completion, request, pair in zip(completions, requests, pairs, strict=True)
            ]
            alike = self._likeness([one.pixels for one in drawn], documents)
            drawn = [replace(one, likeness=own) for one, own in zip(drawn, alike, strict=True)]
            return sorted(drawn, key=lambda one: one.rank)[:number]

        return Job(requests, finish)

    def _likeness(
        self, pictures: Sequence[PixelArray], documents: Documents
    ) -> Sequence[float | None]:
        """How much more each picture is like the nearest version of the thing than like the nearest drawing in the hand; or,
        of one that is composed of the set's own parts, like its base with what the examples have added."""
        embedder = self.model.components.embedder
        if embedder is None or not documents.things or not pictures:
            return [None] * len(pictures)

        def embedded(shown: Sequence[Shown]) -> npt.NDArray[np.float32]:
            return embedder.embed_images([one.pixels for one in shown])

        made, things = embedder.embed_images(pictures), embedded(documents.things)
        like: npt.NDArray[np.float32]
        if documents.without:
            added = embedded(documents.hands) - embedded(documents.without)
            like = made @ (things.mean(axis=0) + added.mean(axis=0))
        else:
            like = (made @ things.T).max(axis=1)
            if documents.hands:
                like = like - (made @ embedded(documents.hands).T).max(axis=1)
        return [float(one) for one in like]

    def _fitting(self, asked: Request, pair: tuple[Shown, ...]) -> tuple[Shown, ...]:
        """The documents that fit the decoder's context with the prompt; the first ones go first."""
        while pair and not self.model.engine.fits(
            replace(asked, retrieved=[one.document for one in pair])
        ):
            pair = pair[:-1]
        return pair

    def _drawn(
        self, completion: Completion, seed: int, pair: tuple[Shown, ...], documents: Documents
    ) -> Drawn:
        codes = next(one for one in reversed(completion.document) if isinstance(one, Codes))
        svg = self.model.components.image_tokenizer.svg(codes.codes)
        if svg is None:  # the model draws pixels
            [made] = self.model.decode([codes])
            svg = traced(made, self.own.hand)
        least, most = self.own.hand.reach
        svg = within(svg, least * min((one.small for one in pair), default=1.0), most)
        written = self.own.hand.written(svg)
        side = self.model.components.image_tokenizer.image_size[0]
        pixels = render_svg(parsed(written.encode()).svg, side)
        others = {id(one): one for one in (*pair, *documents.things)}.values()
        return Drawn(
            written,
            pixels,
            seed,
            pair,
            -completion.log_probability / max(1, completion.num_tokens),
            self.own.hand.paint_share(svg),
            max((nearness(pixels, one.pixels) for one in others), default=0.0),
        )
