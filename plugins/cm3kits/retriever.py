"""Conformance kit of retrievers.

    class TestMine(RetrieverContract):
        config = MyRetrieverConfig()

For a retriever that is not built from a config, define `make` and `over`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, ClassVar

from hypothesis import strategies as st

from cm3core.document import Document, Text, text_of
from cm3core.errors import CM3Error, DataError
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import doing, holds, refuses, same
from cm3kits._module_laws import Outputs
from cm3kits._work import check_growth, work_of
from cm3kits.samples import HashEmbedder, ListSource, example_documents, own_cache

__all__ = ["HashEmbedder", "ListSource", "RetrieverContract", "example_documents"]

#: Scores this close are equal: the last bits depend on the order of summation.
_TIE = 1e-4


class _Withholding(ListSource):
    """A memory that withholds one of its documents."""

    def __init__(self, documents: Sequence[Document], *, withheld: int) -> None:
        super().__init__(documents)
        self._withheld = withheld

    def is_withheld(self, index: int) -> bool:
        """Whether it is that document."""
        return index == self._withheld


class RetrieverContract(ConfigLaws[Retriever]):
    """Laws of a retriever.

    A test's own `make` returns a retriever over any memory of at least two documents, most simply
    `self.over(self.memory())`.
    """

    kind: ClassVar[str] = "retriever"
    causes = ("a_count_may_be_any_number",)
    #: The embedder, for retrievers that need one.
    embedder: ClassVar[Embedder] = HashEmbedder()

    def memory(self) -> DocumentSource:
        """Return the documents that the subject searches."""
        return ListSource(example_documents())

    def build(self, config: Any) -> Retriever:
        """Build over the kit's memory."""
        return self.over(self.memory())

    def over(self, memory: DocumentSource) -> Retriever:
        """Return the retriever over another memory; equal calls give equal retrievers."""
        if self.config is None:
            # left to the author, like Contract.make
            raise NotImplementedError("a test without `config` defines `over`")
        with own_cache():
            retriever: Retriever = self.config.build(memory, self.embedder)
        return retriever

    def works_without(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """An embedder."""

        def use() -> object:
            with own_cache():
                return self.config.build(self.memory(), None).retrieve([(Text("thing"),)], 1)

        yield "embedder", use

    def observe(self, component: Retriever) -> Outputs:
        """Return results of a few queries, with few and many results."""
        memory = component.memory
        asked: list[Document] = [memory.document(index) for index in (0, 1, 2, 9, len(memory) - 1)]
        asked += [
            (Text(text),) for text in ("thing number 3", "number", "zzz", "things 5, numbered")
        ]
        found: Outputs = {
            f"results ({count})": [_told(one) for one in component.retrieve(asked, count)]
            for count in (1, 3, len(memory))
        }
        parts = component.retrieve_parts(asked)
        return found | {"results of parts": [_told(one) for one in parts]}

    def queries(self, data: st.DataObject) -> list[Document]:
        """Draw one to five queries: documents of the memory, and texts that may not be in it."""
        memory = self.subject.memory
        one = st.one_of(
            st.integers(0, len(memory) - 1).map(memory.document),
            st.sampled_from(["red apple", "zzz", "thing number 3"]).map(lambda text: (Text(text),)),
        )
        return data.draw(st.lists(one, min_size=1, max_size=5))

    def names(self, data: st.DataObject, queries: Sequence[Document]) -> list[set[str]]:
        """Draw ids and content keys of documents in the memory, for each query."""
        memory = self.subject.memory
        known = sorted(
            {
                name
                for index in range(len(memory))
                for name in (memory.id(index), *memory.content_keys(index))
            }
        )
        return [data.draw(st.sets(st.sampled_from(known), max_size=6)) for _ in queries]

    def declared(self, component: Retriever) -> Iterator[tuple[str, bool, str, Any]]:
        """The config's memory, embedder and facets."""
        if self.config is None:
            return
        cls: type[RetrieverConfig] = type(self.config)
        own, has = cls.own_memory, cls.open_memory is not RetrieverConfig.open_memory
        yield "own_memory, and for an open_memory", own is has, "both or none", f"{own} and {has}"
        name = cls.default_embedder
        yield "default_embedder", isinstance(name, str), 'the name of an embedder, or ""', name
        most = cls.num_facets
        yield "num_facets", type(most) is int and most >= 1, "1 or more", most

    def law_facets_are_counted(self) -> None:
        """Each result's `facet` is below the config's `num_facets`, by which training takes turns."""
        if self.config is None:
            return
        memory, most = self.subject.memory, type(self.config).num_facets
        queries = [memory.document(index) for index in range(min(len(memory), 8))]
        for found in self.subject.retrieve(queries, 4):
            for one in found:
                did = f"retrieved 4 documents, with a num_facets of {most}"
                holds(0 <= one.facet < most, did, f"facets below {most}", one.facet)

    def law_what_is_withheld_is_never_found(self) -> None:
        """A document that the memory withholds (`DocumentSource.is_withheld`), such as a logo, is not found, not even by its
        own words; the others still are."""
        plain = self.subject.memory
        documents = [plain.document(index) for index in range(len(plain))]
        withheld = _Withholding(documents, withheld=3)
        with self.building():
            subject = self.over(withheld)
        if len(subject.memory) != len(withheld):
            return  # it has a memory of its own
        found = subject.retrieve([documents[3]], len(documents))[0]
        did = "retrieved with the words of a document that the memory withholds"
        holds("d3" not in _ids(found), did, "other documents", "that document")
        wanted = self.subject.retrieve([documents[3]], len(documents))[0]
        if type(self.subject).exact is Retriever.exact:
            others = sorted(name for name in _ids(wanted) if name != "d3")
            same(len(found) >= min(1, len(others)), True, f"{did}, and looked for the others")

    def law_a_count_may_be_any_number(self) -> None:
        """One document less than the memory has, all, one more, and far more: no error, and never more than there are."""
        memory = self.subject.memory
        count, query = len(memory), memory.document(0)
        whole = None
        for asked in (count + 1, count, count - 1, 1, 1 << 20):
            did = f"retrieved {asked} documents of a memory of {count}"
            with doing(did):
                found = self.subject.retrieve([query], asked)[0]
            holds(len(found) <= min(asked, count), did, f"at most {min(asked, count)}", len(found))
            whole = _ids(found) if whole is None else whole
            if type(self.subject).exact is Retriever.exact:
                same(_ids(found), whole[:asked], f"{did}, and {count + 1}")

    def law_parts_are_found_as_stated(self) -> None:
        """With `max_parts` above 0, a query's parts are at most so many, each with a `region`; with 0, none is found."""
        most = self.subject.max_parts
        did = f"retrieved the parts of queries, with a max_parts of {most}"
        holds(type(most) is int and most >= 0, "looked at max_parts", "0 or more", most)
        memory = self.subject.memory
        queries = [memory.document(index) for index in range(min(len(memory), 6))]
        if most:
            memory_error = self._parts_error(queries)
            holds(not memory_error, did, "results, each with a region", memory_error)
        for found in self.subject.retrieve_parts(queries):
            holds(len(found) <= most, did, f"at most {most}", len(found))

    def _parts_error(self, queries: Sequence[Document]) -> str:
        try:
            self.subject.retrieve_parts(queries)
        except CM3Error as error:
            return error.cause
        return ""

    def law_a_search_costs_what_it_reads(self) -> None:
        """The work of a search is at most proportional to the number of documents in the memory, up to a logarithm."""
        works = {}
        for size in (64, 128, 256):
            documents: list[Document] = [
                (Text(f"thing {number} of {number % 7}"),) for number in range(size)
            ]
            with self.building():
                try:
                    own = self.over(ListSource(documents))
                    own.retrieve([documents[1]], 3)
                except CM3Error:
                    return  # its memory is of another sort
            works[size] = work_of(lambda own=own, query=documents[1]: own.retrieve([query], 3))  # type: ignore[misc]  # defaults
        check_growth(works, "documents", "retrieved for one query")

    def law_results_name_memory_documents_once(self, data: st.DataObject) -> None:
        """Results are at most `num_retrieved` distinct documents, with their ids and finite scores."""
        count = data.draw(st.integers(0, len(self.subject.memory) + 3))
        queries = self.queries(data)
        results = self.subject.retrieve(queries, count)
        same(len(results), len(queries), f"retrieved for {len(queries)} queries")
        for query, found in zip(queries, results, strict=True):
            did = f"retrieved {count} documents for {_named(query)}"
            holds(len(found) <= count, did, f"at most {count}", len(found))
            indices = [result.index for result in found]
            holds(len(set(indices)) == len(indices), did, "each document once", indices)
            for place, result in enumerate(found):
                same(result.id, self.subject.memory.id(result.index), f"{did}: result {place}'s id")
                holds(math.isfinite(result.score), did, "finite scores", result.score)

    def law_results_have_plain_types(self, data: st.DataObject) -> None:
        """`index` is an int, `score` a float and `id` a str, not numpy types, which JSON rejects."""
        for found in self.subject.retrieve(self.queries(data), len(self.subject.memory)):
            for result in found:
                for name, kind in (
                    ("index", int),
                    ("score", float),
                    ("id", str),
                    ("preferred", bool),
                ):
                    value = getattr(result, name)
                    holds(
                        type(value) is kind,
                        f"looked at the {name} of a result",
                        kind.__name__,
                        f"{type(value).__module__}.{type(value).__name__}",
                        next_step=f"convert it: {kind.__name__}(...)",
                    )

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """The lists of queries and exclusions, and the memory, are unchanged."""
        memory, queries = self.subject.memory, self.queries(data)
        exclude: list[Collection[str]] = [*self.names(data, queries)]
        before = list(queries), [set(names) for names in exclude], memory.fingerprint
        self.subject.retrieve(queries, 3, exclude)
        for what, now, old in zip(
            ("queries", "exclude", "the memory's fingerprint"),
            (queries, exclude, memory.fingerprint),
            before,
            strict=True,
        ):
            holds(now == old, f"retrieved, and looked at {what}", "what it was before", "another")

    def law_the_best_come_first(self, data: st.DataObject) -> None:
        """Results of the same query part have preferred ones first, each group by descending score."""
        queries = self.queries(data)
        for query, found in zip(
            queries, self.subject.retrieve(queries, len(self.subject.memory)), strict=True
        ):
            did = f"retrieved all documents for {_named(query)}"
            for result in found:
                known = result.found_by in ("text", "image")
                holds(known, did, "found_by 'text' or 'image'", result.found_by)
            for part in ("text", "image"):
                order = [
                    (not result.preferred, -result.score)
                    for result in found
                    if result.found_by == part
                ]
                wrong = next((i for i in range(1, len(order)) if order[i] < order[i - 1]), None)
                if wrong is not None:
                    told = ", ".join(f"{-score:.6g}" for _, score in order[wrong - 1 : wrong + 1])
                    holds(
                        False,
                        did,
                        "the best first, among those found by the same part of the query",
                        f"scores {told} in this order",
                        where=f"results {wrong - 1} and {wrong}",
                        next_step="sort by (not preferred, -score); a retriever that selects documents one by one, such as "
                        "MMR, returns the value used for the selection as the score (with -1 as the highest "
                        "cosine of the first, which has no predecessor)",
                    )

    def law_what_is_excluded_is_never_found(self, data: st.DataObject) -> None:
        """No result has an excluded id or content key."""
        memory, queries = self.subject.memory, self.queries(data)
        banned = self.names(data, queries)
        for query, found, names in zip(
            queries, self.subject.retrieve(queries, len(memory), banned), banned, strict=True
        ):
            for place, result in enumerate(found):
                both = names & {memory.id(result.index), *memory.content_keys(result.index)}
                holds(
                    not both,
                    f"retrieved for {_named(query)}, excluding {sorted(names)}",
                    "none of these",
                    f"{result.id}, which has {sorted(both)}",
                    where=f"result {place}",
                    next_step="leave out documents for which self.is_excluded(index, exclude[i]) is true",
                )

    def law_what_is_excluded_makes_room(self, data: st.DataObject) -> None:
        """Excluded documents take no slots: the results are the others, moved up, or those from a memory without the
        excluded documents."""
        memory, queries = self.subject.memory, self.queries(data)
        count = data.draw(st.integers(1, 4))
        everything = self.subject.retrieve(queries, len(memory))
        # also the first results, whose slots other documents take
        banned = [
            names | set(_ids(whole)[: data.draw(st.integers(0, 6))])
            for names, whole in zip(self.names(data, queries), everything, strict=True)
        ]
        for query, found, whole, names in zip(
            queries,
            self.subject.retrieve(queries, count, banned),
            everything,
            banned,
            strict=True,
        ):
            rest = [
                result
                for result in whole
                if names.isdisjoint({result.id, *memory.content_keys(result.index)})
            ]
            expected = _ids(rest[:count])
            if _ids(found) == expected:
                continue
            # the next document may depend on earlier ones, e.g. if results must differ. Fewer than requested are
            # fine if all results are few: the rarity of a word may decide whether it counts, so that a memory
            # without the excluded documents finds more
            without = self._ids_without(query, names, count)
            holds(
                _ids(found) == without,
                f"retrieved {count} documents for {_named(query)}, excluding {sorted(names)}",
                f"{expected}, all results without the excluded ones"
                + ("" if without == expected else f", or {without}, as of a memory without them"),
                _ids(found),
                next_step="remove excluded documents before selecting the best, not after",
            )

    def _ids_without(self, query: Document, names: set[str], count: int) -> list[str]:
        """Return results from a memory without the excluded documents."""
        memory = self.subject.memory
        kept = [
            index
            for index in range(len(memory))
            if names.isdisjoint({memory.id(index), *memory.content_keys(index)})
        ]
        if not kept:
            return []
        documents = [memory.document(index) for index in kept]
        with self.building():
            other = self.over(ListSource(documents, [memory.id(index) for index in kept]))
        return _ids(other.retrieve([query], count)[0])

    def law_a_batch_is_its_queries(self, data: st.DataObject) -> None:
        """A query's results do not depend on other queries, nor on their exclusions."""
        queries = self.queries(data)
        for banned in (None, self.names(data, queries)):
            together = self.subject.retrieve(queries, 3, banned)
            for place, (query, found) in enumerate(zip(queries, together, strict=True)):
                own = None if banned is None else [banned[place]]
                alone = self.subject.retrieve([query], 3, own)[0]
                did = f"retrieved for {_named(query)} alone, and among {len(queries)} queries" + (
                    "" if banned is None else f", excluding {sorted(banned[place])}"
                )
                same(_ids(found), _ids(alone), did)
                scores = [result.score for result in alone]
                got = [result.score for result in found]
                same(got, scores, f"{did}: scores", tolerance=_TIE)

    def law_searches_repeat(self, data: st.DataObject) -> None:
        """The same queries always give the same results and scores, also from another instance."""
        queries = self.queries(data)
        count = data.draw(st.sampled_from([4, len(self.subject.memory)]))
        results = self.subject.retrieve(queries, count)
        again = self.subject.retrieve(queries, count)
        same(again, results, "retrieved for the same queries twice")
        other = self.make_again().retrieve(queries, count)
        did = "retrieved for the same queries with two retrievers of one config"
        same([_ids(found) for found in other], [_ids(found) for found in results], did)

    def law_fewer_is_a_prefix_of_more(self, data: st.DataObject) -> None:
        """The first results do not depend on how many are requested."""
        queries = self.queries(data)
        few, many = self.subject.retrieve(queries, 2), self.subject.retrieve(queries, 5)
        for query, found, more in zip(queries, few, many, strict=True):
            did = f"retrieved 2 documents for {_named(query)}, and 5, of which the first 2 count"
            same(_ids(found), _ids(more[:2]), did)

    def law_the_memorys_order_decides_ties_only(self, data: st.DataObject) -> None:
        """Another order of the memory gives the same scores, and the same contents except for ties at the end."""
        memory, queries = self.subject.memory, self.queries(data)
        order = data.draw(st.permutations(range(len(memory))))
        with self.building():
            other = self.over(
                ListSource(
                    [memory.document(index) for index in order],
                    [memory.id(index) for index in order],
                )
            )
        count = data.draw(st.integers(1, 6))
        for query, found, again in zip(
            queries,
            self.subject.retrieve(queries, count),
            other.retrieve(queries, count),
            strict=True,
        ):
            did = (
                f"retrieved {count} documents for {_named(query)}, and of a memory in another order"
            )
            same(_kinds(again), _kinds(found), f"{did}: by what they were found")
            scores = [result.score for result in found]
            same([result.score for result in again], scores, f"{did}: scores", tolerance=_TIE)
            for kind in set(_kinds(found)):
                last = min(
                    result.score
                    for result, own in zip(found, _kinds(found), strict=True)
                    if own == kind
                )
                same(
                    _contents(other.memory, again, kind, last),
                    _contents(memory, found, kind, last),
                    f"{did}: documents that score above {last:.6g}",
                )

    def law_exact_finds_the_same(self, data: st.DataObject) -> None:
        """In a memory this small, exact search gives the same results."""
        queries, count = self.queries(data), data.draw(st.integers(1, 6))
        exact = self.subject.exact()
        did = "retrieved with it and with exact()"
        holds(exact.memory is self.subject.memory, did, "one memory", "two")
        for found, again in zip(
            self.subject.retrieve(queries, count), exact.retrieve(queries, count), strict=True
        ):
            same(_ids(again), _ids(found), did)
            scores = [result.score for result in found]
            same([result.score for result in again], scores, f"{did}: scores", tolerance=_TIE)

    def law_nothing_asked_nothing_found(self) -> None:
        """No queries, or `num_retrieved` 0, give empty lists."""
        query = self.subject.memory.document(0)
        same(self.subject.retrieve([], 3), [], "retrieved for no queries")
        same(
            self.subject.retrieve([query, query], 0),
            [[], []],
            "retrieved 0 documents for 2 queries",
        )

    def law_a_negative_count_is_refused(self) -> None:
        """A negative `num_retrieved` raises an error."""
        refuses(
            lambda: self.subject.retrieve([self.subject.memory.document(0)], -1),
            "retrieved -1 documents",
            DataError,
            match="num_retrieved: is -1",
        )


def _named(query: Document) -> str:
    """Describe a query briefly."""
    words = [repr(text) for text in [text_of(query)] if text]
    return " and ".join([*words, *["a picture" for one in query if not isinstance(one, Text)]])


def _told(found: Sequence[Retrieved]) -> list[Any]:
    return [[one.id, one.score, one.found_by, str(one.preferred), str(one.region)] for one in found]


def _ids(found: Sequence[Retrieved]) -> list[str]:
    return [result.id for result in found]


def _kinds(found: Sequence[Retrieved]) -> list[tuple[str, bool]]:
    return [(result.found_by, result.preferred) for result in found]


def _contents(
    memory: DocumentSource, found: Sequence[Retrieved], kind: tuple[str, bool], last: float
) -> list[tuple[str, list[str]]]:
    """Return contents of one kind's results that score higher than `last`, ignoring order and ids."""
    nearer = [
        result.index
        for result, own in zip(found, _kinds(found), strict=True)
        if own == kind and result.score > last + _TIE
    ]
    return sorted(
        (text_of(memory.document(index)), sorted(memory.content_keys(index))) for index in nearer
    )
