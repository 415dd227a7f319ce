"""Kind `retriever`: a query document -> the k memory documents to prepend to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import numpy as np

from cm3core.document import Document
from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.component import ComponentConfig, broken, shown
from cm3core.interfaces.reach import READS, Outside

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.embedder import Embedder

#: A part of a query's picture, (x0, y0, x1, y1) in the coordinates of `cm3core.boxes`.
Region: TypeAlias = tuple[int, int, int, int]
#: Orders in which documents are prepended.
DocumentOrder: TypeAlias = Literal["rank", "mention"]


@dataclass(kw_only=True)
class RetrieverConfig(ComponentConfig):
    """Base of retrievers' configs.

    Args:
        num_retrieved: maximum number of documents prepended to a query (paper: 3 in training, 1 or
            2 at inference).
        random_num_retrieved: in training, draw 0..num_retrieved for each sequence, so that prompts
            without documents work. For a picture with n parts, draw 0..n, where any number but 0 means all parts.
        num_ranks: in training, documents are drawn from this many best results, so that a query is
            seen in several contexts.
        order: of the documents before a query: "rank": the best first, in training at random; "mention": in the order in
            which the query's text mentions them, by the longest run of words that no other of them has: the first thing
            of a caption then belongs to the first document. Those that it doesn't mention are the last.
        bank: folder of a memory bank (`cm3 memory build`) to retrieve from. None: the training
            documents.
        query_dropout: in training, probability of dropping each word of a query's text, so that a
            query finds more than its nearest paraphrases (paper section 2.1: 0.2). At least one
            word is kept.
        own_share: in training, probability that one of a sequence's documents is the query itself, which teaches copying.
        full_share: in training, probability of all `num_retrieved` documents, of as many facets as there are.
        unlike_below: if the best document for a picture in a question is less similar than this, the commands
            warn that the memory has nothing like it, so the answer may be meaningless. None: never.
        num_alternatives: in generation, the pictures of one prompt take turns with this many of its best
            documents, so that they differ like these: the first has the best document in first place, the second
            the second best, and so on. 1: all have the best.
        alternative_margin: documents take turns only if their score is below the best one's by at most
            this fraction of it.
    """

    outside: ClassVar[Mapping[str, Outside]] = {"bank": Outside(READS, "the memory bank")}

    kind: ClassVar[str] = "retriever"
    #: Whether it ever finds anything. False: a recipe with it counts as one without retrieval.
    retrieves: ClassVar[bool] = True
    #: Whether it has its own memory, opened by `open_memory`, instead of a bank or the data
    #: set. Such a memory may change at any moment, so it can't be used in training.
    own_memory: ClassVar[bool] = False
    #: Name of the embedder that it is built with for a model that has none; "": the kind's default one.
    default_embedder: ClassVar[str] = ""
    #: How many facets take turns in results.
    num_facets: ClassVar[int] = 1
    later_keys: ClassVar[tuple[str, ...]] = ("own_share", "full_share", "order")
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "num_retrieved": (0, 2**16),
        "num_ranks": (1, 2**20),
        **dict.fromkeys(("own_share", "full_share"), (0.0, 1.0)),
        "num_alternatives": (1, 2**10),
        "alternative_margin": (0.0, 1.0),
    }
    num_retrieved: int = 1
    random_num_retrieved: bool = True
    num_ranks: int = 8
    order: DocumentOrder = "rank"
    bank: str | None = None
    query_dropout: float = 0.0
    own_share: float = 0.0
    full_share: float = 0.0
    unlike_below: float | None = None
    num_alternatives: int = 1
    alternative_margin: float = 0.05

    def check(self) -> None:
        """Raise `RecipeError` for numbers out of range."""
        super().check()
        if not 0 <= self.query_dropout < 1:
            raise RecipeError(
                "retriever.query_dropout",
                f"is {self.query_dropout}, but must be a fraction of the words",
                "use 0 or more and less than 1; the paper's is 0.2",
            )

    def offers(self) -> Mapping[str, bool]:
        """Documents that stay as they are, unless it has its own memory."""
        return {"fixed_documents": False} if self.own_memory else {}

    def requires(self) -> tuple[str, ...]:
        """Documents before what is generated, if it prepends any."""
        return ("prefix",) if self.retrieves and self.num_retrieved > 0 else ()

    def open_memory(self) -> DocumentSource:
        """Return the documents of a retriever with its own memory (`own_memory`)."""
        raise NotImplementedError

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> Retriever:
        """Return a retriever over `memory`. `embedder` is the recipe's, None if it has none."""
        raise NotImplementedError


