"""Searches of a model's memory, of which the recent ones are remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, TypeAlias

from cm3core.document import Document, Text
from cm3run.prompting import Answer, AnsweringRetriever

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import Retrieved, Retriever

#: Results of one search, and what the memory has for its text.
Searched: TypeAlias = "tuple[list[Retrieved], Answer | None]"
#: Searches that a model remembers; each takes some KB.
MOST_SEARCHED = 1024


class SearchCache:
    """Recent searches by text: a prompt asked for again is neither embedded nor searched for again. May be used by any
    thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Searched] = OrderedDict()
        self._retriever: Retriever | None = None
        self._lock = Lock()

    def search(
        self,
        retriever: Retriever,
        queries: Sequence[Document],
        number: int,
        exclude: Sequence[Collection[str]],
    ) -> list[Searched]:
        """Results of each query, at most `number`; those with pictures are always searched for."""
        keys = [
            (query, number, frozenset(names))
            if all(isinstance(one, Text) for one in query)
            else None
            for query, names in zip(queries, exclude, strict=True)
        ]
        with self._lock:
            if retriever is not self._retriever:  # the model got another memory
                self._kept.clear()
                self._retriever = retriever
            found = [self._of(key) for key in keys]
        missing = [place for place, one in enumerate(found) if one is None]
        if missing:
            new = searched(
                retriever,
                [queries[one] for one in missing],
                number,
                [exclude[one] for one in missing],
            )
            with self._lock:
                for place, one in zip(missing, new, strict=True):
                    found[place] = one
                    if (key := keys[place]) is not None:
                        self._kept[key] = one
                while len(self._kept) > MOST_SEARCHED:
                    self._kept.popitem(last=False)
        return [(list(one[0]), one[1]) for one in found if one is not None]

    def _of(self, key: Hashable | None) -> Searched | None:
        if key is None or key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]


def searched(
    retriever: Retriever,
    queries: Sequence[Document],
    number: int,
    exclude: Sequence[Collection[str]],
) -> list[Searched]:
    """Results of each query, without a cache."""
    if isinstance(retriever, AnsweringRetriever) and retriever.answers:
        return list(retriever.answer(queries, number, exclude))
    return [(one, None) for one in retriever.retrieve(queries, number, exclude)]
