"""Documents prepended to a prompt: retrieved from the model's memory or a bank, or given by the caller.

A prompt rewriter decides the search query (`cm3run.prompting`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from cm3core import images
from cm3core.document import Codes, Document, Image, PixelArray, Text, content_keys, text_of
from cm3core.errors import DataError, GenerationError
from cm3run.generation.engine import Request
from cm3run.model.loaded import Loaded, known_by_codes
from cm3run.model.results import RetrievedDocument
from cm3run.model.searching import Prepended, ReadDocuments, searched
from cm3run.prepending import mentioned, prepended
from cm3run.prompting import Answer, Asked, Found

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import Original
    from cm3core.interfaces.retriever import Retrieved


class Augmented(NamedTuple):
    """A request with its documents prepended, these documents as shown in results, and what the memory has for the
    prompt; None: its retriever does not tell."""

    request: Request
    retrieved: tuple[RetrievedDocument, ...]
    answer: Answer | None = None


class Alternatives:
    """One request with its documents, prepended on first use, because what is found as it is needs none.

    Args:
        answer: what the memory has for the prompt.
        make: prepends them.
    """

    def __init__(self, answer: Answer | None, make: Callable[[], list[Augmented]]) -> None:
        self.answer, self._make = answer, make

    @cached_property
    def all(self) -> list[Augmented]:
        """The request with the best documents, then with another of them in front."""
        return self._make()


#: Extra documents to retrieve, replacing those that show a request's own picture.
_SPARE = 4
#: Share of a picture's codes that must be known for recognising it.
_KNOWN = 0.5


class Retrieval:
    """Prepends documents to requests.

    Args:
        loaded: the model. Its recipe sets the number of documents, its retriever finds them, and its engine limits
            how many fit.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.recipe, self.components = loaded, loaded.recipe, loaded.components
        self._documents = ReadDocuments()

    def retrieve(
        self,
        requests: Sequence[Request],
        queries: Sequence[Document],
        num_retrieved: int | None,
        context: Sequence[tuple[PixelArray, str]],
        exclude: Collection[str] = (),
        *,
        num_alternatives: int = 1,
    ) -> list[Alternatives]:
        """Retrieve documents for each request, to be prepended: the request with its documents as shown in results,
        followed by alternatives that put another of the best documents in front.

        An empty query retrieves nothing, and no request gets a document with its own picture. A
        document that can't be read is skipped, with a note. As in training, the first documents
        that fit the decoder's context are kept and the rest dropped.

        Args:
            requests: without documents.
            queries: the query of each request.
            num_retrieved: None: the recipe's number, or none if `context` is given.
            context: the caller's (pixels of the model's size, text) pairs, prepended before all others.
            exclude: ids of documents to exclude from retrieval.
            num_alternatives: at most this many per request, 1 or more.
        """
        number = self._number(num_retrieved, bool(context))
        by_hand: list[Prepended] = [
            (
                (Text(text), self.loaded.encode([pixels])[0]),
                RetrievedDocument(f"context {place}", None, text, pixels),
            )
            for place, (pixels, text) in enumerate(context)
        ]
        retrieved = self._retrieve(requests, queries, number, num_alternatives - 1, exclude)
        return [
            Alternatives(
                found.answer,
                partial(
                    self._alternatives, request, query, by_hand, found, number, num_alternatives
                ),
            )
            for request, query, found in zip(requests, queries, retrieved, strict=True)
        ]

    def _alternatives(
        self,
        request: Request,
        query: Document,
        by_hand: list[Prepended],
        found: Found,
        number: int,
        most: int,
    ) -> list[Augmented]:
        """At most `most` alternatives of one request."""
        alternatives, left_out = [], (0, 0)
        results = found.results
        looked_for = "" if found.query == text_of(query) else found.query
        for first in self._firsts(query, found, most):
            in_order = [*results[first : first + 1], *results[:first], *results[first + 1 :]]
            (one, shown, _), without = self._with(request, by_hand, in_order, number)
            shown = tuple(
                document if document.score is None else replace(document, looked_for=looked_for)
                for document in shown
            )
            alternatives.append(Augmented(one, shown, found.answer))
            left_out = max(left_out, (without, min(number, len(in_order))))
        if left_out[0]:
            tqdm.write(
                f"note: the decoder's context of {self.components.context_length} tokens "
                "has no room for the last "
                f"{left_out[0]} of {left_out[1]} retrieved documents; they are left out",
                file=sys.stderr,
            )
        return alternatives

    def _with(
        self, request: Request, by_hand: list[Prepended], found: list[Retrieved], number: int
    ) -> tuple[Augmented, int]:
        """The request with the first documents that fit, and how many of `number` did not fit. In place of a document
        that can't be used comes the next one of its facet."""
        of_parts = bool(found) and found[0].region is not None
        most = len(by_hand) + (len(found) if of_parts else number)
        chosen, left_out = list(by_hand), 0
        asked = _pictures(request.document)
        waiting = list(found)
        while waiting and len(chosen) < most:
            rank, one = len(found) - len(waiting), waiting.pop(0)
            prepended = self._retrieved(one)
            # a memory of pictures identifies them by other keys than their codes
            if prepended is None or any(_shows(prepended[0], picture) for picture in asked):
                alike = (place for place, other in enumerate(waiting) if other.facet == one.facet)
                if place := next(alike, 0):
                    waiting.insert(0, waiting.pop(place))
                continue
            chosen.append(prepended)
            if not self.loaded.engine.fits(
                replace(request, retrieved=[document for document, _ in chosen])
            ):
                chosen.pop()
                left_out = min(len(found), number) - rank
                break
        # those of parts and the caller's keep their places
        if self.recipe.retriever is not None and self.recipe.retriever.order == "mention":
            own = chosen[len(by_hand) :]
            places = mentioned(text_of(request.document), [shown.text for _, shown in own])
            chosen[len(by_hand) :] = [own[place] for place in places]
        return Augmented(
            replace(request, retrieved=[document for document, _ in chosen]),
            tuple(shown for _, shown in chosen),
        ), left_out

    def _firsts(self, query: Document, found: Found, most: int) -> list[int]:
        """Positions of the documents that take turns in first place."""
        results = found.results
        if most == 1 or not results or results[0].region is not None:
            return [0]
        asked = asked_for(self.loaded, query, len(results))
        return self.components.prompt_rewriter.turns(found, asked)[:most]

    def _retrieve(
        self,
        requests: Sequence[Request],
        queries: Sequence[Document],
        number: int,
        more: int,
        exclude: Collection[str],
    ) -> list[Found]:
        """Retrieve `number + more` documents for each query, best first. Requests with pictures get some extra,
        because `_with` drops documents that show the same picture. For a query with several parts, the documents of
        each part."""
        found = [Found([]) for _ in queries]
        asked = [place for place, query in enumerate(queries) if query]
        if number == 0 or not asked:
            return found
        retriever = self.components.retriever
        assert retriever is not None
        own = [content_keys(requests[place].document).union(exclude) for place in asked]
        has_pictures = any(_pictures(requests[place].document) for place in asked)
        # some pictures of a memory can't be written as codes of drawings
        some = has_pictures or self.components.image_tokenizer.reads_drawings
        spare = max(_SPARE if some else 0, self.components.prompt_rewriter.spare)
        results = search(
            self.loaded, [queries[place] for place in asked], number + more + spare, own
        )
        of_parts = retriever.retrieve_parts([queries[place] for place in asked], own)
        for place, one, parts in zip(asked, results, of_parts, strict=True):
            found[place] = replace(one, results=parts) if parts else one
        return found

    def _retrieved(self, found: Retrieved) -> Prepended | None:
        """A retrieved document, as codes and as shown in results. None, with a note: it can't be read."""
        retriever = self.components.retriever
        assert retriever is not None
        if getattr(self.recipe.retriever, "own_memory", False):  # it may change
            documents = self._documents
        else:
            documents = self.loaded.documents
        if (read := documents.of(retriever, found, self._document)) is None:
            return None
        return read[0], replace(
            read[1], score=found.score
        )  # several prompts may find the same document

    def _document(self, found: Retrieved) -> Prepended:
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
            _pixels(self.loaded, picture),
            retriever.memory.provenance(found.index),
            index=found.index,
        )

    def _number(self, asked: int | None, has_context: bool) -> int:
        """The number of documents to retrieve; `asked`: the caller's number (None: not given)."""
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
                "use 0, or pass documents yourself (context)",
            )
        return asked


