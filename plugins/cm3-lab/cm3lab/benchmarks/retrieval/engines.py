"""Databases compared with the local bank in one run: the same documents and queries, each query sent to all of them in
turn, so that a busy machine slows all alike. Times are wall-clock times, since a server works in other
processes.

    postgres          the retriever `pgvector` on the database in libpq's variables (PGHOST, ...)
    lancedb, qdrant   engines in this process, which store a folder: the package lancedb (a table, IVF with an HNSW graph
                      in each list), and qdrant-edge-py (a shard of Qdrant without its server, an HNSW graph)

Legend: Q queries, W results per query, E numbers per vector.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cm3core.config.overrides import named_config
from cm3core.config.schema import check_config
from cm3core.document import Document
from cm3core.errors import CM3Error, DatabaseError, MissingPackageError
from cm3core.interfaces.retriever import Retrieved
from cm3lab.benchmarks.retrieval.clients import WIDTH, Clients, run_clients
from cm3lab.benchmarks.retrieval.runner import NEAREST
from cm3lab.benchmarks.retrieval.synthetic import (
    FILTERS,
    MODALITIES,
    TableEmbedder,
    query_documents,
    styles_of,
)
from cm3plugins.indexes.threads import num_threads
from cm3plugins.retrievers.dense import DenseRetrieverConfig
from cm3plugins.retrievers.index.base import FlatIndex
from cm3run.bank import MemoryBank

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import VectorArray
    from cm3core.interfaces.retriever import RetrieverConfig
    from cm3core.plugins.registry import Registry
    from cm3plugins.retrievers.index.base import RowArray
    from cm3postgres.memory import SharedMemory


Row = dict[str, Any]
#: Query numbers -> rows found for each, at most `NEAREST`.
Ask = Callable[[list[int]], list[list[int]]]
PLACE = "cm3 bench retrieval"
#: Size of the candidate list of a graph search, as in `PgvectorOptions.ef_search`.
CANDIDATES = 200
#: Number of documents per message to an engine.
MESSAGE_ROWS = 1024
#: Qdrant's graph with its server's defaults: links per document, candidates while building, and the kilobytes of
#: vectors below which all are compared instead, whether all documents or those that match a filter.
QDRANT_LINKS, QDRANT_CONSTRUCTION, COMPARED_KB = 16, 100, 10_000


def lancedb_packages() -> tuple[Any, Any]:
    """Import the packages lancedb and pyarrow.

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
    """Create a table of the bank's vectors and styles, without codes and texts.

    Args:
        folder: folder without a table.
        bank: the bank to copy.

    Returns:
        the table, and the row of seconds and bytes.
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
    """Return LanceDB's search, which ranks as many candidates by full vectors as pgvector's (64).

    Args:
        table: from `fill_lancedb`.
        vectors_QE: the queries.
        styles: only documents in one of these styles; empty: any.
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
    """Import the package qdrant_edge.

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
    """Context with a shard of the bank's vectors and styles, without codes and texts.

    It is stored as by Qdrant's server, with the same number of threads as the others. The row states how many vectors
    are in the graph: none if it compares all.

    Args:
        folder: folder without a shard.
        bank: the bank to copy.

    Yields:
        the shard, and the row of seconds and bytes.
    """
    qdrant = qdrant_package()
    from importlib.metadata import version

    vectors = qdrant.EdgeVectorParams(bank.manifest.dimension, qdrant.Distance.Dot)
    shard = qdrant.EdgeShard.create(
        str(folder),
        qdrant.EdgeConfig(
            vectors=vectors,
            hnsw_config=qdrant.HnswIndexConfig(
                QDRANT_LINKS, QDRANT_CONSTRUCTION, COMPARED_KB, max_indexing_threads=num_threads()
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
    """Return Qdrant's search, with all queries of a batch in one request.

    By default it walks the graph only through documents that match. If few match, the graph falls apart, and it returns
    what it reaches, sometimes nothing near. `acorn` lets it step over a document that does not match.

    Args:
        shard: from `filled_qdrant`.
        vectors_QE: the queries.
        styles: only documents in one of these styles; empty: any.
        acorn: search with ACORN (arXiv:2403.04871) if a filter matches at most 40% of the documents.
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
    """Return the disk space of files: engines create files of fixed size and fill a small part of them."""
    return sum(path.stat().st_blocks * 512 for path in paths if path.is_file())


