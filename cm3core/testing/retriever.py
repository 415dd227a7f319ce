"""Conformance kit of retrievers: `class TestMine(RetrieverContract)` with a `make()`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.document import Document, Image, PixelArray, Text, text_of
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder, VectorArray
from cm3core.interfaces.retriever import Retrieved, Retriever
from cm3core.testing._laws import Contract


class ListSource(DocumentSource):
    """A memory of given documents, whose ids are "d0", "d1", ... or given."""

    def __init__(self, documents: Sequence[Document], ids: Sequence[str] | None = None) -> None:
        self._documents = list(documents)
        self._ids = [f"d{index}" for index in range(len(documents))] if ids is None else list(ids)

    def __len__(self) -> int:
        return len(self._documents)

    def id(self, index: int) -> str:
        """Its id."""
        return self._ids[index]

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return self._documents[index]

    @property
    def fingerprint(self) -> str:
        """Hash of ids and texts."""
        return hashlib.sha256(repr([(self._ids[i], text_of(d)) for i, d in enumerate(self._documents)]).encode()).hexdigest()


class HashEmbedder(Embedder):
    """An embedder without weights, for tests: text and pictures become pseudo-random vectors of their bytes."""

    def __init__(self, dimension: int = 8) -> None:
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._dimension

    @property
    def fingerprint(self) -> str:
        """Its name and dimension."""
        return f"hash-{self._dimension}"

    def _vector(self, content: bytes) -> VectorArray:
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(self._dimension).astype(np.float32)

    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return np.stack([self._vector(text.encode()) for text in texts])

    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return np.stack([self._vector(image.tobytes()) for image in images])


def example_documents(count: int = 24) -> list[Document]:
    """Documents with text, with a picture, and with both, in turn; the last two are equal (an exact tie)."""
    documents: list[Document] = []
    for i in range(count - 1):
        picture = np.full((4, 4, 3), (i * 37 % 256, i * 101 % 256, i * 53 % 256), np.uint8)
        text, image = Text(f"thing number {i}"), Image(f"p{i}", picture.copy)
        documents.append(((text, image), (text,), (image,))[i % 3])
    return [*documents, documents[-1]]


class RetrieverContract(Contract[Retriever]):
    """What every retriever obeys. `make` returns one over any memory of two documents or more."""

    def queries(self, data: st.DataObject) -> list[Document]:
        """One to five queries: documents of the memory, and texts that it may not know."""
        memory = self.subject.memory
        one = st.one_of(st.integers(0, len(memory) - 1).map(memory.document),
                        st.sampled_from(["red apple", "zzz", "thing number 3"]).map(lambda text: (Text(text),)))
        return data.draw(st.lists(one, min_size=1, max_size=5))

    def law_results_name_memory_documents_once(self, data: st.DataObject) -> None:
        """At most `num_retrieved`, each a document of the memory under its own id, none twice, finite scores, best first."""
        count = data.draw(st.integers(0, len(self.subject.memory) + 3))
        queries = self.queries(data)
        results = self.subject.retrieve(queries, count)
        assert len(results) == len(queries)
        for found in results:
            assert len(found) <= count
            assert len({result.index for result in found}) == len(found)
            assert all(self.subject.memory.id(result.index) == result.id for result in found)
            assert all(np.isfinite(result.score) for result in found)
            scores = [result.score for result in found]
            assert scores == sorted(scores, reverse=True)

    def law_excluded_ids_make_room(self, data: st.DataObject) -> None:
        """What is excluded is never returned, and what follows it moves up: the rest is as without the exclusion."""
        memory, queries = self.subject.memory, self.queries(data)
        count = data.draw(st.integers(1, 4))
        some_ids = st.lists(st.sampled_from([memory.id(i) for i in range(len(memory))]), max_size=6)
        banned = [set(data.draw(some_ids)) for _ in queries]
        everything = self.subject.retrieve(queries, len(memory))
        for found, whole, ids in zip(self.subject.retrieve(queries, count, banned), everything, banned, strict=True):
            assert _ids(found) == _ids([result for result in whole if result.id not in ids][:count])

    def law_a_batch_is_its_queries(self, data: st.DataObject) -> None:
        """A query's results do not depend on what else is asked."""
        queries = self.queries(data)
        together = self.subject.retrieve(queries, 3)
        assert [_ids(found) for found in together] == [_ids(self.subject.retrieve([query], 3)[0]) for query in queries]

    def law_fewer_is_a_prefix_of_more(self, data: st.DataObject) -> None:
        """The first results do not depend on how many are asked for."""
        queries = self.queries(data)
        few, many = self.subject.retrieve(queries, 2), self.subject.retrieve(queries, 5)
        assert [_ids(found) for found in few] == [_ids(found[:2]) for found in many]

    def law_nothing_asked_nothing_found(self) -> None:
        """No queries, or none wanted: empty lists."""
        query = self.subject.memory.document(0)
        assert self.subject.retrieve([], 3) == []
        assert self.subject.retrieve([query, query], 0) == [[], []]

    def law_a_negative_count_is_refused(self) -> None:
        """Fewer than none is an error of the caller's."""
        with pytest.raises(DataError, match="num_retrieved: is -1"):
            self.subject.retrieve([self.subject.memory.document(0)], -1)


def _ids(found: Sequence[Retrieved]) -> list[str]:
    return [result.id for result in found]
