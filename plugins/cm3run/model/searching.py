"""Searches of a model's memory and documents read from it, of which the recent ones are remembered."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from tqdm import tqdm

from cm3core.document import Document, Text
from cm3core.errors import DataError
from cm3run.model.results import RetrievedDocument
from cm3run.prompting import Answer, AnsweringRetriever

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import Retrieved, Retriever

#: Results of one search, and what the memory has for its text.
Searched: TypeAlias = "tuple[list[Retrieved], Answer | None]"
#: A prepended document, as codes and as shown in results.
Prepended: TypeAlias = tuple[Document, RetrievedDocument]
#: Searches that a model remembers; each takes some KB.
MOST_SEARCHED = 1024
#: Documents that a model remembers, with their pixels: 12 KB of 64 x 64, 196 KB of 256 x 256.
MOST_READ = 256
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """What was used last, of one retriever's memory. May be used by any thread.

    Args:
        most: maximum number.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._retriever: Retriever | None = None
        self._lock = Lock()

    def find(self, retriever: Retriever, keys: Sequence[Key | None]) -> list[Value | None]:
        """What is known of each key; with another retriever than before, the model got another memory: nothing is."""
        with self._lock:
            if retriever is not self._retriever:
                self._kept.clear()
                self._retriever = retriever
            found: list[Value | None] = []
            for key in keys:
                if key is None or key not in self._kept:
                    found.append(None)
                    continue
                self._kept.move_to_end(key)
                found.append(self._kept[key])
            return found

    def keep(self, retriever: Retriever, found: Mapping[Key, Value]) -> None:
        """Remember what was found."""
        with self._lock:
            if retriever is self._retriever:
                self._kept.update(found)
                while len(self._kept) > self.most:
                    self._kept.popitem(last=False)


class SearchCache:
    """Recent searches by text: a prompt asked for again is neither embedded nor searched for again. May be used by any
    thread."""

    def __init__(self) -> None:
        self._recent: Recent[Hashable, Searched] = Recent(MOST_SEARCHED)

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
        found = self._recent.find(retriever, keys)
        missing = [place for place, one in enumerate(found) if one is None]
        if missing:
            own, banned = [queries[one] for one in missing], [exclude[one] for one in missing]
            new = dict(zip(missing, searched(retriever, own, number, banned), strict=True))
            known: dict[Hashable, Searched] = {
                key: one for place, one in new.items() if (key := keys[place]) is not None
            }
            self._recent.keep(retriever, known)
            found = [new.get(place, one) for place, one in enumerate(found)]
        return [(list(one[0]), one[1]) for one in found if one is not None]


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


class ReadDocuments:
    """Documents of the memory as they are prepended."""

    def __init__(self) -> None:
        self._recent: Recent[Hashable, Prepended] = Recent(MOST_READ)
        self._unreadable: set[Hashable] = set()

    def of(
        self, retriever: Retriever, found: Retrieved, read: Callable[[Retrieved], Prepended]
    ) -> Prepended | None:
        """A document, read unless it is remembered. None: it can't be read now. Of those, a note tells the first, the
        tenth, the hundredth, ..., with its reason: of some memories they are many.

        Args:
            retriever: finds the documents.
            found: names the document.
            read: reads it; a `DataError` says that it can't be.
        """
        key = (found.index, found.region)
        [known] = self._recent.find(retriever, [key])
        if known is not None:
            return known
        try:
            document = read(found)
        except DataError as error:  # tried again for the next prompt: a disk may come back
            self._tell(key, found.id, error)
            return None
        self._recent.keep(retriever, {key: document})
        return document

    def _tell(self, key: Hashable, name: str, error: DataError) -> None:
        if key in self._unreadable:
            return
        self._unreadable.add(key)
        number = len(self._unreadable)
        if number != 10 ** (len(str(number)) - 1):
            return
        before = (
            f"retrieved document {name} is left out"
            if number == 1
            else f"{number:,} retrieved documents are left out so far; the last is {name}"
        )
        tqdm.write(f"note: {before}: {error.place}: {error.cause}", file=sys.stderr)