def originals(
    loaded: Loaded, found: Sequence[Retrieved], number: int
) -> list[tuple[RetrievedDocument, Original]]:
    """The first `number` of some documents of the memory that have a picture and its original file, each drawing
    once."""
    chosen: list[tuple[RetrievedDocument, Original]] = []
    retriever, seen = loaded.components.retriever, set[bytes]()
    assert retriever is not None
    memory = retriever.memory
    for one in found:
        if len(chosen) == number:
            break
        try:
            document, original = memory.document(one.index), memory.original(one.index)
            picture = next((part for part in document if isinstance(part, (Image, Codes))), None)
            pixels = _pixels(loaded, picture)
        except DataError:  # reported when it is to be prepended
            continue
        if original is None or pixels is None or original.content in seen:
            continue
        seen.add(original.content)
        provenance, text = memory.provenance(one.index), text_of(document)
        own = RetrievedDocument(one.id, one.score, text, pixels, provenance, index=one.index)
        chosen.append((own, original))
    return chosen


def _pixels(loaded: Loaded, picture: Image | Codes | None) -> PixelArray | None:
    """Pixels of a picture in the memory; a bank's pictures are decoded from their codes."""
    if isinstance(picture, Codes):
        return known_by_codes(loaded, picture)
    return None if picture is None else images.fit(picture.load(), loaded.image_size)