@dataclass(frozen=True)
class Retrieved:
    """One result: `index` into the memory, the document's `id`, and the similarity `score`; higher is nearer."""

    index: int
    id: str
    score: float
    #: The part of the query that found it: "text" or "image". Scores of different parts aren't
    #: comparable.
    found_by: str = field(default="text", compare=False)
    #: Whether the retriever prefers its kind of document; preferred results come before all
    #: others, whatever the scores.
    preferred: bool = field(default=True, compare=False)
    #: The part of the query's picture that found it; None: the whole query.
    region: Region | None = field(default=None, compare=False)
    #: The facet of the query that it is for; if it can't be used, the next one of this facet takes its place.
    facet: int = field(default=0, compare=False)


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
        """Maximum number of documents that `retrieve_parts` finds for a query; 0: it does not support parts."""
        return 0

    def _retrieve_parts(
        self, queries: Sequence[Document], exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        """Return each query's results for `retrieve_parts`, each with its `region`."""
        return [[] for _ in queries]

    def exact(self) -> Retriever:
        """Return this retriever without approximation: itself, unless its search is approximate."""
        return self

    def is_excluded(self, index: int, exclude: Collection[str]) -> bool:
        """Whether the memory's document `index` is withheld (`DocumentSource.is_withheld`), or `exclude` contains its id or
        a content key of it."""
        return self.memory.is_withheld(index) or (
            bool(exclude)
            and (
                self.memory.id(index) in exclude
                or any(key in exclude for key in self.memory.content_keys(index))
            )
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
            PluginError: `_retrieve` returned an invalid result, such as the query's own
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
        """Return the nearest document for each part of a query's picture, if it shows several things.

        These are prepended instead of the results of `retrieve` for the whole query: their texts with
        the parts' boxes (`cm3run.prepending`). In the order of the parts; a document may be found for several.
        Empty for a query without a picture, or whose picture is best treated as a whole.

        Args:
            queries, exclude: see `retrieve`.

        Raises:
            PluginError: `_retrieve_parts` returned an invalid result.
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
                raise broken(self, law, "a document found for a part has no region")
        return results

    def _check_found(self, found: object, num_retrieved: int, names: Collection[str]) -> None:
        """Raise `PluginError` for invalid results of a query."""
        law = "results_name_memory_documents_once"
        if not isinstance(found, list) or not all(isinstance(one, Retrieved) for one in found):
            inside = {type(one).__name__ for one in found} if isinstance(found, list) else set()
            given = f"a list of {', '.join(sorted(inside))}" if inside else shown(found)
            raise broken(self, law, f"it found {given} for a query, not a list of Retrieved")
        if len(found) > num_retrieved:
            raise broken(
                self, law, f"it found {len(found)} documents, but {num_retrieved} were requested"
            )
        for one in found:
            whole = isinstance(one.index, (int, np.integer))
            if not whole or not 0 <= one.index < len(self.memory):
                raise broken(
                    self,
                    law,
                    f"it found document {one.index!r}, but the memory has {len(self.memory)}",
                )
            if self.is_excluded(one.index, names):
                raise broken(
                    self,
                    "what_is_excluded_is_never_found",
                    f"it found document {one.id!r} for a query of that document or its content",
                )


def _counted(results: object) -> str:
    return f"{len(results)} lists" if isinstance(results, list) else shown(results)