#: Queries per batch.
BATCH = 256
#: The schema, which is created and then removed.
SCHEMA = "cm3_bench"


@dataclass(frozen=True)
class Engines:
    """Engines to measure in addition to the bank's own indexes.

    Args:
        postgres, lancedb, qdrant: these databases.
        others: name -> retriever over the bank.
        clients: threads that ask PostgreSQL at a time; None: not measured.
    """

    postgres: bool = False
    lancedb: bool = False
    qdrant: bool = False
    others: Mapping[str, RetrieverConfig] = field(default_factory=dict)
    clients: Clients | None = None

    def __bool__(self) -> bool:
        return bool(self.postgres or self.lancedb or self.qdrant or self.others)


def check_engines(dimension: int, asked: Engines) -> None:
    """Raise errors early that would otherwise occur after long work.

    Args:
        dimension: E.
        asked: engines to measure.

    Raises:
        MissingPackageError: a package is not installed.
        DatabaseError: the server can't be reached, has no pgvector, or can't index such vectors.
    """
    if asked.lancedb:
        lancedb_packages()
    if asked.qdrant:
        qdrant_package()
    with _schema(asked.postgres) as options:
        if options is None:
            return
        from cm3postgres.connection import Database
        from cm3postgres.schema import MOST_INDEXED, check_extension

        database = Database(options)
        database.run(lambda connection: check_extension(connection, database.place))
        database.close()
        if dimension > MOST_INDEXED:
            raise DatabaseError(
                "cm3 bench retrieval --dimension",
                f"is {dimension:,}, but pgvector indexes at most {MOST_INDEXED:,} numbers",
                "use fewer, or leave --postgres out",
            )


def retrievers_of(names: Sequence[str], registry: Registry) -> dict[str, RetrieverConfig]:
    """Return the retrievers with these names, with their defaults except the number of results.

    Raises:
        PluginError, RecipeError: no plugin provides it, or it has a key without a default.
        CM3Error: it has its own memory, so it can't search the bank.
    """
    found: dict[str, RetrieverConfig] = {}
    for name in names:
        place = f"cm3 bench retrieval --retriever {name}"
        config_class = cast(
            "type[RetrieverConfig]", registry.config_class("retriever", name, place=place)
        )
        if config_class.own_memory:
            raise CM3Error(place, "has its own memory", "use one that searches a bank")
        config = named_config(config_class, {"num_retrieved": NEAREST}, "retriever")
        check_config(config)
        found[name] = config
    return found


def run_engines(
    folder: Path,
    vectors_QE: VectorArray,
    indexes: Sequence[str],
    asked: Engines,
    done: Callable[[Row], None],
) -> None:
    """Fill the databases, and run the queries on each and on the bank's own indexes.

    Args:
        folder: a bank from `synthetic.write_bank`; engines in this process write next to it, and are removed
            afterwards.
        vectors_QE: the queries, with equally many of each modality.
        indexes: types of local indexes that are stored there, or built.
        asked: engines to measure in addition.
        done: called with each row.
    """
    bank, num_queries = MemoryBank.open(folder), len(vectors_QE) // len(MODALITIES)
    embedder, of_modality = TableEmbedder(vectors_QE), query_documents(num_queries)
    exact_QWs = {name: _exact(bank, vectors_QE, styles) for name, styles in FILTERS.items()}
    documents: list[Document] = [*of_modality["text"], *of_modality["image"]]
    configs = {name: DenseRetrieverConfig(index=name) for name in indexes} | dict(asked.others)
    engines: dict[str, Ask] = {
        name: _by(config.build(bank, embedder).retrieve, documents)
        for name, config in configs.items()
    }
    exact = dict.fromkeys(engines, exact_QWs[""])

    def add(
        engine: str, asking: Callable[[Sequence[str]], Ask], filters: Iterable[str] = FILTERS
    ) -> None:
        for name in filters:
            engines[engine + name], exact[engine + name] = asking(FILTERS[name]), exact_QWs[name]

    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent)))
        options = stack.enter_context(_schema(asked.postgres))
        if options is not None:
            memory, row = fill_postgres(options, bank)
            done(row)
            from cm3postgres import PgvectorRetrieverConfig

            def by_postgres(styles: Sequence[str]) -> Ask:
                config = PgvectorRetrieverConfig(schema=SCHEMA, styles=list(styles))
                return _by(config.build(memory, embedder).retrieve, documents)

            add("pgvector", by_postgres)
            _run_clients(bank, vectors_QE, documents, asked.clients, done)
        if asked.lancedb:
            table, row = fill_lancedb(files / "lancedb", bank)
            done(row)
            add("lancedb", partial(ask_lancedb, table, vectors_QE))
        if asked.qdrant:
            shard, row = stack.enter_context(filled_qdrant(files / "qdrant", bank))
            done(row)
            ask = partial(ask_qdrant, shard, vectors_QE)
            add("qdrant", ask)
            add("qdrant by ACORN", partial(ask, acorn=True), [", ten styles"])
        for row in measured(engines, exact, num_queries):
            done(row)


