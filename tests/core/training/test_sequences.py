"""Codes and neighbours on disk (also after SIGKILL), sequences as functions of (seed, epoch,
index), batches that resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import (
    Document,
    Image,
    IntArray,
    MaskedSequence,
    PixelArray,
    Text,
    TokenSequence,
    content_keys,
    text_of,
)
from cm3core.errors import CheckpointError, DataError, DocumentError
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3core.interfaces.objective import MaskingObjective
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig
from cm3core.sequence import loss_weights, unmask
from cm3core.sequence.packing import TrainingBatch
from cm3core.sequence.serialize import Serializer
from cm3core.testing.retriever import ListSource
from cm3core.training.neighbours import with_words_left_out
from cm3core.training.sequences import (
    BatchLoader,
    CodeCache,
    NeighbourTable,
    TrainingData,
    retriever_fingerprint,
)
from cm3core.vocab import Vocabulary
from cm3plugins.objectives.cm3 import CM3ObjectiveConfig
from cm3plugins.text_tokenizers.byte import ByteTokenizer


class Quadrants(ImageTokenizer):
    """Four codes: the brightness of each quadrant of a 4 x 4 picture, 0..15. Counts the pictures;
    may be slow."""

    image_size = (4, 4)
    grid = (2, 2)
    codebook_size = 16
    fingerprint = "quadrants"

    def __init__(self, seconds: float = 0.0) -> None:
        self.encoded, self.seconds = 0, seconds

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        self.encoded += len(pixels_NHWC)
        time.sleep(self.seconds)
        return (pixels_NHWC[:, ::2, ::2, 0].reshape(-1, 4) // 16).astype(np.int32)

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        raise NotImplementedError


class Numbers(DocumentSource):
    """Documents "number i" with a picture made of i; with a generator the caption is one of two.
    Some pictures may be broken."""

    fingerprint = "numbers"

    def __init__(self, size: int, broken: Collection[int] = (), caption: str = "number") -> None:
        self.size, self.broken, self.caption = size, broken, caption

    def __len__(self) -> int:
        return self.size

    def id(self, index: int) -> str:
        return f"n{index}"

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        caption = self.caption if rng is None or rng.random() < 0.5 else "n"
        return Text(f"{caption} {index}"), Image(f"picture {index}", lambda: self.pixels(index))

    def pixels(self, index: int) -> PixelArray:
        if index in self.broken:
            raise DataError(f"n{index}.png", "is not a picture", "replace it")
        quadrants = (
            np.asarray([index // 256 % 16, index // 16 % 16, index % 16, 7], np.uint8).reshape(2, 2)
            * 16
        )
        return np.repeat(quadrants.repeat(2, 0).repeat(2, 1)[:, :, None], 3, axis=2)


class Following(Retriever):
    """Finds the next numbers of a circle."""

    def __init__(self, memory: DocumentSource) -> None:
        self._memory, self.queries = memory, 0

    @property
    def memory(self) -> DocumentSource:
        return self._memory

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        self.queries += len(queries)
        results = []
        for query, banned in zip(queries, exclude, strict=True):
            assert isinstance(query[0], Text)
            first = int(query[0].text.split()[1])
            ranks = [(first + step) % len(self._memory) for step in range(len(self._memory))]
            results.append(
                [
                    Retrieved(index, f"n{index}", 1.0)
                    for index in ranks
                    if f"n{index}" not in banned
                ][:num_retrieved]
            )
        return results


class Plain(MaskingObjective):
    """Nothing is masked, but room is asked for."""

    max_added_tokens = 6

    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        return MaskedSequence(sequence.tokens, sequence.cells, loss_weights(sequence, VOCABULARY))


VOCABULARY = Vocabulary(num_text=260, num_image=16, num_sentinels=32)
SERIALIZER = Serializer(VOCABULARY, ByteTokenizer(), (2, 2))


def make_data(
    folder: Path,
    size: int = 20,
    *,
    num_retrieved: int = 2,
    context_length: int = 80,
    seed: int = 0,
    training: bool = True,
    objective: MaskingObjective | None = None,
    broken: Collection[int] = (),
    random_num_retrieved: bool = True,
    max_text_tokens: int | None = 20,
) -> TrainingData:
    source = Numbers(size, broken)
    codes = CodeCache(source, Quadrants(), folder, progress=False)
    neighbours = NeighbourTable(
        Following(source), source, folder, fingerprint="following", num_ranks=4, progress=False
    )
    config = RetrieverConfig(num_retrieved=num_retrieved, random_num_retrieved=random_num_retrieved)
    return TrainingData(
        source,
        SERIALIZER,
        objective or Plain(),
        codes,
        neighbours,
        source,
        config,
        seed,
        context_length,
        max_text_tokens,
        training=training,
    )


# ---- codes on disk


def test_codes_are_computed_once(tmp_path: Path) -> None:
    source, first, second = Numbers(300), Quadrants(), Quadrants()
    cache = CodeCache(source, first, tmp_path, progress=False, shard_size=64)
    again = CodeCache(source, second, tmp_path, progress=False)
    assert (first.encoded, second.encoded) == (300, 0)
    for index in (0, 17, 299):
        assert again.codes(f"picture {index}") == cache.codes(f"picture {index}")
        assert cache.codes(f"picture {index}").codes.tolist() == [
            index // 256,
            index // 16 % 16,
            index % 16,
            7,
        ]
    assert cache.encoded(source.document(5)) == (Text("number 5"), cache.codes("picture 5"))
    assert sorted(path.name for path in cache.folder.iterdir()) == ["lock", "rows.npy"]


def test_other_pictures_have_another_folder(tmp_path: Path) -> None:
    assert (
        CodeCache(Numbers(3), Quadrants(), tmp_path, progress=False).folder
        != CodeCache(Numbers(4), Quadrants(), tmp_path, progress=False).folder
    )


def test_broken_pictures_are_skipped_and_counted(tmp_path: Path) -> None:
    for _ in range(2):  # computed, then read
        cache = CodeCache(
            Numbers(10, broken=[3, 7]), Quadrants(), tmp_path, progress=False, shard_size=4
        )
        assert [(record.place, record.cause) for record in cache.skipped] == [
            ("n3.png", "is not a picture"),
            ("n7.png", "is not a picture"),
        ]
        assert "picture 3" not in cache
        assert not cache.usable(Numbers(10).document(7))
    data = make_data(tmp_path, 10, broken=[3, 7], random_num_retrieved=False)
    assert data.indices.tolist() == [0, 1, 2, 4, 5, 6, 8, 9]
    texts = [
        document[0]
        for index in range(len(data))
        for document in SERIALIZER.documents(data.sequence(0, index).tokens)
    ]
    assert not any(
        text in (Text("number 3"), Text("n 3"), Text("number 7"), Text("n 7")) for text in texts
    )


def test_only_broken_pictures_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        CodeCache(Numbers(2, broken=[0, 1]), Quadrants(), tmp_path, progress=False)
    assert str(caught.value) == (
        "n0.png: is not a picture; and none of the 2 pictures can be read\n  next: replace it"
    )


def test_damaged_rows_are_explained(tmp_path: Path) -> None:
    folder = CodeCache(Numbers(3), Quadrants(), tmp_path, progress=False).folder
    whole = (folder / "rows.npy").read_bytes()
    for damaged in (b"", whole[:-3], b"\x80\x04N."):
        (folder / "rows.npy").write_bytes(damaged)
        with pytest.raises(DataError, match=r"is damaged .*\n.*delete the folder"):
            CodeCache(Numbers(3), Quadrants(), tmp_path, progress=False)


def encode_slowly(folder: str) -> None:
    """What the killed process runs."""
    CodeCache(Numbers(40), Quadrants(seconds=0.05), Path(folder), progress=False, shard_size=4)


def test_shards_survive_sigkill(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_sequences; "
        f"test_sequences.encode_slowly({str(tmp_path)!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("codes/*/shard-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    tokenizer = Quadrants()
    cache = CodeCache(Numbers(40), tokenizer, tmp_path, progress=False, shard_size=4)
    assert 0 < tokenizer.encoded <= 28
    assert [cache.codes(f"picture {index}").codes[2] for index in range(40)] == [
        index % 16 for index in range(40)
    ]


# ---- neighbours on disk


def test_neighbours_are_computed_once_and_never_oneself(tmp_path: Path) -> None:
    source = Numbers(10)
    for expected in (10, 0):
        retriever = Following(source)
        table = NeighbourTable(
            retriever, source, tmp_path, fingerprint="f", num_ranks=3, progress=False, shard_size=4
        )
        assert retriever.queries == expected
        assert table.neighbours(8) == [9, 0, 1]
    few = NeighbourTable(
        Following(Numbers(2)), Numbers(2), tmp_path, fingerprint="f", num_ranks=3, progress=False
    )
    assert few.neighbours(0) == [1]


class Stopping(Following):
    """Ctrl-C with the third call."""

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        if self.queries == 8:
            raise KeyboardInterrupt
        return super()._retrieve(queries, num_retrieved, exclude)


def test_neighbours_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    source = Numbers(20)
    retriever = Following(source)
    with pytest.raises(KeyboardInterrupt):
        NeighbourTable(
            Stopping(source),
            source,
            tmp_path,
            fingerprint="f",
            num_ranks=3,
            progress=False,
            shard_size=4,
        )
    table = NeighbourTable(
        retriever, source, tmp_path, fingerprint="f", num_ranks=3, progress=False, shard_size=4
    )
    assert retriever.queries == 12
    assert [table.neighbours(index)[0] for index in range(20)] == [*range(1, 20), 0]


def test_neighbours_have_a_folder_for_all_that_decides_them(tmp_path: Path) -> None:
    def folder(
        source: Numbers | None = None, name: str = "f", ranks: int = 2, **settings: Any
    ) -> Path:
        source = source or Numbers(4)
        return NeighbourTable(
            Listening(source),
            source,
            tmp_path,
            fingerprint=name,
            num_ranks=ranks,
            progress=False,
            **settings,
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
    """Remembers what it was asked."""

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


def listened(source: DocumentSource, folder: Path, **settings: Any) -> Listening:
    retriever = Listening(source)
    NeighbourTable(
        retriever, source, folder, fingerprint="f", num_ranks=2, progress=False, **settings
    )
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
    """Documents of eight words, in an order of their own."""

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


# ---- sequences


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


def test_how_many_and_which_documents_stand_in_front(tmp_path: Path) -> None:
    """0..2 equally often; each of the four ranks kept equally often; both captions; both orders;
    never the query itself."""
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
    """k pairs have 14 k + 1 tokens, six more are kept for masking, and the last token is no
    input."""
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
                "a query with 2 retrieved documents has 43 tokens, and decoder.context_length "
                f"{context_length} has room for "
                f"{context_length - 5} beside those of masking: such queries get fewer, this one "
                f"{expected - 1} (said once); set "
                f"retriever.num_retrieved={expected - 1}, or decoder.context_length to 48 or more"
            ]


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
    """A memory bank's documents are codes already; nothing is looked up."""
    source, whole = Numbers(5, broken=[3]), Numbers(5)
    codes = CodeCache(source, Quadrants(), tmp_path / "source", progress=False)
    kept = CodeCache(whole, Quadrants(), tmp_path / "memory", progress=False)
    memory = ListSource(
        [kept.encoded(whole.document(index)) for index in range(5)],
        [f"n{index}" for index in range(5)],
    )
    neighbours = NeighbourTable(
        Following(memory),
        source,
        tmp_path,
        fingerprint="f",
        codes=codes,
        num_ranks=2,
        progress=False,
    )
    data = TrainingData(
        source,
        SERIALIZER,
        Plain(),
        codes,
        neighbours,
        memory,
        RetrieverConfig(num_retrieved=1),
        0,
        80,
        None,
        training=False,
    )
    assert SERIALIZER.documents(data.sequence(0, 2).tokens) == [
        memory.document(3),
        memory.document(2),
    ]


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
    assert str(caught.value) == (
        f"document n0: 15 tokens (7 of pictures and separators, 8 of text), the context holds "
        f"{context_length + 1}\n  next: {next_step}"
    )


