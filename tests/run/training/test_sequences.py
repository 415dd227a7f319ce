"""Sequences as functions of (seed, epoch, index)."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Document, Image, Text, text_of
from cm3core.errors import DocumentError, RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3kits.retriever import ListSource
from cm3plugins.objectives.cm3 import CM3ObjectiveConfig
from cm3run.training.code_cache import CodeCache
from cm3run.training.neighbours import NeighbourSettings, NeighbourTable, Queries
from cm3run.training.sequences import MaskedSequences, RetrievedDocuments, SequenceSettings
from messages import tells
from numbered_documents import (
    SERIALIZER,
    VOCABULARY,
    Following,
    Numbers,
    Plain,
    Quadrants,
    make_data,
)


def test_a_sequence_is_a_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    data, same, other = make_data(tmp_path), make_data(tmp_path), make_data(tmp_path, seed=1)
    data.sequence(3, 4)
    keys = [(epoch, index) for epoch in range(4) for index in range(20)]
    for key in keys:
        assert data.sequence(*key).tokens.tolist() == same.sequence(*key).tokens.tolist()
    assert any(
        data.sequence(*key).tokens.tolist() != other.sequence(*key).tokens.tolist() for key in keys
    )
    assert len({data.sequence(epoch, 4).tokens.tobytes() for epoch in range(40)}) > 10


@pytest.mark.slow
def test_number_and_choice_of_prepended_documents(tmp_path: Path) -> None:
    """All choices are equally likely, and the query itself never occurs.

    Numbers 0..2, each of the four ranks kept, both captions, both orders.
    """
    data = make_data(tmp_path)
    numbers: Counter[int] = Counter()
    shown: Counter[int] = Counter()
    captions: Counter[str] = Counter()
    rising: Counter[bool] = Counter()
    trials = 3000
    for epoch in range(trials):
        *retrieved, query = SERIALIZER.documents(data.sequence(epoch, 5).tokens)
        texts = [text_of(document).split() for document in retrieved]
        places = [int(place) for _, place in texts]
        captions.update(caption for caption, _ in texts)
        numbers[len(places)] += 1
        shown.update(places)
        if len(places) == 2:
            rising[places[0] < places[1]] += 1
        assert query[0] in (Text("number 5"), Text("n 5"))
    assert set(shown) == {6, 7, 8, 9}
    for count in numbers.values():
        assert abs(count - trials / 3) < 130
    for count in shown.values():
        assert abs(count - trials / 4) < 130
    assert abs(rising[True] - rising[False]) < 170
    assert abs(captions["n"] - captions["number"]) < 250


def test_outside_training_nothing_is_drawn(tmp_path: Path) -> None:
    data = make_data(tmp_path, training=False)
    assert [document[0] for document in SERIALIZER.documents(data.sequence(7, 5).tokens)] == [
        Text("number 6"),
        Text("number 7"),
        Text("number 5"),
    ]


def test_fewer_documents_where_the_context_is_small(tmp_path: Path) -> None:
    """k pairs have 14 k + 1 tokens; six are reserved for masking; the last token is not an input."""
    for context_length, expected in ((48, 3), (47, 2), (34, 2), (33, 1), (14, 1)):
        data = make_data(tmp_path, training=False, context_length=context_length)
        if expected == 3:
            assert len(SERIALIZER.documents(data.sequence(0, 0).tokens)) == expected
        else:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert len(SERIALIZER.documents(data.sequence(0, 0).tokens)) == expected
                data.sequence(0, 1)
            assert [str(one.message) for one in caught] == [
                "a query with 2 retrieved documents has 43 tokens, but decoder.context_length "
                f"{context_length} has room for "
                f"{context_length - 5} besides the tokens of masking: such queries get fewer documents, this one "
                f"{expected - 1} (reported once); set "
                f"retriever.num_retrieved={expected - 1}, or decoder.context_length to 48 or more"
            ]


class _Questions(Numbers):
    """A picture, and a question of `number` letters with its answer, which is the response."""

    def __init__(self, number: int, *, is_task: bool = True) -> None:
        super().__init__(3)
        self.text = "q" * (number - 2) + " a"
        self.responses = ((number - 1, number),) if is_task else ()

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return super()._document(index, rng)[1], Text(self.text, self.responses)


def _told_of(source: Numbers, folder: Path, *, training: bool = True) -> list[str]:
    """What is warned of while six sequences are made of texts of at most 20 bytes."""
    data = MaskedSequences(
        source,
        SERIALIZER,
        Plain(),
        CodeCache(source, Quadrants(), folder, progress=False),
        None,
        SequenceSettings(seed=0, context_length=80, max_text_tokens=20, training=training),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index in range(6):
            data.sequence(0, index)
    return [str(one.message) for one in caught]


def test_a_task_that_loses_words_is_told(tmp_path: Path) -> None:
    assert _told_of(_Questions(21), tmp_path) == [
        "document n0: a text of its task has 21 tokens, but training reads only the first 20 of each "
        "(data.max_text_tokens), here and in similar documents (reported once); set "
        "data.max_text_tokens to 21 or more"
    ]
    assert _told_of(_Questions(20), tmp_path) == []
    assert _told_of(_Questions(21, is_task=False), tmp_path) == []  # a caption may be cut
    assert _told_of(_Questions(21), tmp_path, training=False) == []  # training has told it


@pytest.mark.filterwarnings("ignore:a query with")
@given(
    context_length=st.integers(20, 100),
    num_retrieved=st.integers(0, 4),
    epoch=st.integers(0, 99),
    index=st.integers(0, 19),
)
def test_the_context_is_never_overrun(
    context_length: int, num_retrieved: int, epoch: int, index: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(
            Path(folder),
            context_length=context_length,
            num_retrieved=num_retrieved,
            objective=CM3ObjectiveConfig(lambda_spans=3.0).build(VOCABULARY),
        )
        assert len(data.sequence(epoch, index)) <= context_length + 1


def test_a_memory_of_codes(tmp_path: Path) -> None:
    """A memory bank's documents are already codes; nothing is looked up."""
    source, whole = Numbers(5, broken=[3]), Numbers(5)
    codes = CodeCache(source, Quadrants(), tmp_path / "source", progress=False)
    kept = CodeCache(whole, Quadrants(), tmp_path / "memory", progress=False)
    memory = ListSource(
        [kept.encoded(whole.document(index)) for index in range(5)],
        [f"n{index}" for index in range(5)],
    )
    neighbours = NeighbourTable(
        Queries(Following(memory), source, NeighbourSettings("f", num_ranks=2), codes),
        tmp_path,
        progress=False,
    )
    data = MaskedSequences(
        source,
        SERIALIZER,
        Plain(),
        codes,
        RetrievedDocuments(neighbours, memory, None, num_retrieved=1),
        SequenceSettings(seed=0, context_length=80, max_text_tokens=None, training=False),
    )
    assert SERIALIZER.documents(data.sequence(0, 2).tokens) == [
        memory.document(3),
        memory.document(2),
    ]


