"""`cm3 memory recall`: what counts as found, text and image queries apart, the verdict, and the
command on a bank."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3apps.cli import _memory_recall as memory_recall
from cm3apps.cli.main import main
from cm3core.document import Codes, Image, Text
from cm3core.errors import DataError
from cm3core.images import save_png
from cm3core.interfaces.retriever import Retrieved, Retriever
from cm3kits.retriever import HashEmbedder, ListSource, example_documents
from cm3plugins.retrievers import DenseRetrieverConfig
from messages import tells


def results(*scores):
    """Results numbered by their scores: 0.9 is document 90."""
    return [Retrieved(round(100 * score), str(score), score) for score in scores]


# ---- what counts


def test_recall_by_hand():
    """First query: 1 of 2, then 3 of 4. Second: it has one near document only, found."""
    nearest = [results(0.9, 0.8, 0.7, 0.6), results(0.5)]
    found = [results(0.9, 0.7, 0.6, 0.5), results(0.5)]
    assert memory_recall.recall_at(2, found, nearest) == (1 + 1) / 3
    assert memory_recall.recall_at(4, found, nearest) == (3 + 1) / 5
    assert memory_recall.recall_at(4, nearest, nearest) == 1
    assert memory_recall.recall_at(1, [[]], nearest[:1]) == 0
    assert np.isnan(memory_recall.recall_at(3, [[]], [[]]))


def test_equal_documents_count_once_each():
    """Of three equal ones two are wanted; one of them and another one: both count. Two others for
    one: one counts."""
    a, b, c, d = (Retrieved(index, str(index), 0.5) for index in range(4))
    assert memory_recall.recall_at(2, [[a, c]], [[a, b]]) == 1
    assert memory_recall.recall_at(2, [[c, d]], [[a, Retrieved(9, "9", 0.1)]]) == 0.5


@given(
    st.lists(st.integers(0, 20), max_size=8, unique=True),
    st.lists(st.integers(0, 20), min_size=1, max_size=8, unique=True),
    st.integers(1, 9),
)
def test_without_ties_recall_is_a_share_of_a_set(found, nearest, k):
    """All scores differ, so it is the size of an intersection."""
    some, best = (
        [Retrieved(index, str(index), -index / 100) for index in numbers]
        for numbers in (found, nearest)
    )
    assert memory_recall.recall_at(k, [some], [best]) == len({*found[:k]} & {*nearest[:k]}) / len(
        nearest[:k]
    )


# ---- queries


def test_texts_and_pictures_are_asked_apart_and_never_find_their_own():
    pixels = np.zeros((2, 2, 3), np.uint8)
    source = ListSource(
        [
            (Text("red apple"), Image("p", pixels.copy)),
            (Text("  "), Image("q", pixels.copy)),
            (Text("pear"),),
        ]
    )
    text, image = memory_recall.queries_of(source, 10, None)
    assert text.documents == [(Text("red apple"),), (Text("pear"),)]
    assert [[segment.key for segment in document] for document in image.documents] == [["p"], ["q"]]
    assert text.exclude[0] == image.exclude[0] == {"d0", "image:p"}
    assert text.exclude[1] == {"d2", *source.content_keys(2)}


def test_codes_are_drawn_and_unreadable_pictures_left_out():
    def unreadable():
        raise DataError("p.png", "is no picture", "remove it")

    class Tokenizer:
        def decode(self, codes):
            return np.full((1, 1, 1, 3), codes[0, 0], np.uint8)

    source = ListSource(
        [(Codes(np.array([7], np.int32), (1, 1)),), (Text("pear"), Image("p", unreadable))]
    )
    text, image = memory_recall.queries_of(source, 2, Tokenizer())
    assert [document[0].load().tolist() for document in image.documents] == [[[[7, 7, 7]]]]
    assert text.documents == [(Text("pear"),)]


def test_nothing_to_ask():
    with pytest.raises(DataError) as error:
        memory_recall.queries_of(ListSource([(Text(" "),)]), 5, None)
    assert tells(error.value, "the queries' data set: has neither texts nor pictures to")


# ---- measuring


class Lossy(Retriever):
    """A retriever that finds nothing but every second result of another one, for queries of one
    modality."""

    def __init__(self, whole, modality):
        self.whole, self.modality = whole, modality

    @property
    def memory(self):
        return self.whole.memory

    def exact(self):
        return self.whole

    def _retrieve(self, queries, num_retrieved, exclude):
        found = self.whole.retrieve(queries, 2 * num_retrieved, exclude)
        losing = [
            any(isinstance(part, Image if self.modality == "image" else Text) for part in query)
            for query in queries
        ]
        return [
            own[::2] if loses else own[:num_retrieved]
            for own, loses in zip(found, losing, strict=True)
        ]


def test_the_modality_that_loses_is_named():
    embedder = HashEmbedder()
    whole = DenseRetrieverConfig(query="both", cache=False).build(
        ListSource(example_documents(61)[:-1]), embedder
    )
    rows = {}
    for modality in ("text", "image"):
        queries = memory_recall.queries_of(whole.memory, 30, None)
        rows[modality] = [
            memory_recall.figures(Lossy(whole, modality), embedder, one, [1, 4, 8])
            for one in queries
        ]
        good, line = memory_recall.verdict(rows[modality], exact=False)
        assert not good
        assert line == (
            f"verdict: poor, it finds 0.500 of the 4 nearest documents of {modality} queries; "
            "0.95 is good\n"
            "  next: double retriever.nprobe (index ivf, pq) or retriever.ef_search (hnsw) until "
            "it is; with pq\n"
            "        also retriever.num_candidates; or use retriever.index=flat, which is exact but "
            "slow"
        )
    text, image = rows["image"]
    assert text.recall == {1: 1, 4: 1, 8: 1}
    assert image.recall == {1: 1, 4: 0.5, 8: 0.5}
    assert 0 < image.median_ms <= image.p90_ms
    assert min(image.embedding_ms, image.batch_ms, image.exact_ms) > 0
    shown = memory_recall.table([text, image]).splitlines()
    assert shown[0].split() == [
        *(f"recall@{k}" if k else "queries" for k in (0, 1, 4, 8)),
        *["ms/query:", "median", "p90", "embedding", "in", "a", "batch", "exact"],
    ]
    assert [row.split()[:5] for row in shown[1:]] == [
        [f"{text.num_queries}", "text", "1.000", "1.000", "1.000"],
        [f"{image.num_queries}", "image", "1.000", "0.500", "0.500"],
    ]


def figures(recall):
    return memory_recall.Figures("text", 5, recall, 1.0, 1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("recall", "exact", "good", "line"),
    [
        ({4: 0.95}, False, True, "verdict: good, at least 0.95 of the nearest documents are found"),
        (
            {1: 0.2, 4: 0.96, 10: 0.2},
            False,
            True,
            "verdict: good, at least 0.95 of the nearest documents are found",
        ),
        (
            {2: 0.9, 9: 1.0},
            False,
            False,
            "verdict: poor, it finds 0.900 of the 2 nearest documents of text queries; 0.95 is "
            "good",
        ),
        ({4: 1.0}, True, True, "verdict: exact, no document is missed"),
        (
            {4: float("nan")},
            False,
            True,
            "verdict: none; the retriever's thresholds leave no documents to find",
        ),
    ],
)
def test_verdicts(recall, exact, good, line):
    found = memory_recall.verdict([figures(recall)], exact=exact)
    assert (found[0], found[1].splitlines()[0]) == (good, line)


# ---- the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--queries", "0"],
            "error: cm3 memory recall: argument --queries: is '0', must be a whole number from 1 to 1,099,511,627,776\n"
            "  next: see `cm3 memory recall --help`\n",
        ),
        (
            ["--k", "4", "-1"],
            "error: cm3 memory recall: argument --k: is '-1', must be a whole number from 1 to 2,147,483,647\n"
            "  next: see `cm3 memory recall --help`\n",
        ),
        (
            ["dataset=emoji", "dataset.styles=[noto]", "dataset.split=comp", "--k", "4", "5000"],
            "error: --k 5000: can't be measured: the memory has SIZE documents\n  next: use SIZE or less\n",
        ),
        (
            ["retriever=dense", "retriever.index=flt"],
            "error: retriever.index: is 'flt'; did you mean 'flat'?\n  next: use one of them\n",
        ),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert main(["memory", "recall", "quickstart", *arguments]) == 2
    said = capsys.readouterr().err
    if "SIZE" in message:
        said = re.sub(r"\b\d{2,3}\b(?= documents| or less)", "SIZE", said)
    assert said == message


def test_a_recipe_without_a_retriever(capsys):
    assert main(["memory", "recall", "tokenizer-emoji64"]) == 2
    assert tells(
        capsys.readouterr().err,
        "error: cm3 memory recall tokenizer-emoji64: the recipe has no retriever",
    )


def test_a_bank_is_asked_by_text_and_by_picture(tmp_path, capsys):
    """The bank's pictures are codes, which are drawn to be asked for; then a data set's are
    asked."""
    colours = {
        "red": (200, 30, 30),
        "green": (30, 160, 60),
        "blue": (30, 60, 200),
        "white": (250, 250, 250),
    }
    for name, colour in colours.items():
        save_png(tmp_path / "data" / f"{name}.png", np.full((64, 64, 3), colour, np.uint8))
        (tmp_path / "data" / f"{name}.txt").write_text(f"a {name} square")
    data, bank = str(tmp_path / "data"), str(tmp_path / "bank")
    assert main(["memory", "build", data, "-o", bank, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["memory", "recall", bank, "--k", "1", "3"]) == 0
    first, _, text, image, verdict = capsys.readouterr().out.splitlines()
    assert first == (
        "memory: 4 documents; queries: texts and pictures of 4 documents of the memory, each "
        "excluded from its own "
        "results"
    )
    assert [line.split()[:4] for line in (text, image)] == [
        ["4", "text", "1.000", "1.000"],
        ["4", "image", "1.000", "1.000"],
    ]
    assert verdict == "verdict: exact, no document is missed"
    assert (
        main(["memory", "recall", bank, "retriever.index=ivf", "--data", data, "--split", "all"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "queries: texts and pictures of 4 documents of another data set of 4\n" in shown
    assert shown.endswith("verdict: good, at least 0.95 of the nearest documents are found\n")
    assert (tmp_path / "bank" / "index" / "ivf" / "manifest.json").exists()
