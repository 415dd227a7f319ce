"""Neighbours on disk, and the queries of a retriever."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Codes, Document, Image, Text, content_keys, text_of
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.retriever import Retrieved, RetrieverConfig
from cm3kits.retriever import ListSource
from cm3run.training.code_cache import CodeCache
from cm3run.training.neighbours import (
    NeighbourSettings,
    NeighboursOnDemand,
    NeighbourTable,
    Queries,
    retriever_fingerprint,
    with_pictures,
    with_words_left_out,
)
from numbered_documents import Following, Numbers, Quadrants


def test_neighbours_are_computed_once_and_never_oneself(tmp_path: Path) -> None:
    source, settings = Numbers(10), NeighbourSettings("f", num_ranks=3)
    for expected in (10, 0):
        retriever = Following(source)
        table = NeighbourTable(
            Queries(retriever, source, settings), tmp_path, progress=False, shard_size=4
        )
        assert retriever.queries == expected
        assert table.neighbours(8) == [9, 0, 1]
    few = NeighbourTable(
        Queries(Following(Numbers(2)), Numbers(2), settings), tmp_path, progress=False
    )
    assert few.neighbours(0) == [1]


def test_few_documents_are_searched_for_alone(tmp_path: Path) -> None:
    """As validation does: the same neighbours as those of the table, and no others are searched for."""
    source, settings = Numbers(10), NeighbourSettings("f", num_ranks=3)
    table = NeighbourTable(Queries(Following(source), source, settings), tmp_path, progress=False)
    retriever = Following(source)
    few = NeighboursOnDemand(Queries(retriever, source, settings))
    assert len(few) == 10
    for index in (8, 3, 8):
        assert few.neighbours(index) == table.neighbours(index)
        assert few.parts(index) == table.parts(index) == []
    assert retriever.queries == 2


class Drawing(Quadrants):
    """Draws its codes, too, and counts the pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded = 0

    def _decode(self, codes_Nc: Any) -> Any:
        self.decoded += len(codes_Nc)
        quadrants = (codes_Nc.reshape(-1, 2, 2, 1) * 16).astype(np.uint8)
        return np.repeat(quadrants.repeat(2, 1).repeat(2, 2), 3, axis=3)


class Encoded(Numbers):
    """The same documents with codes in place of pictures, as token shards have them."""

    is_encoded = True  # type: ignore[assignment]  # a property of the base

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        codes = Quadrants().encode(self.pixels(index)[None])[0]
        return Text(f"{self.caption} {index}"), Codes(codes, Quadrants.grid)


