"""Databases beside the local bank, in one run: the same documents and queries, each query asked of all
of them in turn, so that a busy machine slows all alike. Times are wall clock, since a server works in
other processes.

    postgres   the retriever `pgvector` over the database that libpq's variables name (PGHOST, ...)
    lancedb    the package lancedb called directly, tables in a folder, IVF with an HNSW graph in each list

Legend: Q queries, W results a query, E numbers of a vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cm3apps.benchmarks.retrieval.synthetic import (
    MODALITIES,
    TableEmbedder,
    Towers,
    query_documents,
)
from cm3core.bank import MemoryBank
from cm3core.document import Document
from cm3core.errors import CM3Error, DatabaseError, MissingPackageError
from cm3core.interfaces.retriever import Retrieved
from cm3plugins.retrievers.dense import DenseRetrieverConfig
from cm3plugins.retrievers.index.flat import FlatIndex

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import VectorArray
    from cm3plugins.retrievers.index.base import RowArray
    from cm3plugins.retrievers.pgvector.memory import SharedMemory

Row = dict[str, Any]
#: How many are asked for, of which recall is computed; queries of a batch; documents of a style, one in
#: so many, by which searches are filtered; the style asked for.
NEAREST, BATCH, NUM_STYLES, STYLE = 4, 256, 100, "style 7"
#: The schema that is made, and removed afterwards.
SCHEMA = "cm3_bench"


def styles_of(number: int) -> str:
    """The style of a document of the bank."""
    return f"style {number % NUM_STYLES}"


def check_engines(dimension: int, *, postgres: bool, lancedb: bool) -> None:
    """Refuse before long work what would fail after it.

    Args:
        dimension: E.
        postgres, lancedb: which will be measured.

    Raises:
        MissingPackageError: a package is not installed.
        DatabaseError: the server can't be reached, has no pgvector, or indexes no such vectors.
    """
    if lancedb:
        _lancedb()
    with _schema(postgres) as options:
        if options is None:
            return
        from cm3plugins.retrievers.pgvector.connection import Database
        from cm3plugins.retrievers.pgvector.schema import MOST_INDEXED, check_extension

        database = Database(options)
        database.run(lambda connection: check_extension(connection, database.place))
        database.close()
        if dimension > MOST_INDEXED:
            raise DatabaseError(
                "cm3 bench retrieval --dimension",
                f"is {dimension:,}, and pgvector indexes {MOST_INDEXED:,} numbers at most",
                "use fewer, or leave --postgres out",
            )


def run_engines(
    folder: Path,
    towers: Towers,
    indexes: Sequence[str],
    num_queries: int,
    *,
    postgres: bool,
    lancedb: Path | None,
    done: Callable[[Row], None],
) -> None:
    """Fill the databases, ask the queries of each and of the bank's own indexes.

    Args:
        folder: a bank of `synthetic.write_bank`.
        towers: its vectors.
        indexes: types of local indexes that are kept there, or built.
        num_queries: of each modality.
        postgres: measure pgvector.
        lancedb: an empty folder, to measure LanceDB in; None: leave it out.
        done: called with each row.
    """
    bank = MemoryBank.open(folder)
    vectors_QE = towers.queries(num_queries)
    embedder, documents = TableEmbedder(vectors_QE), query_documents(num_queries)
    exact_QW = FlatIndex(bank.vectors).search(vectors_QE, NEAREST)[1]
    ours = np.flatnonzero([styles_of(row) == STYLE for row in range(len(bank))])
    filtered_QW = ours[FlatIndex(_rows(bank.vectors.take(ours))).search(vectors_QE, NEAREST)[1]]
    asked: list[Document] = [*documents["text"], *documents["image"]]
    engines: dict[str, Callable[[list[int]], list[list[int]]]] = {}
    exact = dict.fromkeys(indexes, exact_QW)
    for name in indexes:
        engines[name] = _by(DenseRetrieverConfig(index=name).build(bank, embedder).retrieve, asked)
    with _schema(postgres) as options:
        if options is not None:
            memory, row = fill_postgres(options, bank)
            done(row)
            from cm3plugins.retrievers.pgvector import PgvectorRetrieverConfig

            for name, chosen in (("pgvector", []), ("pgvector, one style", [STYLE])):
                config = PgvectorRetrieverConfig(schema=SCHEMA, styles=chosen)
                retriever = config.build(memory, embedder)
                engines[name] = _by(retriever.retrieve, asked)
                exact[name] = filtered_QW if chosen else exact_QW
        if lancedb is not None:
            table, row = fill_lancedb(lancedb, bank)
            done(row)
            for name, condition in (("lancedb", None), ("lancedb, one style", STYLE)):
                engines[name] = _by_lance(table, vectors_QE, condition)
                exact[name] = exact_QW if condition is None else filtered_QW
        for row in measured(engines, exact, num_queries):
            done(row)


def measured(
    engines: Mapping[str, Callable[[list[int]], list[list[int]]]],
    exact: Mapping[str, RowArray],
    num_queries: int,
) -> Iterator[Row]:
    """A row for each engine: recall, and milliseconds of a query alone and of one in a batch.

    Args:
        engines: numbers of queries -> for each the rows found, at most `NEAREST`.
        exact: by engine, the rows to find [2 * num_queries, `NEAREST`].
        num_queries: of each modality.
    """
    times: dict[str, list[float]] = {name: [] for name in engines}
    found: dict[str, list[list[int]]] = {name: [] for name in engines}
    for ask in engines.values():
        ask([0])
    for at in range(2 * num_queries):
        for name, ask in engines.items():
            begin = time.perf_counter()
            found[name] += ask([at])
            times[name].append(1e3 * (time.perf_counter() - begin))
    together = list(range(min(BATCH, 2 * num_queries)))
    for name, ask in engines.items():
        begin = time.perf_counter()
        ask(together)
        batch_ms = 1e3 * (time.perf_counter() - begin) / len(together)
        halves = {}
        for place, modality in enumerate(MODALITIES):
            own = range(place * num_queries, (place + 1) * num_queries)
            hits = [len(set(found[name][at]) & set(exact[name][at].tolist())) for at in own]
            halves[modality] = {
                "recall": sum(hits) / (NEAREST * num_queries),
                "ms": float(np.median([times[name][at] for at in own])),
                "ms_p90": float(np.percentile([times[name][at] for at in own], 90)),
            }
        yield {"part": "engine", "engine": name, "queries": halves, "batch_ms": batch_ms}


def _by(
    retrieve: Callable[[Sequence[Document], int], list[list[Retrieved]]],
    documents: Sequence[Document],
) -> Callable[[list[int]], list[list[int]]]:
    return lambda places: [
        [one.index for one in found]
        for found in retrieve([documents[at] for at in places], NEAREST)
    ]


def _rows(vectors: VectorArray) -> Any:
    from cm3core.bank import VectorRows

    return VectorRows.of(vectors)


@contextmanager
def _schema(wanted: bool) -> Iterator[Any]:
    """Options of a schema that is not there, and is removed afterwards; None where none is wanted."""
    if not wanted:
        yield None
        return
    from cm3plugins.retrievers.pgvector import ConnectionOptions
    from cm3plugins.retrievers.pgvector.config import require_packages

    require_packages()
    from cm3plugins.retrievers.pgvector.connection import Database
    from cm3plugins.retrievers.pgvector.schema import formatted

    options = ConnectionOptions(schema=SCHEMA, timeout_seconds=600)
    database = Database(options)
    drop = formatted("DROP SCHEMA IF EXISTS {s} CASCADE", SCHEMA)
    database.run(lambda connection: connection.execute(drop))
    try:
        yield options
    finally:
        database.run(lambda connection: connection.execute(drop), limited=False)
        database.close()


def fill_postgres(options: Any, bank: MemoryBank) -> tuple[SharedMemory, Row]:
    """All documents of the bank, and the graph; seconds of both and bytes on disk."""
    from cm3plugins.retrievers.pgvector import transfer
    from cm3plugins.retrievers.pgvector.rows import About
    from cm3plugins.retrievers.pgvector.schema import (
        CONSTRUCTION,
        LINKS,
        VECTOR_INDEX,
        build_index,
    )

    memory = transfer.new_memory(options, bank)
    abouts = {f"d{row}": About(style=styles_of(row)) for row in range(len(bank))}
    begin = time.perf_counter()
    transfer.push(bank, memory, abouts, About())
    pushed = time.perf_counter()
    build_index(memory.database, memory.manifest.dimension, LINKS, CONSTRUCTION)
    built = time.perf_counter()

    def sizes(connection: Any) -> Any:
        return connection.execute(
            "SELECT pg_total_relation_size(%s), pg_relation_size(%s), version()",
            [f"{SCHEMA}.documents", f"{SCHEMA}.{VECTOR_INDEX}"],
        ).fetchone()

    whole, index, server = memory.database.run(sizes, limited=False)
    version = ".".join(map(str, memory.version))
    return memory, {
        "part": "filled",
        "engine": f"{server.split(' on ')[0]}, pgvector {version}",
        "push_s": pushed - begin,
        "index_s": built - pushed,
        "file_bytes": whole,
        "index_bytes": index,
    }


def _lancedb() -> tuple[Any, Any]:
    """The packages lancedb and pyarrow."""
    try:
        import lancedb
        import pyarrow
    except ImportError as error:
        raise MissingPackageError(
            "cm3 bench retrieval --lancedb",
            "the packages 'lancedb' and 'pyarrow' are not both installed",
            "pip install lancedb pyarrow",
        ) from error
    return lancedb, pyarrow


def fill_lancedb(folder: Path, bank: MemoryBank) -> tuple[Any, Row]:
    """The same in LanceDB, without codes and texts."""
    lancedb, pyarrow = _lancedb()
    if any(folder.iterdir()):
        raise CM3Error("cm3 bench retrieval --lancedb", f"{folder} is not empty", "name another")
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
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    index = sum(path.stat().st_size for path in folder.rglob("_indices/**/*") if path.is_file())
    return table, {
        "part": "filled",
        "engine": f"LanceDB {lancedb.__version__}",
        "push_s": pushed - begin,
        "index_s": built - pushed,
        "file_bytes": size,
        "index_bytes": index,
    }


def _by_lance(
    table: Any, vectors_QE: VectorArray, style: str | None
) -> Callable[[list[int]], list[list[int]]]:
    """Its search with the same number of candidates ranked by full vectors as pgvector's (64)."""

    def ask(places: list[int]) -> list[list[int]]:
        found = []
        for at in places:
            query = table.search(vectors_QE[at]).distance_type("dot").nprobes(20).ef(200)
            if style is not None:
                query = query.where(f"style = '{style}'", prefilter=True)
            rows = query.refine_factor(16).limit(NEAREST).select(["number", "_distance"]).to_arrow()
            found.append(rows["number"].to_pylist())
        return found

    return ask
