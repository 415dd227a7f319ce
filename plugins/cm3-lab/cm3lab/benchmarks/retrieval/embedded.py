"""Databases that run in this process and keep a folder, filled with the documents of a bank and asked its queries.

    lancedb   the package lancedb: a table, IVF with an HNSW graph in each list
    qdrant    the package qdrant-edge-py: a shard of Qdrant's engine without its server, an HNSW graph

Legend: Q queries, E numbers of a vector.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cm3core.errors import MissingPackageError
from cm3lab.benchmarks.retrieval.runner import NEAREST
from cm3lab.benchmarks.retrieval.synthetic import styles_of
from cm3plugins.indexes.threads import num_threads
from cm3run.bank import MemoryBank

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import VectorArray

Row = dict[str, Any]
#: Numbers of queries -> for each the rows found, at most `NEAREST`.
Ask = Callable[[list[int]], list[list[int]]]
PLACE = "cm3 bench retrieval"
#: Size of the candidate list of a search in a graph, as `PgvectorOptions.ef_search` has it.
CANDIDATES = 200
#: Documents of a message to an engine.
MESSAGE_ROWS = 1024
#: Qdrant's graph by its server's defaults: links of a document, candidates while it is built, and the
#: kilobytes of vectors below which all are compared instead, be it all documents or those that pass a filter.
LINKS, CONSTRUCTION, COMPARED_KB = 16, 100, 10_000


def lancedb_packages() -> tuple[Any, Any]:
    """The packages lancedb and pyarrow.

    Raises:
        MissingPackageError: one of them is not installed.
    """
    try:
        import lancedb
        import pyarrow
    except ImportError as error:
        raise MissingPackageError(
            f"{PLACE} --lancedb",
            "the packages 'lancedb' and 'pyarrow' are not both installed",
            "pip install lancedb pyarrow",
        ) from error
    return lancedb, pyarrow


def fill_lancedb(folder: Path, bank: MemoryBank) -> tuple[Any, Row]:
    """A table of the bank's vectors and styles, without codes and texts.

    Args:
        folder: where none is yet.
        bank: whose documents are taken.

    Returns:
        the table; the row of seconds and bytes.
    """
    lancedb, pyarrow = lancedb_packages()
    dimension = bank.manifest.dimension
    kind = pyarrow.list_(pyarrow.float32(), dimension)

    def batches() -> Iterator[Any]:
        for start, block in bank.vectors.blocks(8192):
            numbers = range(start, start + len(block))
            flat = pyarrow.array(np.ascontiguousarray(block).reshape(-1))
            yield pyarrow.record_batch(
                [
                    pyarrow.array(numbers, pyarrow.int64()),
                    pyarrow.array([styles_of(number) for number in numbers]),
                    pyarrow.FixedSizeListArray.from_arrays(flat, type=kind),
                ],
                names=["number", "style", "vector"],
            )

    begin = time.perf_counter()
    schema = pyarrow.schema(
        [("number", pyarrow.int64()), ("style", pyarrow.string()), ("vector", kind)]
    )
    table = lancedb.connect(folder).create_table("documents", batches(), schema=schema)
    pushed = time.perf_counter()
    table.create_index(metric="dot", index_type="IVF_HNSW_SQ")
    table.create_scalar_index("style")
    built = time.perf_counter()
    return table, {
        "part": "filled",
        "engine": f"LanceDB {lancedb.__version__}",
        "push_s": pushed - begin,
        "index_s": built - pushed,
        "file_bytes": disk_bytes(folder.rglob("*")),
        "index_bytes": disk_bytes(folder.rglob("_indices/**/*")),
    }


def ask_lancedb(table: Any, vectors_QE: VectorArray, styles: Sequence[str]) -> Ask:
    """Its search with the same number of candidates ranked by full vectors as pgvector's (64).

    Args:
        table: of `fill_lancedb`.
        vectors_QE: the queries.
        styles: only documents of one of these; empty: of any.
    """
    names = ", ".join(f"'{style}'" for style in styles)

    def ask(places: list[int]) -> list[list[int]]:
        found = []
        for at in places:
            query = table.search(vectors_QE[at]).distance_type("dot").nprobes(20).ef(CANDIDATES)
            if styles:
                query = query.where(f"style IN ({names})", prefilter=True)
            rows = query.refine_factor(16).limit(NEAREST).select(["number", "_distance"]).to_arrow()
            found.append(rows["number"].to_pylist())
        return found

    return ask


def qdrant_package() -> Any:
    """The package qdrant_edge.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module("qdrant_edge")
    except ImportError as error:
        raise MissingPackageError(
            f"{PLACE} --qdrant",
            "the package 'qdrant-edge-py' is not installed",
            "pip install qdrant-edge-py",
        ) from error