def test_the_query_itself_is_one_of_its_documents_as_often_as_is_asked(tmp_path: Path) -> None:
    """With all its parts; a sequence without documents stays so, and validation never copies."""
    copied: dict[float, list[int]] = {0.0: [], 0.25: [], 1.0: []}
    for share, counts in copied.items():
        data = make_data(tmp_path, own_share=share)
        for epoch in range(20):
            for index in range(20):
                *before, own = SERIALIZER.documents(data.sequence(epoch, index).tokens)
                if before:
                    counts.append(sum(one == own for one in before))
                    assert len(before) <= 2
    assert set(copied[0.0]) == {0}
    assert set(copied[1.0]) == {1}
    assert len(copied[1.0]) == len(copied[0.0]), "the number of documents stays"
    assert set(copied[0.25]) == {0, 1}
    assert abs(np.mean(copied[0.25]) - 0.25) < 4 * (0.25 * 0.75 / len(copied[0.25])) ** 0.5
    data = make_data(tmp_path, own_share=1.0, training=False)
    *before, own = SERIALIZER.documents(data.sequence(0, 3).tokens)
    assert len(before) == 2
    assert own not in before


def test_a_share_of_copies_that_is_no_share_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        compose("icons-svg", ["retriever.own_share=1.5"], registry=load_registry()).check()
    assert tells(
        caught.value,
        "retriever.own_share: is 1.5, must be at most 1.0\n  next: write retriever.own_share=1.0",
    )