class Seeing(Following):
    """Retrieves, for a query with a picture, the number after the one that is drawn there."""

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        found: list[list[Retrieved]] = []
        for query in queries:
            (picture,) = (one for one in query if isinstance(one, Image))
            number = (int(picture.load()[3, 0, 0]) // 16 + 1) % len(self._memory)
            found.append([Retrieved(number, f"n{number}", 1.0)])
        return found


def test_pictures_of_token_shards_are_drawn_for_queries(tmp_path: Path) -> None:
    """A retriever that looks at pictures finds what it finds with the pictures themselves; each is drawn once. One that
    reads texts draws none."""
    settings, memory, tokenizer = NeighbourSettings("f", num_ranks=1), Numbers(10), Drawing()
    source = Encoded(10)

    def found(retriever: Any, source: Any) -> list[list[int]]:
        queries = Queries(retriever, source, settings, image_tokenizer=tokenizer)
        table = NeighbourTable(queries, tmp_path / type(retriever).__name__, progress=False)
        return [table.neighbours(index) for index in range(10)]

    following = [[(index + 1) % 10] for index in range(10)]
    assert found(Following(memory), source) == following
    assert tokenizer.decoded == 0
    assert found(Seeing(memory), source) == following
    assert tokenizer.decoded == 10
    assert found(Seeing(memory), Numbers(10)) == following
    assert tokenizer.decoded == 10
    plain = Numbers(10)
    assert settings.name(plain) != settings.name(
        source
    )  # an older table was found without pictures
    (text, picture) = with_pictures(source.document(3), tokenizer)
    assert text == source.document(3)[0]
    assert isinstance(picture, Image)
    np.testing.assert_array_equal(picture.load(), plain.pixels(3))


class Stopping(Following):
    """Ctrl-C at the third call."""

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        if self.queries == 8:
            raise KeyboardInterrupt
        return super()._retrieve(queries, num_retrieved, exclude)


def test_neighbours_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    source, settings = Numbers(20), NeighbourSettings("f", num_ranks=3)
    retriever = Following(source)
    with pytest.raises(KeyboardInterrupt):
        NeighbourTable(
            Queries(Stopping(source), source, settings), tmp_path, progress=False, shard_size=4
        )
    table = NeighbourTable(
        Queries(retriever, source, settings), tmp_path, progress=False, shard_size=4
    )
    assert retriever.queries == 12
    assert [table.neighbours(index)[0] for index in range(20)] == [*range(1, 20), 0]


def test_neighbours_have_a_folder_for_all_that_decides_them(tmp_path: Path) -> None:
    def folder(
        source: Numbers | None = None, name: str = "f", ranks: int = 2, **settings: Any
    ) -> Path:
        source = source or Numbers(4)
        return NeighbourTable(
            Queries(
                Listening(source), source, NeighbourSettings(name, num_ranks=ranks, **settings)
            ),
            tmp_path,
            progress=False,
        ).folder

    assert folder() == folder(seed=1), "a seed of nothing"
    assert (
        len(
            {
                folder(),
                folder(Numbers(4, caption="no")),
                folder(name="g"),
                folder(ranks=3),
                folder(text_only=True),
                folder(query_dropout=0.2),
                folder(query_dropout=0.3),
                folder(query_dropout=0.2, seed=1),
            }
        )
        == 8
    )


def test_retriever_fingerprint_leaves_out_how_many_and_where_it_lies() -> None:
    one, two = RetrieverConfig(num_retrieved=1), RetrieverConfig(num_retrieved=2, bank="elsewhere")
    assert retriever_fingerprint(one, None, Numbers(4)) == retriever_fingerprint(
        two, None, Numbers(4)
    )
    assert retriever_fingerprint(one, None, Numbers(4)) != retriever_fingerprint(
        one, None, Numbers(5)
    )


class Listening(Following):
    """Records its queries."""

    def __init__(self, memory: DocumentSource) -> None:
        super().__init__(memory)
        self.asked: list[Document] = []
        self.excluded: list[frozenset[str]] = []

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        self.asked += queries
        self.excluded += map(frozenset, exclude)
        return [[] for _ in queries]


def listened(
    source: DocumentSource, folder: Path, codes: CodeCache | None = None, **settings: Any
) -> Listening:
    retriever = Listening(source)
    asked = NeighbourSettings("f", num_ranks=2, **settings)
    NeighbourTable(Queries(retriever, source, asked, codes), folder, progress=False)
    return retriever


def test_a_document_is_known_by_its_id_its_picture_and_its_codes(tmp_path: Path) -> None:
    source = Numbers(2)
    codes = CodeCache(source, Quadrants(), tmp_path, progress=False)
    [of_codes] = content_keys((codes.codes("picture 1"),))
    assert listened(source, tmp_path, codes=codes).excluded[1] == {
        "n1",
        "image:picture 1",
        of_codes,
    }


def test_documents_with_unreadable_pictures_are_not_asked_for(tmp_path: Path) -> None:
    source = Numbers(4, broken=[1])
    retriever = listened(
        source, tmp_path, codes=CodeCache(source, Quadrants(), tmp_path, progress=False)
    )
    assert [text_of(query) for query in retriever.asked] == ["number 0", "number 2", "number 3"]


def test_a_document_that_holds_nothing_has_no_neighbours(tmp_path: Path) -> None:
    assert listened(ListSource([(Text(" "),), (Text("number 1"),)]), tmp_path).asked == [
        (Text("number 1"),)
    ]


def test_outside_training_the_query_is_what_a_prompt_has(tmp_path: Path) -> None:
    assert listened(Numbers(2), tmp_path).asked[1] == Numbers(2).document(1)
    assert listened(Numbers(2), tmp_path, text_only=True).asked[1] == (Text("number 1"),)


class Sentences(Numbers):
    """Documents of eight words, in a given order."""

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__(len(order))
        self.order = order

    def id(self, index: int) -> str:
        return f"n{self.order[index]}"

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return Text(" ".join(f"word{place}" for place in range(8))), Image(
            f"picture {index}", lambda: self.pixels(index)
        )


def test_words_are_left_out_of_queries_by_the_documents_own_chance(tmp_path: Path) -> None:
    forwards, backwards = Sentences(range(40)), Sentences(range(39, -1, -1))
    asked = [text_of(query) for query in listened(forwards, tmp_path, query_dropout=0.5).asked]
    assert [
        text_of(query) for query in listened(backwards, tmp_path, query_dropout=0.5).asked
    ] == asked[::-1]
    assert [
        text_of(query) for query in listened(forwards, tmp_path, query_dropout=0.5, seed=1).asked
    ] != asked
    assert len(set(asked)) > 30


@given(
    words=st.lists(st.text("abc", min_size=1, max_size=3), max_size=9),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_left_out_words_leave_the_others_in_order(
    words: list[str], share: float, seed: int
) -> None:
    picture = Numbers(1).document(0)[1]
    shortened, same = with_words_left_out(
        (Text(" ".join(words)), picture), share, np.random.default_rng(seed)
    )
    assert same is picture
    assert isinstance(shortened, Text)
    kept = shortened.text.split()
    rest = iter(words)
    assert all(word in rest for word in kept), "a subsequence"
    assert len(kept) >= min(1, len(words))
    if share == 0:
        assert kept == words


def test_the_share_of_words_left_out() -> None:
    """8,000 words at 0.2: 1,600 expected, standard deviation 36."""
    document = (Text(" ".join(["word"] * 8000)),)
    [shortened] = with_words_left_out(document, 0.2, np.random.default_rng(0))
    assert isinstance(shortened, Text)
    assert abs(8000 - len(shortened.text.split()) - 1600) < 150
