"""Retrievers over a memory bank: its own vectors, the same results as over its documents, never the
query's own document."""

from __future__ import annotations

import numpy as np
import pytest

from bank_parts import QuarterTokenizer, source, tools
from cm3core.errors import DataError
from cm3kits.retriever import HashEmbedder
from cm3plugins.retrievers import BM25RetrieverConfig, DenseRetrieverConfig, RandomRetrieverConfig
from cm3run.bank import MemoryBank, Shards, build_bank
from cm3run.training.code_cache import CodeCache
from cm3run.training.neighbours import NeighbourSettings, NeighbourTable, Queries
from messages import tells


@pytest.fixture
def bank(tmp_path, monkeypatch):
    """24 documents of every sort, under other ids than the data set's."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    build_bank(
        source(24), tmp_path / "bank", tools(), Shards(size=7, id_prefix="other/"), progress=False
    )
    return MemoryBank.open(tmp_path / "bank")


@pytest.mark.parametrize(
    "settings", [{}, {"query": "union", "prefer_both": True, "max_redundancy": 0.5}]
)
def test_it_finds_what_is_found_among_the_documents(bank, settings):
    queries = [source(40).document(index) for index in range(40)]
    over_bank = DenseRetrieverConfig(**settings).build(bank, HashEmbedder())
    over_source = DenseRetrieverConfig(**settings).build(source(24), HashEmbedder())
    for one, other in zip(
        over_bank.retrieve(queries, 5), over_source.retrieve(queries, 5), strict=True
    ):
        assert [(found.id, found.found_by, found.preferred) for found in one] == [
            (f"other/{found.id}", found.found_by, found.preferred) for found in other
        ]
        np.testing.assert_allclose(
            [found.score for found in one], [found.score for found in other], atol=2e-6
        )


def test_nothing_is_embedded_and_no_document_is_read_before_it_is_found(bank, monkeypatch):
    read: list[int] = []

    def listening(of):
        def method(self, index, *rest):
            read.append(index)
            return of(self, index, *rest)

        return method

    for name in ("id", "content_keys", "_document"):
        monkeypatch.setattr(MemoryBank, name, listening(getattr(MemoryBank, name)))
    monkeypatch.setattr(HashEmbedder, "_embed_images", None)
    retriever = DenseRetrieverConfig(prefer_both=True).build(bank, HashEmbedder())
    assert bank.content_fingerprint == bank.fingerprint
    assert read == []
    found = retriever.retrieve([source(1).document(0)], 2)[0]
    assert set(read) == {result.index for result in found}


def test_a_bank_of_another_embedder_is_refused(bank):
    with pytest.raises(DataError) as error:
        DenseRetrieverConfig().build(bank, HashEmbedder(9))
    assert tells(error.value, f"{bank.folder}: was built with ... 'hash' ... DATA --model MODEL")


@pytest.mark.parametrize(
    "config",
    [
        DenseRetrieverConfig(),
        DenseRetrieverConfig(query="image"),
        BM25RetrieverConfig(),
        RandomRetrieverConfig(),
    ],
)
def test_in_training_never_the_documents_own(bank, config, tmp_path):
    """All 24 are asked for; what is missing in a row is the query's own document, under whatever
    id."""
    queries = source(24)
    codes = CodeCache(queries, QuarterTokenizer(), tmp_path, progress=False)
    table = NeighbourTable(
        Queries(
            config.build(bank, HashEmbedder()), queries, NeighbourSettings("f", num_ranks=24), codes
        ),
        tmp_path,
        progress=False,
    )
    for index in range(24):
        found = table.neighbours(index)
        assert index not in found
        assert isinstance(config, BM25RetrieverConfig) or len(found) == 23
