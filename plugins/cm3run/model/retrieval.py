"""Documents prepended to a prompt: retrieved from the model's memory or a bank, or given by hand."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from tqdm import tqdm

from cm3core import images
from cm3core.document import Codes, Document, Image, PixelArray, Text, content_keys, text_of
from cm3core.errors import DataError, GenerationError
from cm3run.checkpoint.words import words_of
from cm3run.generation.engine import Request
from cm3run.model.loaded import Loaded, known_by_codes
from cm3run.model.queries import has_a_phrase, has_every_word
from cm3run.model.results import RetrievedDocument
from cm3run.model.searching import Found, search, text_found
from cm3run.prepending import prepended

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import Region, Retrieved

#: A request with its documents in front, and these as results show them.
Augmented: TypeAlias = tuple[Request, tuple[RetrievedDocument, ...]]
#: A document in front of a prompt, as codes and as results show it.
_Prepended: TypeAlias = tuple[Document, RetrievedDocument]

#: Documents that are retrieved in excess, in place of those that show a request's own picture.
_SPARE = 4
#: Share of a picture's codes that must be known for it to be recognised.
_KNOWN = 0.5


class Retrieval:
    """Prepends documents to requests.

    Args:
        loaded: the model: its recipe sets how many are retrieved, its retriever finds them, its
            engine knows how many fit.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.recipe, self.components = loaded, loaded.recipe, loaded.components
        self._read: dict[tuple[int, Region | None], _Prepended | None] = {}

    def augment(
        self,
        requests: Sequence[Request],
        queries: Sequence[Document],
        num_retrieved: int | None,
        context: Sequence[tuple[PixelArray, str]],
        exclude: Collection[str] = (),
        *,
        num_alternatives: int = 1,
    ) -> list[list[Augmented]]:
        """Each request with its documents prepended, and these documents as results show them; then the
        alternatives, with another of the best documents in front.

        An empty query retrieves nothing, and no request gets a document with its own picture. A
        document that can't be read is left out, with a note. As in training, the first documents
        that fit the decoder's context are kept and the rest left out.

        Args:
            requests: without documents.
            queries: the query of each request.
            num_retrieved: None: the recipe's number, or none when `context` is given.
            context: (pixels of the model's size, text) prepended by hand, first of all.
            exclude: ids of documents that are not retrieved.
            num_alternatives: at most this many for each request, 1 or more.
        """
        number = self._number(num_retrieved, bool(context))
        by_hand: list[_Prepended] = [
            (
                (Text(text), self.loaded.encode([pixels])[0]),
                RetrievedDocument(f"context {place}", None, text, pixels),
            )
            for place, (pixels, text) in enumerate(context)
        ]
        result, left_out = [], (0, 0)
        retrieved = self._retrieve(requests, queries, number, num_alternatives - 1, exclude)
        for request, query, found in zip(requests, queries, retrieved, strict=True):
            alternatives = []
            results = found.results
            looked_for = "" if found.query == text_of(query) else found.query
            for first in self._firsts(found, num_alternatives):
                in_order = [*results[first : first + 1], *results[:first], *results[first + 1 :]]
                (one, shown), without = self._with(request, by_hand, in_order, number)
                shown = tuple(
                    document if document.score is None else replace(document, looked_for=looked_for)
                    for document in shown
                )
                alternatives.append((one, shown))
                left_out = max(left_out, (without, min(number, len(in_order))))
            result.append(alternatives)
        if left_out[0]:
            tqdm.write(
                f"note: the decoder's context of {self.components.decoder.context_length} tokens "
                "has no room for the last "
                f"{left_out[0]} of {left_out[1]} retrieved documents; they are left out",
                file=sys.stderr,
            )
        return result

    def _with(
        self, request: Request, by_hand: list[_Prepended], found: list[Retrieved], number: int
    ) -> tuple[Augmented, int]:
        """The request with the first documents that fit, and how many of `number` have no room."""
        of_parts = bool(found) and found[0].region is not None
        most = len(by_hand) + (len(found) if of_parts else number)
        chosen, left_out = list(by_hand), 0
        asked = _pictures(request.document)
        for rank, one in enumerate(found):
            if len(chosen) == most:
                break
            if (prepended := self._retrieved(one)) is None:
                continue
            # a memory of pictures knows them by other names than their codes
            if any(_shows(prepended[0], picture) for picture in asked):
                continue
            chosen.append(prepended)
            if not self.loaded.engine.fits(
                replace(request, retrieved=[document for document, _ in chosen])
            ):
                chosen.pop()
                left_out = min(len(found), number) - rank
                break
        return (
            replace(request, retrieved=[document for document, _ in chosen]),
            tuple(shown for _, shown in chosen),
        ), left_out

    def _firsts(self, found: Found, most: int) -> list[int]:
        """Positions of the documents that take turns in front: those that are nearly as near as the first, or show
        the same thing and are not much farther."""
        results = found.results
        if most == 1 or not results or results[0].region is not None:
            return [0]
        config = self.recipe.retriever
        assert config is not None
        kind = results[0].found_by, results[0].preferred
        alike = [one for one in results if (one.found_by, one.preferred) == kind]
        best, margin = max(alike, key=lambda one: one.score), config.same_thing_margin
        firsts = [
            place
            for place, one in enumerate(results)
            if self._is_near(one, best)
            or (
                margin
                and self._is_near(one, best, margin)
                and has_every_word(found.thing, self._text(one))
            )
        ]
        if unasked := self._not_asked_for(found.query):
            # not otherwise: a memory may be far away, and no text is read for nothing
            asked = [one for one in firsts if not has_a_phrase(self._text(results[one]), unasked)]
            firsts = asked or firsts
        return firsts[:most]

    def _text(self, found: Retrieved) -> str:
        """The text of a document of the memory."""
        assert self.components.retriever is not None
        return text_found(self.components.retriever, found)

    def _not_asked_for(self, prompt: str) -> list[str]:
        """The words of `unless_asked_for` that a prompt has not."""
        assert self.recipe.retriever is not None
        asked_for = set(words_of(prompt))
        return [
            one
            for one in self.recipe.retriever.unless_asked_for
            if not asked_for.issuperset(words_of(one))
        ]

    def _is_near(self, one: Retrieved, best: Retrieved, margin: float | None = None) -> bool:
        """Whether a document's score is less than the best one's by no more than a share of it, `alternative_margin`
        unless another is given."""
        assert self.recipe.retriever is not None
        share = self.recipe.retriever.alternative_margin if margin is None else margin
        alike = (one.found_by, one.preferred) == (best.found_by, best.preferred)
        return alike and best.score - one.score <= share * abs(best.score)

    def _retrieve(
        self,
        requests: Sequence[Request],
        queries: Sequence[Document],
        number: int,
        more: int,
        exclude: Collection[str],
    ) -> list[Found]:
        """The nearest documents of the memory for each query, best first, and so many more; for requests with
        pictures some more, of which `_with` leaves out those that show the same. Or those of its picture's parts.
        """
        found = [Found([]) for _ in queries]
        asked = [place for place, query in enumerate(queries) if query]
        if number == 0 or not asked:
            return found
        retriever, config = self.components.retriever, self.recipe.retriever
        assert retriever is not None
        assert config is not None
        own = [content_keys(requests[place].document).union(exclude) for place in asked]
        has_pictures = any(_pictures(requests[place].document) for place in asked)
        spare = _SPARE if has_pictures or config.unless_asked_for else 0
        results = search(
            self.loaded, [queries[place] for place in asked], number + more + spare, own
        )
        of_parts = retriever.retrieve_parts([queries[place] for place in asked], own)
        for place, one, parts in zip(asked, results, of_parts, strict=True):
            if parts:
                one = replace(one, results=parts)
            elif config.unless_asked_for and all(isinstance(part, Text) for part in queries[place]):
                one = replace(one, results=self._unasked_last(one.query, one.results))
            found[place] = one
        return found

    def _unasked_last(self, query: str, found: list[Retrieved]) -> list[Retrieved]:
        """The documents that are nearly as near as the best, those first that have no word of `unless_asked_for` that
        the query has not; then the others."""
        if not found:
            return found
        unasked = self._not_asked_for(query)
        near = [one for one in found if self._is_near(one, found[0])]
        last = [one for one in near if has_a_phrase(self._text(one), unasked)]
        return [
            *(one for one in near if one not in last),
            *last,
            *(one for one in found if one not in near),
        ]

    def _retrieved(self, found: Retrieved) -> _Prepended | None:
        """A document of the memory, as codes and as results show it; None, with a note: it can't be read."""
        key = found.index, found.region
        if key not in self._read:
            try:
                self._read[key] = self._document(found)
            except DataError as error:
                tqdm.write(
                    f"note: retrieved document {found.id} is left out: {error.place}: "
                    f"{error.cause}",
                    file=sys.stderr,
                )
                self._read[key] = None
        if (read := self._read[key]) is None:
            return None
        return read[0], replace(read[1], score=found.score)  # it may be found for several prompts

    def _document(self, found: Retrieved) -> _Prepended:
        retriever = self.components.retriever
        assert retriever is not None
        document = retriever.memory.document(found.index)
        picture = next(
            (segment for segment in document if isinstance(segment, (Image, Codes))), None
        )
        document = prepended(document, found.region)
        return self.loaded.coded(document), RetrievedDocument(
            found.id,
            found.score,
            text_of(document),
            self._shown(picture),
            retriever.memory.provenance(found.index),
            index=found.index,
        )

    def _shown(self, picture: Image | Codes | None) -> PixelArray | None:
        """Pixels of a picture of the memory; pictures of a bank are decoded from their codes."""
        if isinstance(picture, Codes):
            return known_by_codes(self.loaded, picture)
        return None if picture is None else images.fit(picture.load(), self.loaded.image_size)

    def _number(self, asked: int | None, has_context: bool) -> int:
        """How many documents to retrieve if the caller asked for `asked` (None: not specified)."""
        if asked == 0:
            return 0
        config = self.recipe.retriever
        has_memory = config is not None and config.retrieves
        if asked is None:
            return (
                config.num_retrieved
                if config and has_memory and self.recipe.generate.retrieve and not has_context
                else 0
            )
        if asked < 0:
            raise GenerationError("num_retrieved", f"is {asked}", "use 0 or more")
        if asked > 0 and not has_memory:
            raise GenerationError(
                "num_retrieved",
                f"is {asked}, but the model's recipe {self.recipe.name!r} has no retriever",
                "use 0, or give documents by hand (context)",
            )
        return asked


def _pictures(document: Document) -> list[Codes]:
    """The pictures of a document of which enough is known to be recognised."""
    return [
        segment
        for segment in document
        if isinstance(segment, Codes)
        and (segment.missing is None or (~segment.missing).mean() >= _KNOWN)
    ]


def _shows(document: Document, picture: Codes) -> bool:
    """Whether a document of codes has this picture, as far as it is known.

    >>> one = Codes(np.array([1, 2, 3, 4]), (2, 2))
    >>> _shows((one,), replace(one, missing=np.array([True, False, False, False])))
    True
    """
    known = ... if picture.missing is None else ~picture.missing
    return any(
        isinstance(segment, Codes)
        and segment.grid == picture.grid
        and np.array_equal(segment.codes[known], picture.codes[known])
        for segment in document
    )