@contextmanager
def filled_qdrant(folder: Path, bank: MemoryBank) -> Iterator[tuple[Any, Row]]:
    """A shard of the bank's vectors and styles, without codes and texts, as long as the block runs.

    As Qdrant's server would keep them, with the threads that all others use. The row tells how many vectors
    are in the graph: none where it compares all.

    Args:
        folder: where none is yet.
        bank: whose documents are taken.

    Yields:
        the shard; the row of seconds and bytes.
    """
    qdrant = qdrant_package()
    from importlib.metadata import version

    vectors = qdrant.EdgeVectorParams(bank.manifest.dimension, qdrant.Distance.Dot)
    shard = qdrant.EdgeShard.create(
        str(folder),
        qdrant.EdgeConfig(
            vectors=vectors,
            hnsw_config=qdrant.HnswIndexConfig(
                LINKS, CONSTRUCTION, COMPARED_KB, max_indexing_threads=num_threads()
            ),
            optimizers=qdrant.EdgeOptimizersConfig(indexing_threshold=COMPARED_KB),
            max_search_threads=num_threads(),
        ),
    )
    try:
        begin = time.perf_counter()
        for start, block in bank.vectors.blocks(MESSAGE_ROWS):
            points = [
                qdrant.Point(number, vector, {"style": styles_of(number)})
                for number, vector in enumerate(block, start)
            ]
            shard.update(qdrant.UpdateOperation.upsert_points(points))
        shard.flush()
        pushed = time.perf_counter()
        keyword = qdrant.PayloadSchemaType.Keyword
        shard.update(qdrant.UpdateOperation.create_field_index("style", keyword))
        shard.optimize()
        shard.flush()
        built = time.perf_counter()
        in_graph = shard.info().indexed_vectors_count
        parts = [folder.rglob("vector_index*/**/*"), folder.rglob("payload_index/**/*")]
        yield (
            shard,
            {
                "part": "filled",
                "engine": f"Qdrant Edge {version('qdrant-edge-py')}, {in_graph:,} vectors in its graph",
                "push_s": pushed - begin,
                "index_s": built - pushed,
                "file_bytes": disk_bytes(folder.rglob("*")),
                "index_bytes": sum(disk_bytes(part) for part in parts),
            },
        )
    finally:
        shard.close()


def ask_qdrant(
    shard: Any, vectors_QE: VectorArray, styles: Sequence[str], *, acorn: bool = False
) -> Ask:
    """Its search; all queries of a batch in one request.

    By default it walks the graph through documents that pass only. Where few pass, the graph falls apart, and it
    answers with what it reaches, at times nothing near. `acorn` lets it step over one that does not.

    Args:
        shard: of `filled_qdrant`.
        vectors_QE: the queries.
        styles: only documents of one of these; empty: of any.
        acorn: search by ACORN (arXiv:2403.04871) where a filter passes four documents in ten or fewer.
    """
    qdrant = qdrant_package()
    params = qdrant.SearchParams(hnsw_ef=CANDIDATES, acorn=qdrant.AcornSearchParams(enable=acorn))
    condition = None
    if styles:
        match = qdrant.MatchAny(list(styles))
        condition = qdrant.Filter(must=[qdrant.FieldCondition("style", match=match)])

    def request(at: int) -> Any:
        nearest = qdrant.Query.Nearest(vectors_QE[at])
        return qdrant.QueryRequest(NEAREST, query=nearest, params=params, filter=condition)

    def ask(places: list[int]) -> list[list[int]]:
        requests = qdrant.QueryBatchRequest([request(at) for at in places])
        return [[one.id for one in found] for found in shard.query_batch(requests)]

    return ask


def disk_bytes(paths: Iterable[Path]) -> int:
    """What files take on the disk: engines make files of fixed sizes and fill a small part of them."""
    return sum(path.stat().st_blocks * 512 for path in paths if path.is_file())
