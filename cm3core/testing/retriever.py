"""Conformance kit of retrievers.

    class TestMine(RetrieverContract):
        config = MyRetrieverConfig()

A retriever that is not built from a config defines `make` and `over`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.document import Document, Text, text_of
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.retriever import Retrieved, Retriever
from cm3core.testing._laws import Contract
from cm3core.testing.samples import HashEmbedder, ListSource, example_documents, own_cache

__all__ = ["HashEmbedder", "ListSource", "RetrieverContract", "example_documents"]

#: Scores this close are equal: the last bits depend on the order of sums.
_TIE = 1e-4


class RetrieverContract(Contract[Retriever]):
    """Laws of a retriever.

    A test's own `make` returns one over any memory of two documents or more, most simply
    `self.over(self.memory())`.
    """

    kind: ClassVar[str] = "retriever"
    #: The embedder, for retrievers that need one.
    embedder: ClassVar[Embedder] = HashEmbedder()

    def memory(self) -> DocumentSource:
        """The documents that the subject searches."""
        return ListSource(example_documents())

    def build(self, config: Any) -> Retriever:
        """Build over the kit's memory."""
        return self.over(self.memory())

    def over(self, memory: DocumentSource) -> Retriever:
        """Return the retriever over another memory; equal calls give equal retrievers."""
        if self.config is None:
            # the author's part, like Contract.make
            raise NotImplementedError("a test without `config` defines `over`")
        with own_cache():
            retriever: Retriever = self.config.build(memory, self.embedder)
        return retriever

    def queries(self, data: st.DataObject) -> list[Document]:
        """One to five queries: documents of the memory, and texts that may not be in it."""
        memory = self.subject.memory
        one = st.one_of(
            st.integers(0, len(memory) - 1).map(memory.document),
            st.sampled_from(["red apple", "zzz", "thing number 3"]).map(lambda text: (Text(text),)),
        )
        return data.draw(st.lists(one, min_size=1, max_size=5))

    def names(self, data: st.DataObject, queries: Sequence[Document]) -> list[set[str]]:
        """Ids and content keys of documents of the memory, for each query."""
        memory = self.subject.memory
        known = sorted(
            {
                name
                for index in range(len(memory))
                for name in (memory.id(index), *memory.content_keys(index))
            }
        )
        return [data.draw(st.sets(st.sampled_from(known), max_size=6)) for _ in queries]

    def law_results_name_memory_documents_once(self, data: st.DataObject) -> None:
        """At most `num_retrieved` distinct documents, under their ids, with finite scores."""
        count = data.draw(st.integers(0, len(self.subject.memory) + 3))
        queries = self.queries(data)
        results = self.subject.retrieve(queries, count)
        assert len(results) == len(queries)
        for found in results:
            assert len(found) <= count
            assert len({result.index for result in found}) == len(found)
            assert all(self.subject.memory.id(result.index) == result.id for result in found)
            assert all(np.isfinite(result.score) for result in found)

    def law_results_have_plain_types(self, data: st.DataObject) -> None:
        """`index` is an int, `score` a float and `id` a str: not numpy's, which JSON refuses."""
        for found in self.subject.retrieve(self.queries(data), len(self.subject.memory)):
            for result in found:
                assert (type(result.index), type(result.score)) == (int, float)
                assert (type(result.id), type(result.preferred)) == (str, bool)

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """The lists of queries and exclusions, and the memory, are unchanged."""
        memory, queries = self.subject.memory, self.queries(data)
        exclude: list[Collection[str]] = [*self.names(data, queries)]
        before = list(queries), [set(names) for names in exclude], memory.fingerprint
        self.subject.retrieve(queries, 3, exclude)
        assert (queries, exclude, memory.fingerprint) == before

    def law_the_best_come_first(self, data: st.DataObject) -> None:
        """Results of the same query part: preferred ones first, each by descending score."""
        for found in self.subject.retrieve(self.queries(data), len(self.subject.memory)):
            for part in ("text", "image"):
                order = [
                    (not result.preferred, -result.score)
                    for result in found
                    if result.found_by == part
                ]
                assert order == sorted(order)
            assert all(result.found_by in ("text", "image") for result in found)

    def law_what_is_excluded_is_never_found(self, data: st.DataObject) -> None:
        """No result has an excluded id or content key."""
        memory, queries = self.subject.memory, self.queries(data)
        banned = self.names(data, queries)
        for found, names in zip(
            self.subject.retrieve(queries, len(memory), banned), banned, strict=True
        ):
            for result in found:
                assert names.isdisjoint(
                    {memory.id(result.index), *memory.content_keys(result.index)}
                )

    def law_what_is_excluded_makes_room(self, data: st.DataObject) -> None:
        """Later results move up: the rest is the same as without the exclusion.

        Waived for retrievers that skip results similar to earlier ones, which then find others.
        """
        memory, queries = self.subject.memory, self.queries(data)
        count = data.draw(st.integers(1, 4))
        banned = self.names(data, queries)
        everything = self.subject.retrieve(queries, len(memory))
        for found, whole, names in zip(
            self.subject.retrieve(queries, count, banned), everything, banned, strict=True
        ):
            rest = [
                result
                for result in whole
                if names.isdisjoint({result.id, *memory.content_keys(result.index)})
            ]
            assert _ids(found) == _ids(rest[:count])

    def law_a_batch_is_its_queries(self, data: st.DataObject) -> None:
        """A query's results do not depend on the other queries."""
        queries = self.queries(data)
        together = self.subject.retrieve(queries, 3)
        assert [_ids(found) for found in together] == [
            _ids(self.subject.retrieve([query], 3)[0]) for query in queries
        ]

    def law_searches_repeat(self, data: st.DataObject) -> None:
        """The same queries give the same results and scores again, also from another instance."""
        queries = self.queries(data)
        results = self.subject.retrieve(queries, 4)
        assert self.subject.retrieve(queries, 4) == results
        again = self.make_again().retrieve(queries, 4)
        assert [_ids(found) for found in again] == [_ids(found) for found in results]

    def law_fewer_is_a_prefix_of_more(self, data: st.DataObject) -> None:
        """The first results do not depend on how many are requested."""
        queries = self.queries(data)
        few, many = self.subject.retrieve(queries, 2), self.subject.retrieve(queries, 5)
        assert [_ids(found) for found in few] == [_ids(found[:2]) for found in many]

    def law_the_memorys_order_decides_ties_only(self, data: st.DataObject) -> None:
        """In another memory order: the same scores, and contents except for ties at the end."""
        memory, queries = self.subject.memory, self.queries(data)
        order = data.draw(st.permutations(range(len(memory))))
        other = self.over(
            ListSource(
                [memory.document(index) for index in order], [memory.id(index) for index in order]
            )
        )
        count = data.draw(st.integers(1, 6))
        for found, again in zip(
            self.subject.retrieve(queries, count), other.retrieve(queries, count), strict=True
        ):
            assert _kinds(found) == _kinds(again)
            np.testing.assert_allclose(
                [result.score for result in found], [result.score for result in again], atol=_TIE
            )
            for kind in set(_kinds(found)):
                last = min(
                    result.score
                    for result, own in zip(found, _kinds(found), strict=True)
                    if own == kind
                )
                assert _contents(memory, found, kind, last) == _contents(
                    other.memory, again, kind, last
                )

    def law_exact_finds_the_same(self, data: st.DataObject) -> None:
        """In a memory this small, the exact search gives the same results."""
        queries, count = self.queries(data), data.draw(st.integers(1, 6))
        exact = self.subject.exact()
        assert exact.memory is self.subject.memory
        for found, again in zip(
            self.subject.retrieve(queries, count), exact.retrieve(queries, count), strict=True
        ):
            assert _ids(found) == _ids(again)
            np.testing.assert_allclose(
                [result.score for result in found], [result.score for result in again], atol=_TIE
            )

    def law_nothing_asked_nothing_found(self) -> None:
        """No queries, or `num_retrieved` 0: empty lists."""
        query = self.subject.memory.document(0)
        assert self.subject.retrieve([], 3) == []
        assert self.subject.retrieve([query, query], 0) == [[], []]

    def law_a_negative_count_is_refused(self) -> None:
        """A negative `num_retrieved` is an error."""
        with pytest.raises(DataError, match="num_retrieved: is -1"):
            self.subject.retrieve([self.subject.memory.document(0)], -1)


def _ids(found: Sequence[Retrieved]) -> list[str]:
    return [result.id for result in found]


def _kinds(found: Sequence[Retrieved]) -> list[tuple[str, bool]]:
    return [(result.found_by, result.preferred) for result in found]


def _contents(
    memory: DocumentSource, found: Sequence[Retrieved], kind: tuple[str, bool], last: float
) -> list[tuple[str, list[str]]]:
    """Contents of one kind's results that score higher than `last`, ignoring order and ids."""
    nearer = [
        result.index
        for result, own in zip(found, _kinds(found), strict=True)
        if own == kind and result.score > last + _TIE
    ]
    return sorted(
        (text_of(memory.document(index)), sorted(memory.content_keys(index))) for index in nearer
    )
