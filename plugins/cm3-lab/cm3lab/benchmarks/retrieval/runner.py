"""Runs the benchmark: writes, opens, indexes and searches a bank; then runs a few training
steps.

Every part yields rows (plain dicts, as in the JSON). Times are wall-clock times; with one thread they are the
process's own time, which a busy machine hardly affects.

Legend: Q queries, W results per query, E numbers per vector.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cm3core.document import Document
from cm3core.interfaces.embedder import VectorArray
from cm3lab.benchmarks.retrieval.synthetic import (
    MODALITIES,
    TableEmbedder,
    Towers,
    query_documents,
    write_bank,
)
from cm3plugins.indexes.threads import num_threads
from cm3plugins.retrievers.dense import DenseRetrieverConfig, VectorRetriever
from cm3plugins.retrievers.index.approximate import MOST_TRIED, ApproximateIndex
from cm3plugins.retrievers.index.base import FlatIndex, RowArray, VectorIndex
from cm3plugins.retrievers.index.faiss_engines import FaissEngine
from cm3run.bank import MemoryBank
from cm3run.progress import make_bar

if TYPE_CHECKING:
    from cm3core.plugins import Registry

Row = dict[str, Any]
#: Number of results over which recall is computed: the paper prepends up to 3 documents.
NEAREST = 4
#: Queries per batch, and how often the batches of both sides alternate.
BATCHES, TURNS = (32, 256), 3
#: Queries of each modality per point of a curve, and single queries for an exact index, which
#: can be slow.
CURVE_QUERIES, NUM_EXACT = 100, 40
#: Prints the seconds for opening a bank, and the process's own memory in bytes. File pages don't count: the
#: system can reclaim them.
OPENING = """
import json, sys, time
from cm3run.bank import MemoryBank
from cm3lab.benchmarks.retrieval.runner import own_bytes
before, begin = own_bytes(), time.perf_counter()
bank = MemoryBank.open(sys.argv[1])
bank.document(len(bank) - 1), bank.vectors.row(len(bank) // 2)
print(json.dumps([time.perf_counter() - begin, own_bytes() - before]))
"""


@dataclass(frozen=True)
class Extent:
    """Sizes: documents, numbers per vector, queries of each modality."""

    num: int
    dimension: int
    num_queries: int


class Watched:
    """Measures the seconds of a block, and the peak growth of the process's own memory in bytes."""

    def __enter__(self) -> Watched:
        self._before = self._most = own_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._begin = _now()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = _now() - self._begin
        self._stop.set()
        self._thread.join()
        self.num_bytes = max(self._most, own_bytes()) - self._before

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._most = max(self._most, own_bytes())


def own_bytes() -> int:
    """Return the memory of this process that doesn't belong to a file."""
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def load() -> float | None:
    """Return the number of running and waiting processes, averaged over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _now() -> float:
    return time.process_time() if num_threads() == 1 else time.perf_counter()


def run_bank(
    folder: Path, extent: Extent, indexes: Sequence[str], done: Callable[[Row], None]
) -> None:
    """Measure everything about one bank.

    Args:
        folder: folder of the bank.
        extent: its size.
        indexes: types, of "flat", "ivf", "pq", "hnsw".
        done: called with each row.
    """
    towers = Towers(extent.num, extent.dimension)
    with Watched() as watched:
        write_bank(folder, towers)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    done(
        {
            "part": "bank",
            "num": extent.num,
            "dimension": extent.dimension,
            "seconds": watched.seconds,
            "file_bytes": size,
            "vector_bytes": 4 * extent.num * extent.dimension,
            "memory_bytes": watched.num_bytes,
        }
    )
    answer = subprocess.run(
        [sys.executable, "-c", OPENING, str(folder)], check=True, capture_output=True, text=True
    )
    seconds, num_bytes = json.loads(answer.stdout)
    done({"part": "open", "seconds": seconds, "memory_bytes": num_bytes})
    queries = _Queries.of(MemoryBank.open(folder), towers.queries(extent.num_queries))
    for name in indexes:
        done(_index_row(queries, name))


@dataclass(frozen=True)
class _Queries:
    """A bank, and the queries for each of its indexes.

    Args:
        bank: the bank in its folder.
        vectors_QE: vectors of the queries, one modality after the other.
        exact_QW: the rows to find.
        bare: a faiss flat index over the bank's vectors.
    """

    bank: MemoryBank
    vectors_QE: VectorArray
    exact_QW: RowArray
    bare: Any

    @classmethod
    def of(cls, bank: MemoryBank, vectors_QE: VectorArray) -> _Queries:
        """Search exactly, and fill faiss's index."""
        import faiss

        exact_QW = np.concatenate(
            [
                FlatIndex(bank.vectors).search(vectors_QE[first : first + BATCHES[-1]], NEAREST)[1]
                for first in make_bar(
                    range(0, len(vectors_QE), BATCHES[-1]), desc="exact search", disable=None
                )
            ]
        )
        bare = faiss.IndexFlatIP(vectors_QE.shape[1])
        for _, block_nE in bank.vectors.blocks(65536):
            bare.add(block_nE)
        return cls(bank, vectors_QE, exact_QW, bare)


def _index_row(queries: _Queries, name: str) -> Row:
    """Measure one type of index: build it, open it again, search one by one and in batches."""
    config, embedder = DenseRetrieverConfig(index=name), TableEmbedder(queries.vectors_QE)
    with Watched() as watched:
        retriever = config.build(queries.bank, embedder)
    with Watched() as again:
        retriever = config.build(queries.bank, embedder)
    assert isinstance(retriever, VectorRetriever)  # for a local bank
    index = retriever.index
    files = (queries.bank.folder / "index" / name).glob("*.index")
    row: Row = {
        "part": "index",
        "index": name,
        "description": index.description,
        "build_s": watched.seconds,
        "build_bytes": watched.num_bytes,
        "open_s": again.seconds,
        "open_bytes": again.num_bytes,
        "file_bytes": sum(path.stat().st_size for path in files),
    }
    row["curve"] = [] if index.exact else curve(index, queries.vectors_QE, queries.exact_QW)
    documents = query_documents(len(queries.vectors_QE) // len(MODALITIES))
    halves = zip(
        MODALITIES,
        np.split(queries.vectors_QE, len(MODALITIES)),
        np.split(queries.exact_QW, len(MODALITIES)),
        strict=True,
    )
    row["queries"] = {
        modality: _asked(index, retriever, documents[modality], vectors, exact)
        for modality, vectors, exact in halves
    }
    mixed = [one for pair in zip(*documents.values(), strict=True) for one in pair]
    row["batches"] = [
        batch(retriever, embedder, queries.bare, mixed[:size])
        for size in BATCHES
        if size <= len(mixed)
    ]
    return row


def _asked(
    index: VectorIndex,
    retriever: VectorRetriever,
    documents: Sequence[Document],
    queries_QE: VectorArray,
    exact_QW: RowArray,
) -> Row:
    """Run queries of one modality, one at a time: recall, and milliseconds of the search alone and of retrieving with
    all rules."""
    number = min(len(documents), NUM_EXACT) if index.exact else len(documents)
    search_ms, found = _each(partial(_first_rows, index, queries_QE), number)
    retrieve_ms, _ = _each(lambda at: retriever.retrieve([documents[at]], NEAREST), number)
    return {
        "num_queries": number,
        "recall": recall(np.stack(found), exact_QW[:number]),
        **_spread("search_ms", search_ms),
        **_spread("retrieve_ms", retrieve_ms),
    }


def _each(call: Callable[[int], Any], number: int) -> tuple[list[float], list[Any]]:
    """Return the milliseconds and results of each call; an extra first call is not counted."""
    call(0)
    times, results = [], []
    for at in range(number):
        begin = _now()
        results.append(call(at))
        times.append(1e3 * (_now() - begin))
    return times, results


def _spread(name: str, times: Sequence[float]) -> dict[str, float]:
    return {name: float(np.median(times)), f"{name}_p90": float(np.percentile(times, 90))}


def recall(found_QW: RowArray, exact_QW: RowArray) -> float:
    """Return the share of the exact rows that were found.

    >>> recall(np.array([[3, 1]]), np.array([[1, 2]]))
    0.5
    """
    return float((exact_QW[:, :, None] == found_QW[:, None]).any(2).mean())


def curve(index: VectorIndex, vectors_QE: VectorArray, exact_QW: RowArray) -> list[Row]:
    """Return recall and milliseconds per query with the search settings 1, 2, 4, ..."""
    assert isinstance(index, ApproximateIndex)
    half, points = len(vectors_QE) // 2, []
    number, setting = min(CURVE_QUERIES, half), index.engine.least_setting
    while setting <= min(MOST_TRIED, index.engine.most_setting):
        other = ApproximateIndex(index.engine, index.native, setting, index.num_candidates)
        point: Row = {"setting": setting}
        for modality, start in zip(MODALITIES, (0, half), strict=True):
            times, found = _each(
                partial(_first_rows, other, vectors_QE[start : start + number]), number
            )
            point[modality] = {
                "recall": recall(np.stack(found), exact_QW[start : start + number]),
                "ms": float(np.median(times)),
            }
        points.append(point)
        setting *= 2
    return points


def _first_rows(index: VectorIndex, queries_QE: VectorArray, at: int) -> RowArray:
    """Return the nearest rows [W] of one query."""
    rows_W: RowArray = index.search(queries_QE[at : at + 1], NEAREST)[1][0]
    return rows_W


def batch(
    retriever: VectorRetriever, embedder: TableEmbedder, bare: Any, documents: Sequence[Document]
) -> Row:
    """Run a batch of queries: our whole path without the embedding, our index alone, and faiss called directly;
    milliseconds per query, the best of `TURNS` alternating runs. faiss does the same work with its own classes: for flat
    its flat index, for the others the same index with its exact reranking of the same number of
    candidates.

    Args:
        retriever: our retriever.
        embedder: embedder of the queries.
        bare: faiss's flat index of all vectors, a copy of them.
        documents: the queries.
    """
    faiss: Any = importlib.import_module("faiss")  # its type stubs are incomplete
    vectors_QE, index = embedder.embed_documents(documents), retriever.index
    calls: dict[str, Callable[[], Any]] = {
        "index": lambda: index.search(vectors_QE, NEAREST),
        "retriever": lambda: retriever.retrieve(documents, NEAREST),
        "embedding": lambda: embedder.embed_documents(documents),
    }
    faiss.omp_set_num_threads(num_threads())
    if isinstance(index, ApproximateIndex):
        assert isinstance(index.engine, FaissEngine)
        refined = faiss.IndexRefine(index.native, bare)
        parameters = faiss.IndexRefineSearchParameters(
            k_factor=index.num_candidates / NEAREST,
            base_index_params=index.engine.parameters(index.setting),
        )
        calls["faiss"] = lambda: refined.search(vectors_QE, NEAREST, params=parameters)
    else:
        calls["faiss"] = lambda: bare.search(vectors_QE, NEAREST)
    for call in calls.values():
        call()
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(TURNS):
        for name, call in calls.items():
            begin = _now()
            call()
            best[name] = min(best[name], 1e3 * (_now() - begin) / len(documents))
    ours = best["retriever"] - best["embedding"]
    return {
        "num_queries": len(documents),
        "retriever_ms": ours,
        "index_ms": best["index"],
        "faiss_ms": best["faiss"],
        "retriever_x": ours / best["faiss"],
        "index_x": best["index"] / best["faiss"],
    }


def loader_part(registry: Registry, *, quick: bool) -> Row:
    """Return the share of a training step spent on making its batch, with retrieved documents prepended, as measured by
    training itself. The recipe is `quickstart`, with the smallest decoder trained in practice: there a batch costs most
    relative to its step."""
    from cm3core.recipe import compose
    from cm3run.training import train

    steps = 20 if quick else 60
    recipe = compose(
        "quickstart",
        [
            "train.minutes=null",
            f"train.steps={steps}",
            f"train.log_every_steps={steps // 2}",
            "train.validation_splits=[]",
            "dataset.things_share=0.02",
        ],
        registry=registry,
    )
    with tempfile.TemporaryDirectory(prefix="cm3-bench-") as folder:
        train(recipe, folder, registry, progress=False)
        lines = (Path(folder) / "metrics.jsonl").read_text("utf-8").splitlines()
    shares = [values["time/data"] for values in map(json.loads, lines) if "time/data" in values]
    return {"part": "loader", "recipe": "quickstart", "steps": steps, "share": shares[-1]}