def _run_clients(
    bank: MemoryBank,
    vectors_QE: VectorArray,
    documents: Sequence[Document],
    asked: Clients | None,
    done: Callable[[Row], None],
) -> None:
    if asked is None:
        return
    from cm3postgres import PgvectorRetrieverConfig

    config, embedder = PgvectorRetrieverConfig(schema=SCHEMA), TableEmbedder(vectors_QE)
    exact_QW = FlatIndex(bank.vectors).search(vectors_QE, WIDTH)[1]
    for row in run_clients(config, embedder, documents, exact_QW, asked):
        done(row)


def _exact(bank: MemoryBank, vectors_QE: VectorArray, styles: Sequence[str]) -> RowArray:
    """Return the nearest rows [Q, `NEAREST`] among documents in one of the styles; among all without styles."""
    if not styles:
        return FlatIndex(bank.vectors).search(vectors_QE, NEAREST)[1]
    own = np.flatnonzero([styles_of(row) in styles for row in range(len(bank))])
    return own[FlatIndex(_rows(bank.vectors.take(own))).search(vectors_QE, NEAREST)[1]]


def measured(
    engines: Mapping[str, Ask],
    exact: Mapping[str, RowArray],
    num_queries: int,
) -> Iterator[Row]:
    """Yield a row per engine: recall, and milliseconds of a single query and of one in a batch.

    Args:
        engines: query numbers -> rows found for each, at most `NEAREST`.
        exact: by engine, the rows to find [2 * num_queries, `NEAREST`].
        num_queries: queries of each modality.
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
) -> Ask:
    return lambda places: [
        [one.index for one in found]
        for found in retrieve([documents[at] for at in places], NEAREST)
    ]


def _rows(vectors: VectorArray) -> Any:
    from cm3run.bank import VectorRows

    return VectorRows.of(vectors)


@contextmanager
def _schema(wanted: bool) -> Iterator[Any]:
    """Context with options of a new schema, which is removed afterwards; None if not wanted."""
    if not wanted:
        yield None
        return
    if find_spec("cm3postgres") is None:
        raise MissingPackageError(
            "the engine pgvector",
            "the package 'cm3postgres' is not installed",
            "install cm3postgres",
        )
    from cm3postgres import ConnectionOptions
    from cm3postgres.connection import Database
    from cm3postgres.schema import formatted

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
    """Add all documents of the bank, and build the graph; returns seconds of both and bytes on disk."""
    from cm3postgres import transfer
    from cm3postgres.schema import CONSTRUCTION, LINKS, VECTOR_INDEX, About, build_index

    memory = transfer.new_memory(options, bank)
    abouts = {f"d{row}": About(style=styles_of(row)) for row in range(len(bank))}
    begin = time.perf_counter()
    transfer.push(bank, memory, abouts.__getitem__)
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
