"""The retriever `pgvector` on a real server: the laws of retrievers, and the same results as `dense`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bank_parts import source, tools
from cm3core.document import Codes
from cm3core.errors import DataError, RecipeError
from cm3kits.retriever import HashEmbedder, ListSource, RetrieverContract, example_documents
from cm3plugins.retrievers import DenseRetrieverConfig
from cm3postgres import PgvectorRetrieverConfig
from cm3run.bank import MemoryBank, Shards, build_bank

pytest.importorskip("cm3postgres", reason="needs pip install ./plugins/cm3-postgres")

from cm3core.document import Text
from cm3postgres import transfer
from cm3postgres.schema import About
from messages import tells
from shared_memories import about, add, encoded, new_config, new_memory, vector_document


class TestPgvector(RetrieverContract):
    """Over a server of this process. The kit's documents are stored as codes; queries are the
    documents that they were made of, since nothing embeds codes."""

    max_examples = 8
    original = ListSource(example_documents())

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, postgres):
        cls.server, cls.opened = postgres, []
        cls.coded = {one.id: one for one in encoded(cls.original)}
        yield
        for memory in cls.opened:
            memory.close()

    def make(self):
        return self.over(self.memory())

    def over(self, memory):
        for other in self.opened:
            other.close()  # each is opened again when it is asked
        config, shared = new_memory(self.server, query="both")
        self.opened.append(shared)
        places = [index for index in range(len(memory)) if not memory.is_withheld(index)]
        known = [self.coded.get(memory.id(index)) for index in places]
        add(shared, known if None not in known else encoded(memory))
        return config.build(shared, HashEmbedder())

    def queries(self, data):
        one = st.one_of(
            st.integers(0, len(self.original) - 1).map(self.original.document),
            st.sampled_from(["red apple", "zzz", "thing number 3"]).map(lambda text: (Text(text),)),
        )
        return data.draw(st.lists(one, min_size=1, max_size=5))

    def law_nothing_asked_nothing_found(self):
        query = self.original.document(0)
        assert self.subject.retrieve([], 3) == []
        assert self.subject.retrieve([query, query], 0) == [[], []]

    def law_a_negative_count_is_refused(self):
        with pytest.raises(DataError, match="num_retrieved: is -1"):
            self.subject.retrieve([self.original.document(0)], -1)


@pytest.mark.parametrize(
    "rules",
    [{}, {"query": "union", "prefer_both": True, "max_redundancy": 0.5}, {"min_similarity": 0.3}],
)
def test_it_finds_what_dense_finds(postgres, tmp_path, rules):
    build_bank(source(24), tmp_path / "bank", tools(), Shards(size=7), progress=False)
    bank = MemoryBank.open(tmp_path / "bank")
    config = new_config(postgres, **rules)
    memory = transfer.new_memory(config, bank)
    transfer.push(bank, memory, lambda name: About(), progress=False)
    queries = [source(40).document(index) for index in range(40)]
    ours = config.build(memory, HashEmbedder()).retrieve(queries, 5)
    theirs = DenseRetrieverConfig(**rules).build(bank, HashEmbedder()).retrieve(queries, 5)
    for one, other in zip(ours, theirs, strict=True):
        assert [(f.index, f.id, f.found_by, f.preferred) for f in one] == [
            (f.index, f.id, f.found_by, f.preferred) for f in other
        ]
        np.testing.assert_allclose([f.score for f in one], [f.score for f in other], atol=2e-6)
        for found in one:
            for part, stored in zip(
                memory.document(found.index), bank.document(found.index), strict=True
            ):
                assert type(part) is type(stored)
                assert part == stored
                assert not isinstance(part, Codes) or part.codes.dtype == np.int32


class TwoNumbers(HashEmbedder):
    """Texts "x y" as the direction (x, y)."""

    def __init__(self):
        super().__init__(2)

    def _embed_texts(self, texts):
        return np.array([list(map(float, text.split())) for text in texts], np.float32)


def test_scores_by_hand(postgres):
    """(3, 4)/5 with (1, 0) and (0, 1): 0.6 and 0.8; and (4, 3)/5: 0.96."""
    config, memory = new_memory(postgres, 2)
    add(memory, [vector_document(*pair) for pair in (("x", (1, 0)), ("y", (0, 1)), ("z", (4, 3)))])
    found = config.build(memory, TwoNumbers()).retrieve([(Text("3 4"),)], 3)[0]
    assert [(one.index, one.id, one.score) for one in found] == [
        (2, "z", 0.96),
        (1, "y", 0.8),
        (0, "x", 0.6),
    ]


@pytest.fixture(scope="module")
def styled(postgres):
    """60 documents in 4 dimensions, of licences a, b, of sources s0..s4, of the style "rare" or none."""
    config, memory = new_memory(postgres, 4)
    vectors = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    documents = [vector_document(f"d{i}", vector) for i, vector in enumerate(vectors)]
    abouts = {
        f"d{i}": about("ab"[i % 2], f"s{i % 5}", "rare" if i in (7, 41) else "") for i in range(60)
    }
    add(memory, documents, lambda one: abouts[one.id])
    return config, memory, documents, abouts


@settings(max_examples=15)
@given(data=st.data())
def test_filters_are_those_of_an_oracle(styled, data):
    config, memory, documents, abouts = styled
    chosen = {
        "licences": data.draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=2)),
        "sources": data.draw(st.lists(st.sampled_from(["s0", "s3", "s'; --"]), max_size=2)),
        "styles": data.draw(st.lists(st.sampled_from(["rare", "none of it"]), max_size=1)),
    }
    keys = {name: getattr(config, name) for name in ("host", "database", "user", "schema")}
    retriever = PgvectorRetrieverConfig(**keys, **chosen).build(memory, HashEmbedder(4))
    query = HashEmbedder(4).embed_documents([(Text("q"),)])[0]
    allowed = [
        one
        for one in documents
        for told in [abouts[one.id]]
        if (not chosen["licences"] or told.provenance.licence in chosen["licences"])
        and (not chosen["sources"] or told.provenance.source in chosen["sources"])
        and (not chosen["styles"] or told.style in chosen["styles"])
    ]
    expected = sorted(allowed, key=lambda one: -float(one.vector @ query))[:4]
    for search in (retriever, retriever.exact()):
        found = search.retrieve([(Text("q"),)], 4)[0]
        assert [one.id for one in found] == [one.id for one in expected]


def test_filtered_searches_are_planned_for_their_values(styled):
    """After five runs PostgreSQL would plan for any value. Such a plan walks the graph, whatever passes."""
    config, memory, *_ = styled
    keys = {name: getattr(config, name) for name in ("host", "database", "user", "schema")}
    retriever = PgvectorRetrieverConfig(**keys, sources=["s3"]).build(memory, HashEmbedder(4))
    memory.database.close()  # a new connection has no statements
    for _ in range(8):
        assert len(retriever.retrieve([(Text("q"),)], 2)[0]) == 2
    plans = memory.database.run(
        lambda connection: connection.execute(
            "SELECT generic_plans, custom_plans FROM pg_prepared_statements "
            "WHERE statement LIKE '%source = ANY%'"
        ).fetchall()
    )
    assert plans == [(0, 8)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"schema": 'a"; DROP SCHEMA public --'},
            "retriever.schema: is 'a\"; DROP SCHEMA public --' ... 0 to 9",
        ),
        (
            {"database": "postgresql://me:hunter2@db/art"},
            "retriever.database: is a connection string, but it",
        ),
        ({"host": ""}, "retriever.host: is empty"),
        (
            {"port": 70000},
            "retriever.port: is 70000, must ... most 65,535",
        ),
        (
            {"bank": "my/bank"},
            "retriever.bank: is set, but this retriever searches",
        ),
        (
            {"licences": ["a\0"]},
            "retriever.licences: holds a null character",
        ),
        (
            {"query": "txet"},
            "retriever.query: is 'txet'; did ... 'text'",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(RecipeError) as error:
        PgvectorRetrieverConfig(**options).check()
    assert tells(error.value, message)
    assert "hunter2" not in str(error.value)


def test_another_embedder_or_none(postgres):
    config, memory = new_memory(postgres, index=False)
    with pytest.raises(DataError) as error:
        config.build(memory, HashEmbedder(9))
    assert tells(error.value, f"{memory.place}: was built with ... 'hash'")
    with pytest.raises(RecipeError, match="needs an embedder, but the recipe has none"):
        config.build(memory, None)


def test_a_query_that_is_not_finite(postgres):
    class Broken(HashEmbedder):
        def embed_documents(self, documents):
            return np.full((len(documents), 8), np.nan, np.float32)

    config, memory = new_memory(postgres, index=False)
    add(memory, encoded(source(3)))
    with pytest.raises(DataError, match="query 0: its vector holds NaN or infinity"):
        config.build(memory, Broken()).retrieve([(Text("q"),)], 1)