def test_a_memory_of_its_own(tmp_path: Path) -> None:
    """Validation: queries of one source, documents of another."""
    source, memory = Numbers(3, caption="question"), Numbers(9)
    neighbours = NeighbourTable(
        Following(memory), source, tmp_path, fingerprint="f", num_ranks=2, progress=False
    )
    data = TrainingData(
        source,
        SERIALIZER,
        Plain(),
        CodeCache(source, Quadrants(), tmp_path, progress=False),
        neighbours,
        memory,
        RetrieverConfig(num_retrieved=1),
        0,
        80,
        None,
        training=False,
        memory_codes=CodeCache(memory, Quadrants(), tmp_path, progress=False),
    )
    texts = [document[0] for document in SERIALIZER.documents(data.sequence(0, 2).tokens)]
    assert texts == [Text("number 3"), Text("question 2")]


# ---- batches


def test_an_epoch_has_every_sequence_once(tmp_path: Path) -> None:
    data = make_data(tmp_path, num_retrieved=0)
    loader = BatchLoader(data, 4, 80, seed=0, window=1)
    seen = []
    while loader.epoch < 2:
        batch = next(loader)
        for row, starts in zip(batch.tokens_BT.tolist(), batch.positions_BT.tolist(), strict=True):
            bounds = [
                place
                for place, position in enumerate(starts)
                if position == 0 and row[place] != VOCABULARY.pad
            ]
            seen += [row[start + 1 : row.index(VOCABULARY.break_, start)] for start in bounds]
    names = [bytes(token - 4 for token in tokens).decode().split()[1] for tokens in seen]
    for epoch in range(2):
        assert sorted(names[20 * epoch : 20 * epoch + 20], key=int) == [
            str(index) for index in range(20)
        ]
    assert names[:20] != names[20:40]


