"""`cm3 bench retrieval`: the synthetic bank is what it says, recall and verdicts are counted right,
and the command runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3core.document import Codes, Text
from cm3lab.benchmarks.retrieval import report, runner, synthetic
from cm3run.bank import MemoryBank


@pytest.fixture(scope="module")
def towers() -> synthetic.Towers:
    return synthetic.Towers(2000, 64)


# ---- the synthetic bank


def test_vectors_are_unit_and_the_same_again(towers):
    blocks = list(towers.blocks(700))
    assert [len(block) for block in blocks] == [700, 700, 600]
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(blocks), axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(blocks[1], list(synthetic.Towers(2000, 64).blocks(700))[1])
    np.testing.assert_array_equal(towers.queries(9), synthetic.Towers(2000, 64).queries(9))


def test_texts_and_pictures_lie_apart_and_few_directions_matter(towers):
    """A modality gap: texts are nearer to texts than to pictures. And 24 directions hold most of
    what varies."""
    texts, images = np.split(towers.queries(300), 2)
    assert (texts @ texts.T).mean() > 0.3 + (texts @ images.T).mean()
    rows = np.concatenate(list(towers.blocks()))
    shares = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    assert shares[: synthetic.LATENT].sum() > 0.75 * shares.sum()


def test_documents_of_a_concept_are_nearest_to_its_queries(towers):
    """Clusters: a query's nearest document is far nearer than the middle one."""
    scores = towers.queries(50) @ np.concatenate(list(towers.blocks())).T
    spread = scores.std(1)
    assert ((scores.max(1) - np.median(scores, 1)) / spread > 1.5).mean() > 0.9


def test_the_bank_is_a_bank(tmp_path, towers, monkeypatch):
    monkeypatch.setattr(synthetic, "SHARD_ROWS", 900)
    small = synthetic.Towers(1000, 8)
    synthetic.write_bank(tmp_path / "bank", small)
    bank = MemoryBank.open(tmp_path / "bank")
    assert bank.verify() == []
    assert (len(bank), bank.id(999)) == (1000, "d999")
    text, codes = bank.document(999)
    assert text == Text("document 999")
    assert isinstance(codes, Codes)
    np.testing.assert_array_equal(
        bank.vectors.take([950])[0], np.concatenate(list(small.blocks()))[950]
    )


def test_a_table_embedder_knows_its_queries(towers):
    vectors = towers.queries(7)
    embedder, documents = synthetic.TableEmbedder(vectors), synthetic.query_documents(7)
    found = embedder.embed_documents([*documents["text"], *documents["image"]])
    np.testing.assert_allclose(found, vectors, atol=1e-6)


# ---- counting


def test_recall_by_hand():
    assert (
        runner.recall(np.array([[1, 2, -1], [5, 4, 3]]), np.array([[2, 3, 4], [3, 4, 5]])) == 4 / 6
    )


def index_row(name, recall, ms, times=1.0):
    asked = {
        "num_queries": 3,
        "search_ms": ms / 2,
        "search_ms_p90": ms,
        "retrieve_ms": ms,
        "retrieve_ms_p90": ms,
    }
    return {
        "part": "index",
        "index": name,
        "description": "it",
        "build_s": 1.0,
        "build_bytes": 1,
        "open_s": 1.0,
        "open_bytes": 1,
        "file_bytes": 1,
        "curve": [],
        "queries": {"text": asked | {"recall": recall}, "image": asked | {"recall": 1.0}},
        "batches": [
            {
                "num_queries": 3,
                "retriever_ms": one,
                "index_ms": 1.0,
                "faiss_ms": 1.0,
                "retriever_x": one,
                "index_x": 1.0,
            }
            for one in (0.5, times)
        ],
    }


def test_verdicts_by_hand():
    rows = [
        index_row("flat", 1.0, 11.0, 1.3),
        index_row("ivf", 0.96, 2.0),
        index_row("pq", 0.94, 2.0),
        {"part": "open", "seconds": 1.5, "memory_bytes": 1},
        {"part": "loader", "share": 0.051, "recipe": "r", "steps": 2},
    ]
    assert report.verdicts(rows) == [
        "MISSED:  flat: batches take 1.30 times faiss called directly (goal: 1.2)",
        "met:     ivf: recall@4 0.960 in 2.00 ms per query (goal: 0.95, 10 ms)",
        "met:     ivf: batches take 1.00 times faiss called directly (goal: 1.2)",
        "MISSED:  pq: recall@4 0.940 in 2.00 ms per query (goal: 0.95, 10 ms)",
        "met:     pq: batches take 1.00 times faiss called directly (goal: 1.2)",
        "MISSED:  opening: 1.50 s, 0 MB (goal: 1 s, 1 GB)",
        "MISSED:  loader: 5.1% of a step (goal: 5%)",
    ]


