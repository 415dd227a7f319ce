"""The form in which documents of the memory are prepended to a query, both in training and in generation.

A document found for the whole query is prepended unchanged. Of a document found for a part of the query's picture,
only the text is prepended, after the part's position, as in "at (10, 12) -> (40, 44), upper left: bell, outline". The
result is a prompt of captions (SmallCap, arXiv 2209.15323), which cost a fraction of the tokens and say where things
are. The position comes first, so that a causal decoder knows it when it reads the name. It is also given in words,
next to the
name: a small decoder associates two words sooner than it computes with sixteen digits. A name in the middle of a text
also has the same tokens as in a question ("Where is the bell?"); most tokenizers encode it differently at the
beginning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cm3core.boxes import quarter_of
from cm3core.document import Document, Text, text_of

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import DocumentOrder, Region

_WORD = re.compile(r"\w+")
#: Words of the longest run that is compared.
_LONGEST_RUN = 8


def prepended(document: Document, region: Region | None) -> Document:
    """The form in which a document found for a region is prepended; region None: for the whole query.

    >>> prepended((Text("bell, outline"),), (10, 12, 40, 44))
    (Text(text='at (10, 12) -> (40, 44), upper left: bell, outline'),)
    """
    if region is None:
        return document
    x0, y0, x1, y1 = region
    place = f"at ({x0}, {y0}) -> ({x1}, {y1}), {quarter_of(region)}"
    return (Text(f"{place}: {text_of(document)}"),)


def in_order(order: DocumentOrder, query: Document, documents: list[Document]) -> list[Document]:
    """Documents, best first, in the order in which they stand before a query, see `RetrieverConfig`."""
    if order == "rank" or len(documents) < 2:
        return documents
    return [documents[place] for place in mentioned(text_of(query), list(map(text_of, documents)))]


def mentioned(query: str, texts: Sequence[str]) -> list[int]:
    """Places of texts in the order in which a query mentions them: where the longest run of words begins that it shares with
    this text alone. For a name within another's, such as "car" beside "police car": where the first word that they share
    stands outside the other's run. What it doesn't mention keeps its order, at the end.

    >>> mentioned("a lobster above two red cars, on mint", ["a red car, on mint", "a flag", "a lobster, on mint"])
    [2, 0, 1]
    >>> mentioned("two cars right of a police car", ["a police car", "a car"])
    [1, 0]
    """
    words = _stems(query)
    asked = _runs(words)
    shared = [_runs(_stems(text)).keys() & asked.keys() for text in texts]
    longest: list[range | None] = []
    for place, own in enumerate(shared):
        alone = own.difference(*(runs for other, runs in enumerate(shared) if other != place))
        run = min(alone, key=lambda run: (-len(run), asked[run]), default=None)
        longest.append(None if run is None else range(asked[run], asked[run] + len(run)))
    taken = {word for run in longest if run is not None for word in run}
    firsts = [
        run.start
        if run is not None
        else next(
            (at for at, word in enumerate(words) if at not in taken and (word,) in own), len(words)
        )
        for run, own in zip(longest, shared, strict=True)
    ]
    return sorted(range(len(texts)), key=firsts.__getitem__)


def _stems(text: str) -> list[str]:
    """A text's words, a singular as its plural without the last letters."""
    return [re.sub("y$", "i", word.rstrip("es")) or word for word in _WORD.findall(text.casefold())]


def _runs(words: Sequence[str]) -> dict[tuple[str, ...], int]:
    """Runs of words -> where the first begins."""
    found: dict[tuple[str, ...], int] = {}
    for start in range(len(words)):
        for end in range(start + 1, min(start + _LONGEST_RUN, len(words)) + 1):
            found.setdefault(tuple(words[start:end]), start)
    return found
