"""Draws what a set lacks: documents for the thing from the memory and for the hand from the set, candidates after
different pairs of them, and their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cm3apps.complete.adapting import Adaptation, adaptation
from cm3apps.complete.canvas import reach, within
from cm3apps.complete.documents import (
    Documents,
    Shown,
    picture_of,
    style_of_caption,
    thing_of,
)
from cm3apps.complete.paint import in_paint_of
from cm3apps.complete.sets import OwnSet
from cm3apps.complete.tracing import traced
from cm3core.document import Codes, Document, Image, ImageHole, PixelArray, Text, text_of
from cm3core.errors import DataError
from cm3plugins.datasets.svg_folder.reading import parsed
from cm3plugins.retrievers.facets import FacetsRetrieverConfig
from cm3plugins.svg import render_svg
from cm3run.attribution import Credit
from cm3run.generation.engine import Completion, Request, candidate_seed
from cm3run.model.jobs import Job
from cm3run.model.loaded import sampler_of
from cm3run.nearness import NEARLY_A_COPY, nearness
from cm3run.prompting import AnsweringRetriever
from cm3run.words import words_of

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.retriever import Retriever
    from cm3run.model.model import Model

#: Documents of the memory that are searched for a thing: its versions in all sets.
_SEARCHED = 96
#: Drawings for each candidate that is kept: copies come last, and likeness tells better from worse.
DRAWN = 4
#: The most drawings of a set that are compared with a thing, spread over it.
_COMPARED = 1000
#: Drawings of a version's set that are compared with it: every so many of those so near in the memory. Nearly all reach as
#: far as this quantile.
_EVERY, _AROUND, _NEARLY_ALL = 5, 100, 0.1


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


def _set_of(name: str) -> str:
    """The set of a drawing by its id, such as "lucide/bell"."""
    return name.partition("/")[0]


class Completer:
    """Finds documents for things, and draws them.

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
        self._memory = model if memory is None else memory
        self._sampler = sampler_of(model, sampler, **sampling)
        self._hands = FacetsRetrieverConfig().build(own.source, None)
        self._reaches: dict[str, float] = {}
        self._own_ids = frozenset(own.source.id(index) for index in range(len(own.source)))

    @cached_property
    def _retriever(self) -> Retriever | None:
        return self._memory.components.retriever

    def documents(self, name: str, number: int) -> Documents:
        """The documents for a thing, for so many candidates. The set's own drawing of it, and copies of that, are left
        out."""
        own, number = self.own, DRAWN * number
        place = own.index(name)
        banned = frozenset() if place is None else own.source.content_keys(place)
        things, known = self._things(name, number, banned)
        hands = self._alike(things)
        if hands is None:
            [found] = self._hands.retrieve([(Text(own.caption(name)),)], 4 * number, [banned])
            hands = [one.index for one in found]
        others = (
            index
            for index in hands
            if own.source.group(index) != name
            and banned.isdisjoint({own.source.id(index), *own.source.content_keys(index)})
        )
        return Documents(
            name,
            "restyled" if known else "composed",
            things,
            list(self._shown(own.source, others, number)),
        )

    def adaptation(self, documents: Documents) -> Adaptation | None:
        """A version of the thing in the set's form; None: the memory has none that can be given it."""
        if documents.kind != "restyled":
            return None
        side = self.model.components.image_tokenizer.image_size[0]
        return adaptation(documents.things, self.own.hand, self.own.style, side)

    def _alike(self, things: Sequence[Shown]) -> Sequence[int] | None:
        """The set's drawings, those first that look most like a version of the thing: they show how the set draws what
        the thing has; None: there is no version, or the model has no embedder."""
        embedder = self.model.components.embedder
        if embedder is None or not things:
            return None
        indices, pictures_ND = self._compared
        things_MD = embedder.embed_images([one.pixels for one in things])
        order = np.argsort(-(pictures_ND @ things_MD.T).max(axis=1), kind="stable")
        return [indices[place] for place in order]

    @cached_property
    def _compared(self) -> tuple[Sequence[int], npt.NDArray[np.float32]]:
        """The set's drawings that are compared with things, and their embeddings."""
        source, embedder = self.own.source, self.model.components.embedder
        assert embedder is not None
        number = min(len(source), _COMPARED)
        indices = np.linspace(0, len(source) - 1, number).round().astype(int).tolist()
        pictures = [picture_of(source.document(index)) for index in indices]
        return indices, embedder.embed_images(pictures)

    def _things(self, name: str, number: int, banned: frozenset[str]) -> tuple[list[Shown], bool]:
        """Versions of a thing from the memory, and whether they show just that, by the retriever's meanings or else by
        words."""
        retriever = self._retriever
        if retriever is None:
            return [], False
        others = banned if self.own.folder is not None else banned | self._own_ids
        query: Document = (Text(name),)
        answer = None
        if isinstance(retriever, AnsweringRetriever) and retriever.answers:
            [(found, answer)] = retriever.answer([query], _SEARCHED, [others])
        else:
            [found] = retriever.retrieve([query], _SEARCHED, [others])
        asked = tuple(words_of(name))
        texts = [(one.index, text_of(retriever.memory.document(one.index))) for one in found]
        things = list(self._shown(retriever.memory, self._in_order(asked, texts), number))
        if answer is not None:
            return things, bool(things) and answer.kind != "composed"
        return things, bool(things) and set(words_of(things[0].thing)) == set(asked)

    def _in_order(self, asked: Sequence[str], found: Sequence[tuple[int, str]]) -> list[int]:
        """The versions of the nearest thing, or of those that have exactly the words asked for; nearest in hand first,
        each drawing of a set only once."""
        if not found:
            return []
        exact = [one for one in found if set(words_of(thing_of(one[1]))) == set(asked)]
        first = set(words_of(thing_of(found[0][1])))
        chosen = exact or [one for one in found if set(words_of(thing_of(one[1]))) == first]
        wanted = set(words_of(self.own.style))

        def unlike(one: tuple[int, str]) -> int:
            return len(wanted ^ (set(words_of(style_of_caption(one[1])))))

        return [index for index, _ in sorted(chosen, key=unlike)]

    def _shown(self, source: DocumentSource, places: Iterable[int], number: int) -> Iterator[Shown]:
        """Yield the first documents that can be written in the model's codes."""
        for place in places:
            if number == 0:
                return
            document = source.document(place)
            picture = next((one for one in document if isinstance(one, Image)), None)
            try:
                coded = self.model.coded(document)
            except DataError:
                continue  # such as a drawing with more codes than a picture may have
            codes = next((one for one in coded if isinstance(one, Codes)), None)
            if picture is None or codes is None:
                continue
            name, of_set = source.id(place), source is self.own.source
            [pixels] = self.model.decode([codes])
            is_own = of_set and self.own.folder is not None
            original = None if of_set else source.original(place)
            yield Shown(
                name,
                text_of(document),
                coded,
                pixels,
                credit=None if is_own else Credit(name, source.provenance(place)),
                original=None if original is None else original.content,
                small=1.0 if of_set else self._small(source, place, picture.load()),
            )
            number -= 1

    def _small(self, source: DocumentSource, place: int, pixels: PixelArray) -> float:
        """How far a version's ink reaches, as a share of what nearly all drawings of its set do, at most 1."""
        name = _set_of(source.id(place))
        if name not in self._reaches:
            around = range(max(0, place - _AROUND), min(len(source), place + _AROUND), _EVERY)
            of_set = [one for one in around if _set_of(source.id(one)) == name] or [place]
            found = [reach(picture_of(source.document(one))) for one in of_set]
            self._reaches[name] = float(np.quantile(found, _NEARLY_ALL))
        usual = self._reaches[name]
        return min(1.0, reach(pixels) / usual) if usual else 1.0

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
        """How much more each picture is like the nearest version of the thing than like the nearest drawing in the hand."""
        embedder = self.model.components.embedder
        if embedder is None or not documents.things or not pictures:
            return [None] * len(pictures)
        shown = (documents.things, documents.hands)
        things, hands = (
            embedder.embed_images([one.pixels for one in part]) if part else None for part in shown
        )
        made = embedder.embed_images(pictures)
        assert things is not None
        like: npt.NDArray[np.float32] = (made @ things.T).max(axis=1)
        if hands is not None:
            like = like - (made @ hands.T).max(axis=1)
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