def test_a_share_of_sequences_has_all_documents_of_both_facets(tmp_path: Path) -> None:
    """Of four neighbours, every second one is of a facet: where all two documents are there, each is of one."""
    data = make_data(tmp_path, size=40, full_share=0.6, num_facets=2)
    assert data.retrieved is not None
    numbers: Counter[int] = Counter()
    facets: Counter[tuple[int, ...]] = Counter()
    for index in range(4000):
        rng = np.random.default_rng((5, index))
        found = data.retrieved.draw(index % 40, rng)
        numbers[len(found)] += 1
        if len(found) == 2:
            ranks = [(_number(one) - index % 40 - 1) % 40 for one in found]
            assert len(set(ranks)) == 2
            assert max(ranks) < 4
            facets[tuple(rank % 2 for rank in ranks)] += 1
    for number, share in ((0, 0.4 / 3), (1, 0.4 / 3), (2, 0.6 + 0.4 / 3)):
        assert abs(numbers[number] / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5
    # two of one facet come only from the other sequences: a third of the pairs of four ranks
    same = (facets[0, 0] + facets[1, 1]) / 4000
    assert abs(same - 0.4 / 9) < 5 * (0.4 / 9 / 4000) ** 0.5
    assert abs(facets[0, 1] - facets[1, 0]) < 5 * (facets[0, 1] + facets[1, 0]) ** 0.5
    canonical = make_data(tmp_path, size=40, full_share=1.0, num_facets=2, training=False)
    assert canonical.retrieved is not None
    assert [_number(one) for one in canonical.retrieved.best(3)] == [4, 5]


def _number(document: Document) -> int:
    return int(text_of(document).split()[1])


@pytest.mark.parametrize(
    ("context_length", "next_step"),
    [
        (13, "set data.max_text_tokens to at most 7, or raise decoder.context_length"),
        (5, "raise decoder.context_length, or use a tokenizer with fewer codes"),
    ],
)
def test_a_query_that_does_not_fit_says_what_would(
    tmp_path: Path, context_length: int, next_step: str
) -> None:
    with pytest.raises(DocumentError) as caught:
        make_data(tmp_path, training=False, context_length=context_length).sequence(0, 0)
    assert tells(
        caught.value, f"document n0: 15 tokens (7 ... 8 ... {context_length + 1} ... {next_step}"
    )


def test_a_query_that_does_not_fit_is_replaced_in_training_always_the_same_way(
    tmp_path: Path,
) -> None:
    """Of 11 documents only "number 10" has 16 tokens; with its other caption, "n 10", it fits."""

    def queries(epochs: list[int]) -> dict[int, str]:
        data = make_data(tmp_path, 11, context_length=14, num_retrieved=0)
        found = {}
        for epoch in epochs:
            *_, query = SERIALIZER.documents(data.sequence(epoch, 10).tokens)
            found[epoch] = text_of(query)
        assert data.num_too_long == 1
        return found

    with pytest.warns(UserWarning, match="document n10 is skipped: 16 tokens") as reported:
        every = queries(list(range(200)))
    assert len(reported) == 1
    others = {text.split()[1] for text in every.values()}
    assert others == {str(number) for number in range(11)}
    assert "number 10" not in every.values()
    with pytest.warns(UserWarning, match="is skipped"):
        assert queries(list(range(199, -1, -1))) == dict(sorted(every.items(), reverse=True))


def test_training_stops_when_every_query_is_too_long(tmp_path: Path) -> None:
    data = make_data(tmp_path, context_length=5)
    with pytest.raises(DocumentError, match=r"document n3: .* the context holds 6"):
        data.sequence(0, 3)
    with pytest.raises(DocumentError, match="document n0: "):
        make_data(tmp_path, 1, context_length=5).sequence(0, 0)


def test_queries_that_do_not_fit_are_left_out_of_a_list(tmp_path: Path) -> None:
    data = make_data(tmp_path, 12, context_length=14, training=False, num_retrieved=0)
    with pytest.warns(UserWarning, match="document n10 is skipped: 16 tokens") as reported:
        sequences = data.fitting([3, 10, 7, 11])
    assert len(reported) == 1
    assert data.num_too_long == 2
    texts = [text_of(SERIALIZER.documents(sequence.tokens)[-1]) for sequence in sequences]
    assert texts == ["number 3", "number 7"]
    with pytest.raises(DocumentError, match="document n11: 16 tokens"):
        data.fitting([11, 10])
    assert data.fitting([]) == []


@pytest.mark.parametrize("training", [True, False])
def test_documents_stand_in_the_order_in_which_the_drawn_text_mentions_them(
    tmp_path: Path, training: bool
) -> None:
    """Of the caption that was drawn, not of the canonical one that found them."""

    class Backwards(Numbers):
        def _document(self, index: int, rng: np.random.Generator | None) -> Document:
            others = [(index + step) % self.size for step in (1, 2, 3)]
            drawn = [] if rng is None else rng.permutation(others).tolist()
            own = f"number {index}"
            text = f"{own} before {drawn}" if drawn and index == 0 else own
            return Text(text), Image(f"picture {index}", lambda: self.pixels(index))

    options = {"num_retrieved": 3, "context_length": 300, "random_num_retrieved": False}
    found = {}
    for order in ("rank", "mention"):
        data = make_data(
            tmp_path,
            source=Backwards(4),
            training=training,
            max_text_tokens=None,
            order=order,
            **options,
        )
        found[order] = [
            [document[0] for document in SERIALIZER.documents(data.sequence(epoch, 0).tokens)]
            for epoch in range(12)
        ]
    for *documents, query in found["mention"]:
        asked = re.findall(r"\d", query.text)[1:] or list("123")
        assert [document.text.split()[-1] for document in documents] == asked
    # without it, training draws the order, and the best come first otherwise
    drawn = {tuple(document.text for document in documents) for *documents, _ in found["rank"]}
    assert (len(drawn) > 3) is training


def test_a_memory_of_its_own(tmp_path: Path) -> None:
    """Validation: queries of one source, documents of another."""
    source, memory = Numbers(3, caption="question"), Numbers(9)
    neighbours = NeighbourTable(
        Queries(Following(memory), source, NeighbourSettings("f", num_ranks=2)),
        tmp_path,
        progress=False,
    )
    data = MaskedSequences(
        source,
        SERIALIZER,
        Plain(),
        CodeCache(source, Quadrants(), tmp_path, progress=False),
        RetrievedDocuments(
            neighbours,
            memory,
            CodeCache(memory, Quadrants(), tmp_path, progress=False),
            num_retrieved=1,
        ),
        SequenceSettings(seed=0, context_length=80, max_text_tokens=None, training=False),
    )
    texts = [document[0] for document in SERIALIZER.documents(data.sequence(0, 2).tokens)]
    assert texts == [Text("number 3"), Text("question 2")]


class PicturesOnly(ListSource):
    """A source whose fingerprint does not depend on texts, as with files."""

    fingerprint = "pictures"


def test_the_content_fingerprint_says_texts_pictures_and_order() -> None:
    picture, other = (Image(key, lambda: np.zeros((4, 4, 3), np.uint8)) for key in "pq")
    documents: list[list[Document]] = [
        [(Text("a"), picture), (Text("b"),)],
        [(Text("a"), picture), (Text("c"),)],
        [(Text("a"), other), (Text("b"),)],
        [(Text("b"),), (Text("a"), picture)],
    ]
    found = [PicturesOnly(some).content_fingerprint for some in documents]
    assert len(set(found)) == 4
    assert PicturesOnly(documents[0]).content_fingerprint == found[0]
    assert PicturesOnly(documents[0], ["x", "y"]).content_fingerprint != found[0]
    assert ListSource(documents[0]).content_fingerprint != found[0], (
        "the source's own fingerprint is part of it"
    )