# ---- the command


@pytest.mark.slow
def test_the_command_measures_everything(tmp_path, monkeypatch, capsys):
    loader = {"part": "loader", "recipe": "quickstart", "steps": 20, "share": 0.01}
    monkeypatch.setattr(runner, "loader_part", lambda registry, quick: loader)
    monkeypatch.setattr(
        "cm3lab.benchmarks.machine.roofs",
        lambda where, stopwatch: {"copy_bytes_per_s": 1e9, "flop_per_s": {}, "products": {}},
    )
    out = tmp_path / "results.json"
    assert (
        main(
            [
                "bench",
                "retrieval",
                "--num",
                "1000",
                "--dimension",
                "16",
                "--quick",
                "--folder",
                str(tmp_path / "here"),
                "-o",
                str(out),
            ]
        )
        == 0
    )
    document = json.loads(out.read_text())
    rows = document["results"]
    assert [row["part"] for row in rows] == [
        "bank",
        "open",
        "index",
        "index",
        "index",
        "index",
        "loader",
    ]
    assert [row["index"] for row in rows[2:6]] == ["flat", "ivf", "pq", "hnsw"]
    assert all(one["recall"] >= 0.9 for row in rows[2:6] for one in row["queries"].values())
    assert rows[2]["queries"]["text"]["recall"] == 1
    assert document["environment"]["faiss"]
    assert (tmp_path / "results-recall.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "here").iterdir()) == []  # nothing is left
    shown = capsys.readouterr().out
    assert "opening the bank: " in shown
    assert f"written: {out}, {tmp_path / 'results-recall.png'}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--num", "999"],
            "error: cm3 bench retrieval: argument --num: is '999', must be a whole number from 1,000 to 2,147,483,647\n"
            "  next: see `cm3 bench retrieval --help`\n",
        ),
        (
            ["--dimension", "4"],
            "error: cm3 bench retrieval: argument --dimension: is '4', must be a whole number from 8 to 65,536\n"
            "  next: see `cm3 bench retrieval --help`\n",
        ),
        (
            ["--index", "ifv"],
            "error: cm3 bench retrieval --index: no index is called 'ifv'; did you mean 'ivf'?\n",
        ),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert main(["bench", "retrieval", *arguments]) == 2
    assert capsys.readouterr().err.startswith(message.split("; did")[0])


@pytest.mark.slow
def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cm3lab.benchmarks.machine.roofs",
        lambda where, stopwatch: {"copy_bytes_per_s": 1e9, "flop_per_s": {}, "products": {}},
    )

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "curve", interrupted)
    out = tmp_path / "results.json"
    assert (
        main(
            [
                "bench",
                "retrieval",
                "--num",
                "1000",
                "--dimension",
                "16",
                "--quick",
                "--no-loader",
                "-o",
                str(out),
            ]
        )
        == 130
    )
    assert [row.get("index") for row in json.loads(out.read_text())["results"]] == [
        None,
        None,
        "flat",
    ]
    assert Path(tmp_path / "results-recall.png").exists()


def test_any_retriever_is_asked_beside_the_indexes(tmp_path: Path) -> None:
    """By its name, a plugin's too; one with a memory of its own can't be."""
    from cm3core.errors import CM3Error, PluginError
    from cm3core.plugins import load_registry
    from cm3lab.benchmarks.retrieval import engines
    from cm3lab.benchmarks.retrieval.synthetic import Towers, write_bank

    registry = load_registry()
    found = engines.retrievers_of(["random", "bundled/dense"], registry)
    assert [config.num_retrieved for config in found.values()] == [engines.NEAREST] * 2
    with pytest.raises(PluginError, match="no retriever is called 'densse'"):
        engines.retrievers_of(["densse"], registry)
    with pytest.raises(CM3Error, match="has its own memory"):
        engines.retrievers_of(["pgvector"], registry)
    towers = Towers(300, 8)
    write_bank(tmp_path / "bank", towers)
    rows: list[dict[str, object]] = []
    engines.run_engines(
        tmp_path / "bank",
        towers.queries(4),
        [],
        engines.Engines(others=found),
        rows.append,
    )
    recalls = {
        row["engine"]: [half["recall"] for half in row["queries"].values()]  # type: ignore[attr-defined]  # a dict
        for row in rows
    }
    assert recalls["bundled/dense"] == [1.0, 1.0]
    assert max(recalls["random"]) < 0.5