def equal(left: TrainingBatch, right: TrainingBatch) -> bool:
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in vars(left))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_batches_go_on_bit_for_bit(tmp_path: Path, pack: bool, stop: int) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(make_data(tmp_path), 3, 90, seed=5, pack=pack, window=6)

    whole, first, second = loader(), loader(), loader()
    for _ in range(stop):
        assert equal(next(whole), next(first))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(9):
        assert equal(next(whole), next(second))


def test_processes_share_an_epoch(tmp_path: Path) -> None:
    orders = [
        BatchLoader(make_data(tmp_path), 2, 90, seed=0, rank=rank, world_size=3)._order
        for rank in range(3)
    ]
    assert [len(order) for order in orders] == [6, 6, 6]
    assert len(set().union(*orders)) == 18


def test_a_state_of_other_data_is_refused(tmp_path: Path) -> None:
    state = BatchLoader(make_data(tmp_path), 2, 90, seed=0).state_dict()
    with pytest.raises(CheckpointError) as caught:
        BatchLoader(make_data(tmp_path, 19), 2, 90, seed=0).load_state_dict(state)
    assert str(caught.value) == (
        "loader state: num_documents was 20, is now 19\n"
        "  next: go on with the same data, recipe and number of processes"
    )


def test_the_loader_feeds_twenty_training_loops(tmp_path: Path) -> None:
    """Captions, documents in front, serialising, masking and packing of 500-token sequences: 20 *
    9,000 tokens a second."""

    class Large(Quadrants):
        grid = (16, 16)
        fingerprint = "large"

        def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
            return np.zeros((len(pixels_NHWC), 256), np.int32)

    source = Numbers(60)
    data = TrainingData(
        source,
        Serializer(VOCABULARY, ByteTokenizer(), (16, 16)),
        CM3ObjectiveConfig().build(VOCABULARY),
        CodeCache(source, Large(), tmp_path, progress=False),
        NeighbourTable(Following(source), source, tmp_path, fingerprint="f", progress=False),
        source,
        RetrieverConfig(num_retrieved=1, random_num_retrieved=False),
        0,
        600,
        64,
    )
    masked = data.sequence(0, 0)
    assert len(unmask(masked, VOCABULARY)) > 500
    loader = BatchLoader(data, 8, 600, seed=0)
    next(loader)
    best = 0.0
    for _ in range(4):
        start = time.process_time()
        tokens = sum(next(loader).num_tokens for _ in range(8))
        best = max(best, tokens / (time.process_time() - start))
    assert best > 20 * 9000, f"{best:.0f} tokens a second"


class PicturesOnly(ListSource):
    """A source whose own fingerprint says nothing of texts, as that of files."""

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
