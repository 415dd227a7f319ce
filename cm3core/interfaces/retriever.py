"""Kind `retriever`: a query document -> the k memory documents that are prepended to it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np

from cm3core.document import Document
from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.component import ComponentConfig, broken, shown
from cm3core.interfaces.reach import READS, TEXT, Outside

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.embedder import Embedder

#: A part of a query's picture, (x0, y0, x1, y1) in the coordinates of `cm3core.boxes`.
Region: TypeAlias = tuple[int, int, int, int]


@dataclass(kw_only=True)
class RetrieverConfig(ComponentConfig):
    """Base of retrievers' configs.

    Args:
        num_retrieved: maximum number of documents prepended to a query (paper: 3 in training, 1 or
            2 at inference).
        random_num_retrieved: in training, draw 0..num_retrieved for each sequence, so that prompts
            without documents work. Of a picture's n parts 0..n are drawn, and any but 0 is all of them.
        num_ranks: in training, documents are drawn from this many best results, so that a query is
            seen in several contexts.
        bank: folder of a memory bank (`cm3 memory build`) to retrieve from. None: the training
            documents.
        query_dropout: in training, probability of dropping each word of a query's text, so that a
            query finds more than its nearest paraphrases (paper section 2.1: 0.2). At least one
            word is kept.
        query_leaves_out: phrases of a prompt that name nothing, such as "a photo of", which are left out of its
            query, not of the prompt, where another word follows, if no document has every word of the thing with
            them. For memories whose texts have none of them: to embedders of words and to BM25, what is rare
            weighs most. Case doesn't matter.
        query_replaces: words and phrases of a prompt, and what is asked for in the query instead, such as
            `puppy: dog`, if no document has every word of the thing as the prompt has it: for what the memory's
            texts call by another name. Case doesn't matter.
        query_singular: a word of a prompt that no training text has is asked for in the singular, where one has that:
            to an embedder of words, "cats" is as far from "cat" as any other word. English.
        search_for_words: in generation, where the best document has not every word of the thing that a prompt names,
            the best of this many that has them is taken instead; if none has, and the best has no word of it, the
            best that has one: what an embedder of words makes of words that it hardly knows is near to anything,
            and the rarest word counts most. The thing stands before the first comma. 0: the best one is taken.
        thing_ends_at: words such as "with", before the first of which the thing stands, too, if no document has
            every word up to the comma.
        unless_asked_for: in generation, documents with one of these words come after those that are nearly as near
            (`alternative_margin`) and have none, unless the prompt has the word, and take no turn beside them:
            what a model draws badly.
        unlike_below: of a picture that is asked about whose best document is less similar to it than this, the commands
            say that the memory has nothing like it, so that the answer may mean nothing. None: they never do.
        num_alternatives: in generation, the pictures of one prompt take turns with this many of its best
            documents, so that they differ as these do: the first has the best in front, the second the second
            best, and so on. 1: all have the best.
        alternative_margin: no document takes a turn whose score is less than the best one's by more than
            this share of it.
        same_thing_margin: the same of documents that have every word of the thing that the prompt names, where it
            is more: of things that are drawn seldom, they are other drawings in other styles.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "bank": Outside(READS, "the memory bank"),
        "query_leaves_out": TEXT,
        "query_replaces": TEXT,
        "thing_ends_at": TEXT,
        "unless_asked_for": TEXT,
    }

    kind: ClassVar[str] = "retriever"
    #: Whether it ever finds anything. False: a recipe with it is a recipe without retrieval.
    retrieves: ClassVar[bool] = True
    #: Whether it has a memory of its own, which `open_memory` opens, instead of a bank or the data
    #: set. Such a memory may change at any moment, so that nothing is trained with it.
    own_memory: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "num_retrieved": (0, 2**16),
        "num_ranks": (1, 2**20),
        "search_for_words": (0, 2**20),
        "num_alternatives": (1, 2**10),
        "alternative_margin": (0.0, 1.0),
        "same_thing_margin": (0.0, 1.0),
    }
    num_retrieved: int = 1
    random_num_retrieved: bool = True
    num_ranks: int = 8
    bank: str | None = None
    query_dropout: float = 0.0
    query_leaves_out: list[str] = field(default_factory=list)
    query_replaces: dict[str, str] = field(default_factory=dict)
    query_singular: bool = False
    search_for_words: int = 0
    thing_ends_at: list[str] = field(default_factory=list)
    unless_asked_for: list[str] = field(default_factory=list)
    unlike_below: float | None = None
    num_alternatives: int = 1
    alternative_margin: float = 0.05
    same_thing_margin: float = 0.0

    def check(self) -> None:
        """Refuse numbers that are out of range."""
        super().check()
        for name in ("query_leaves_out", "thing_ends_at", "unless_asked_for"):
            if any(not one.split() for one in getattr(self, name)):
                raise RecipeError(f"retriever.{name}", "has a phrase without a word", "remove it")
        for asked, instead in self.query_replaces.items():
            if not (asked.split() and instead.split()):
                raise RecipeError(
                    "retriever.query_replaces",
                    f"replaces {asked!r} by {instead!r}, and one of them has no word",
                    "remove it, or use query_leaves_out",
                )
        if not 0 <= self.query_dropout < 1:
            raise RecipeError(
                "retriever.query_dropout",
                f"is {self.query_dropout}, and it is a share of the words",
                "use 0 or more and less than 1; the paper's is 0.2",
            )

    def asked(self, text: str) -> str:
        """What a prompt asks the memory for: the text with `query_replaces` and without `query_leaves_out`.

        >>> class Words(RetrieverConfig): ...
        >>> Words(query_leaves_out=["photo of", "a"]).asked("A photo of a dog with a hat, filled a")
        'dog with hat, filled a'
        >>> Words(query_replaces={"puppy": "dog"}).asked("Puppy, filled")
        'dog, filled'
        """
        return self.without_fillers(self.in_other_words(text))

    def in_other_words(self, text: str) -> str:
        """A text with `query_replaces`.

        >>> class Words(RetrieverConfig): ...
        >>> Words(query_replaces={"puppy": "dog"}).in_other_words("a Puppy, filled")
        'a dog, filled'
        """
        if not self.query_replaces:
            return text
        other = {
            " ".join(words.casefold().split()): instead
            for words, instead in self.query_replaces.items()
        }
        # a pattern that ignores case takes a few letters for others that casefold() keeps apart
        return re.sub(
            rf"(?:{_one_of(other)})(?!\w)",
            lambda found: other.get(" ".join(found[0].casefold().split()), found[0]),
            text,
            flags=re.IGNORECASE,
        )

    def without_fillers(self, text: str, *, first: bool = False) -> str:
        """A text without `query_leaves_out`; `first`: without those that it begins with.

        >>> class Words(RetrieverConfig): ...
        >>> words = Words(query_leaves_out=["photo of", "a", "and"])
        >>> words.without_fillers("a photo of a nut and bolt, a")
        'nut bolt, a'
        >>> words.without_fillers("a photo of a nut and bolt", first=True)
        'nut and bolt'
        """
        if not self.query_leaves_out:
            return text
        fillers = rf"(?:{_one_of(self.query_leaves_out)})\s+(?=\w)"
        if first:
            fillers = rf"\A\s*(?:{fillers})+"
        return re.sub(fillers, "", text, flags=re.IGNORECASE)

    def thing(self, text: str) -> str:
        """What a prompt names, without what it says of it: see `thing_ends_at`.

        >>> class Words(RetrieverConfig): ...
        >>> Words(thing_ends_at=["with"]).thing("dog with a hat, filled"), Words().thing("dog, filled")
        ('dog', 'dog')
        """
        ends = rf"|(?<=\w)\s+(?:{_one_of(self.thing_ends_at)})(?!\w)" if self.thing_ends_at else ""
        return re.split(f",{ends}", text, maxsplit=1, flags=re.IGNORECASE)[0]

    def open_memory(self) -> DocumentSource:
        """Return the documents of a retriever that has a memory of its own (`own_memory`)."""
        raise NotImplementedError

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> Retriever:
        """Return a retriever over `memory`. `embedder` is the recipe's, None if it has none."""
        raise NotImplementedError