def search(
    loaded: Loaded,
    queries: Sequence[Document],
    number: int,
    exclude: Sequence[Collection[str]],
) -> list[Found]:
    """Retrieve at most `number` documents for each query, best first. Many queries are searched together.

    Args:
        loaded: the model, with a retriever.
        queries: not empty.
        number: 1 or more.
        exclude: for each query, ids and content keys to exclude.
    """
    retriever, rewriter = loaded.components.retriever, loaded.components.prompt_rewriter
    assert retriever is not None
    searching = [rewriter.search(asked_for(loaded, query, number)) for query in queries]
    found = [Found([]) for _ in queries]
    asked = {place: next(one) for place, one in enumerate(searching)}
    answers: dict[int, Answer | None] = {}
    while asked:
        results: dict[int, list[Retrieved]] = {}
        for depth in sorted({depth for _, depth in asked.values()}):
            places = [place for place, (_, one) in asked.items() if one == depth]
            texts = [asked[place][0] for place in places]
            own = [exclude[place] for place in places]
            changes = getattr(loaded.recipe.retriever, "own_memory", False)
            look = searched if changes else loaded.searches.search
            for place, (one, answer) in zip(
                places, look(retriever, texts, depth, own), strict=True
            ):
                results[place], answers[place] = one, answer
        asked = {}
        for place in sorted(results):
            try:
                asked[place] = searching[place].send(results[place])
            except StopIteration as end:
                found[place] = replace(end.value, answer=answers.get(place))
    return found


def asked_for(loaded: Loaded, query: Document, number: int) -> Asked:
    """A query together with what a prompt rewriter may know about the model."""
    config, retriever = loaded.recipe.retriever, loaded.components.retriever
    assert config is not None
    assert retriever is not None
    memory = retriever.memory

    def text(found: Retrieved) -> str:
        try:
            return text_of(memory.document(found.index))
        except DataError:  # reported when the document is to be prepended
            return ""

    return Asked(query, number, config.alternative_margin, loaded.known_words, text)


def _pictures(document: Document) -> list[Codes]:
    """The document's pictures of which enough is known for recognising them."""
    return [
        segment
        for segment in document
        if isinstance(segment, Codes)
        and (segment.missing is None or (~segment.missing).mean() >= _KNOWN)
    ]


def _shows(document: Document, picture: Codes) -> bool:
    """Whether a document of codes contains this picture, judged by its known codes.

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
