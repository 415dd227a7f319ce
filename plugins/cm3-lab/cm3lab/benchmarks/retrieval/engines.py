"""Databases beside the local bank, in one run: the same documents and queries, each query asked of all
of them in turn, so that a busy machine slows all alike. Times are wall clock, since a server works in
other processes.

    postgres          the retriever `pgvector` over the database that libpq's variables name (PGHOST, ...)
    lancedb, qdrant   what runs in this process: `embedded.py`

Legend: Q queries, W results a query, E numbers of a vector.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from cm3lab.benchmarks.retrieval import embedded
from cm3lab.benchmarks.retrieval.embedded import Ask, Row
from cm3lab.benchmarks.retrieval.runner import NEAREST
from cm3lab.benchmarks.retrieval.synthetic import (
    FILTERS,
    MODALITIES,
    TableEmbedder,
    Towers,
    query_documents,
    styles_of,
)
from cm3plugins.retrievers.dense import DenseRetrieverConfig
from cm3plugins.retrievers.index.flat import FlatIndex
from cm3run.bank import MemoryBank

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import VectorArray
    from cm3core.interfaces.retriever import RetrieverConfig
    from cm3core.plugins.registry import Registry
    from cm3plugins.retrievers.index.base import RowArray
    from cm3postgres.memory import SharedMemory

#: Queries of a batch.
BATCH = 256
#: The schema that is made, and removed afterwards.
SCHEMA = "cm3_bench"


def check_engines(dimension: int, *, postgres: bool, lancedb: bool, qdrant: bool) -> None:
    """Refuse before long work what would fail after it.

    Args:
        dimension: E.
        postgres, lancedb, qdrant: which will be measured.

    Raises:
        MissingPackageError: a package is not installed.
        DatabaseError: the server can't be reached, has no pgvector, or indexes no such vectors.
    """
    if lancedb:
        embedded.lancedb_packages()
    if qdrant:
        embedded.qdrant_package()
    with _schema(postgres) as options:
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
                f"is {dimension:,}, and pgvector indexes {MOST_INDEXED:,} numbers at most",
                "use fewer, or leave --postgres out",
            )


def retrievers_of(names: Sequence[str], registry: Registry) -> dict[str, RetrieverConfig]:
    """The retrievers of these names, with their defaults, but for the number of results.

    Raises:
        PluginError, RecipeError: no plugin provides one, or it has a key without a default.
        CM3Error: it has a memory of its own, and can't be asked of the bank.
    """
    found: dict[str, RetrieverConfig] = {}
    for name in names:
        place = f"cm3 bench retrieval --retriever {name}"
        config_class = cast(
            "type[RetrieverConfig]", registry.config_class("retriever", name, place=place)
        )
        if config_class.own_memory:
            raise CM3Error(place, "has a memory of its own", "name one that searches a bank")
        config = named_config(config_class, {"num_retrieved": NEAREST}, "retriever")
        check_config(config)
        found[name] = config
    return found


def run_engines(
    folder: Path,
    towers: Towers,
    indexes: Sequence[str],
    num_queries: int,
    *,
    postgres: bool,
    lancedb: bool,
    qdrant: bool,
    others: Mapping[str, RetrieverConfig],
    done: Callable[[Row], None],
) -> None:
    """Fill the databases, ask the queries of each and of the bank's own indexes.

    Args:
        folder: a bank of `synthetic.write_bank`; what runs in this process writes beside it, and is
            removed afterwards.
        towers: its vectors.
        indexes: types of local indexes that are kept there, or built.
        num_queries: of each modality.
        postgres, lancedb, qdrant: which are measured.
        others: name -> retriever over the bank that is measured too.
        done: called with each row.
    """
    bank = MemoryBank.open(folder)
    vectors_QE = towers.queries(num_queries)
    embedder, documents = TableEmbedder(vectors_QE), query_documents(num_queries)
    exact_QWs = {name: _exact(bank, vectors_QE, styles) for name, styles in FILTERS.items()}
    asked: list[Document] = [*documents["text"], *documents["image"]]
    engines: dict[str, Ask] = {}
    exact = dict.fromkeys(indexes, exact_QWs[""])
    for name in indexes:
        engines[name] = _by(DenseRetrieverConfig(index=name).build(bank, embedder).retrieve, asked)

    for name, config in others.items():
        engines[name] = _by(config.build(bank, embedder).retrieve, asked)
        exact[name] = exact_QWs[""]

    def add(
        engine: str, asking: Callable[[Sequence[str]], Ask], filters: Iterable[str] = FILTERS
    ) -> None:
        for name in filters:
            engines[engine + name], exact[engine + name] = asking(FILTERS[name]), exact_QWs[name]

    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent)))
        options = stack.enter_context(_schema(postgres))
        if options is not None:
            memory, row = fill_postgres(options, bank)
            done(row)
            from cm3postgres import PgvectorRetrieverConfig

            def by_postgres(styles: Sequence[str]) -> Ask:
                config = PgvectorRetrieverConfig(schema=SCHEMA, styles=list(styles))
                return _by(config.build(memory, embedder).retrieve, asked)

            add("pgvector", by_postgres)
        if lancedb:
            table, row = embedded.fill_lancedb(files / "lancedb", bank)
            done(row)
            add("lancedb", partial(embedded.ask_lancedb, table, vectors_QE))
        if qdrant:
            shard, row = stack.enter_context(embedded.filled_qdrant(files / "qdrant", bank))
            done(row)
            ask = partial(embedded.ask_qdrant, shard, vectors_QE)
            add("qdrant", ask)
            add("qdrant by ACORN", partial(ask, acorn=True), [", ten styles"])
        for row in measured(engines, exact, num_queries):
            done(row)


def _exact(bank: MemoryBank, vectors_QE: VectorArray, styles: Sequence[str]) -> RowArray:
    """The nearest rows [Q, `NEAREST`] of those that are of one of the styles; of all, if there are none."""
    if not styles:
        return FlatIndex(bank.vectors).search(vectors_QE, NEAREST)[1]
    own = np.flatnonzero([styles_of(row) in styles for row in range(len(bank))])
    return own[FlatIndex(_rows(bank.vectors.take(own))).search(vectors_QE, NEAREST)[1]]


def measured(
    engines: Mapping[str, Ask],
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
    """Options of a schema that is not there, and is removed afterwards; None where none is wanted."""
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
    """All documents of the bank, and the graph; seconds of both and bytes on disk."""
    from cm3postgres import transfer
    from cm3postgres.rows import About
    from cm3postgres.schema import (
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