def _one_of(phrases: Iterable[str]) -> str:
    """A pattern that matches the longest of these phrases, with any spaces between its words; not within a word."""
    longest_first = sorted((one.split() for one in phrases), key=len, reverse=True)
    return "|".join(
        (r"(?<!\w)" if re.match(r"\w", words[0]) else "") + r"\s+".join(map(re.escape, words))
        for words in longest_first
        if words
    )


@dataclass(frozen=True)
class Retrieved:
    """One result: `index` into the memory, the document's `id`, and the similarity `score`.

    A higher score is nearer."""

    index: int
    id: str
    score: float
    #: Which part of the query found it: "text" or "image". Scores of different parts aren't
    #: comparable.
    found_by: str = field(default="text", compare=False)
    #: Whether it is of the sort that the retriever prefers; preferred results come before all
    #: others, whatever the scores.
    preferred: bool = field(default=True, compare=False)
    #: The part of the query's picture that it was found for; None: the whole query.
    region: Region | None = field(default=None, compare=False)


class Retriever(ABC):
    """Finds memory documents for queries, never the query's own document (`exclude`)."""

    @property
    @abstractmethod
    def memory(self) -> DocumentSource:
        """The documents that results index."""

    @abstractmethod
    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        """Return each query's results, best first, at most `num_retrieved`.

        None of them `is_excluded` by `exclude[i]`."""

    @property
    def max_parts(self) -> int:
        """The most documents that `retrieve_parts` finds for a query; 0: it looks at no parts."""
        return 0

    def _retrieve_parts(
        self, queries: Sequence[Document], exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        """Return each query's results of `retrieve_parts`, each with its `region`."""
        return [[] for _ in queries]

    def exact(self) -> Retriever:
        """Return the same retriever without approximation: itself, unless its search may miss."""
        return self

    def is_excluded(self, index: int, exclude: Collection[str]) -> bool:
        """Whether `exclude` has the id or a content key of the memory's document `index`."""
        return bool(exclude) and (
            self.memory.id(index) in exclude
            or any(key in exclude for key in self.memory.content_keys(index))
        )

    def retrieve(
        self,
        queries: Sequence[Document],
        num_retrieved: int,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[list[Retrieved]]:
        """Return the nearest memory documents of each query, best first.

        They are ordered by score among those found by the same part of the query and equally
        preferred.

        Args:
            queries: documents; their text and pictures are the query (both if both are present).
            num_retrieved: maximum number of results for each query, 0 or more.
            exclude: for each query, ids and content keys (`cm3core.document.content_keys`) of
                documents that must not be returned: its own.

        Raises:
            PluginError: `_retrieve` returned something else than it must, such as the query's own
                document.
        """
        if num_retrieved < 0:
            raise DataError("num_retrieved", f"is {num_retrieved}", "use 0 or more")
        banned = (
            [frozenset[str]()] * len(queries)
            if exclude is None
            else [frozenset(names) for names in exclude]
        )
        assert len(banned) == len(queries)
        if num_retrieved == 0 or not queries:
            return [[] for _ in queries]
        results = self._retrieve(queries, num_retrieved, banned)
        if not isinstance(results, list) or len(results) != len(queries):
            raise broken(
                self,
                "a_batch_is_its_queries",
                f"it returned {_counted(results)} for {len(queries)} queries",
            )
        for found, names in zip(results, banned, strict=True):
            self._check_found(found, num_retrieved, names)
        return results

    def retrieve_parts(
        self, queries: Sequence[Document], exclude: Sequence[Collection[str]] | None = None
    ) -> list[list[Retrieved]]:
        """Return the nearest document of each part of a query's picture, where it shows several things.

        Such a query has these in front instead of what `retrieve` finds for the whole of it: their texts with
        the parts' boxes (`cm3run.prepending`). In the order of the parts; one document may be found for two.
        Empty for a query without a picture, or whose picture is best taken as one thing.

        Args:
            queries, exclude: see `retrieve`.

        Raises:
            PluginError: `_retrieve_parts` returned something else than it must.
        """
        banned = [frozenset(names) for names in exclude or [()] * len(queries)]
        assert len(banned) == len(queries)
        if not self.max_parts or not queries:
            return [[] for _ in queries]
        results = self._retrieve_parts(queries, banned)
        law = "results_name_memory_documents_once"
        if len(results) != len(queries):
            raise broken(self, law, f"it returned {len(results)} lists for {len(queries)} queries")
        for found, names in zip(results, banned, strict=True):
            self._check_found(found, self.max_parts, names)
            if any(one.region is None for one in found):
                raise broken(self, law, "a document that it found for a part has no region")
        return results

    def _check_found(self, found: object, num_retrieved: int, names: Collection[str]) -> None:
        """Raise `PluginError` for results of a query that can't be used."""
        law = "results_name_memory_documents_once"
        if not isinstance(found, list) or not all(isinstance(one, Retrieved) for one in found):
            inside = {type(one).__name__ for one in found} if isinstance(found, list) else set()
            given = f"a list of {', '.join(sorted(inside))}" if inside else shown(found)
            raise broken(self, law, f"it found {given} for a query, not a list of Retrieved")
        if len(found) > num_retrieved:
            raise broken(self, law, f"it found {len(found)} documents, {num_retrieved} were asked")
        for one in found:
            whole = isinstance(one.index, (int, np.integer))
            if not whole or not 0 <= one.index < len(self.memory):
                raise broken(
                    self, law, f"it found document {one.index!r}, the memory has {len(self.memory)}"
                )
            if self.is_excluded(one.index, names):
                raise broken(
                    self,
                    "what_is_excluded_is_never_found",
                    f"it found document {one.id!r} for a query of that document or its content",
                )


def _counted(results: object) -> str:
    return f"{len(results)} lists" if isinstance(results, list) else shown(results)
