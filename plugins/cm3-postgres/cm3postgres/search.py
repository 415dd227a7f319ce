"""The retriever `pgvector`: candidates from the HNSW graph, ranked by exact scores, in one statement.

The graph is built over 16-bit vectors; scores come from the full ones, so thresholds mean the same as with
every other index. Filters are part of the statement: the graph is searched until enough documents match
(pgvector 0.8's iterative scan); if it still finds too few, all matching documents are compared.

Legend: Q searches, W results per search, E numbers per vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

from cm3core.errors import DataError
from cm3plugins.retrievers.index.base import NO_ROW
from cm3plugins.retrievers.rules import RuleRetriever
from cm3postgres.memory import Filter, SharedMemory
from cm3postgres.schema import MOST_INDEXED, READ, formatted

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import Embedder
    from cm3plugins.retrievers.rules import FloatArray, RuleConfig
    from cm3postgres.options import SearchOptions
    from cm3postgres.pool import Connection

RowArray = npt.NDArray[np.int64]
#: pgvector's largest candidate list; the first version that continues if filters leave too few results.
_MOST_EF, _ITERATIVE = 1000, (0, 8)
#: Number of searches sent at a time.
_SENT = 16


class PgvectorRetriever(RuleRetriever):
    """Applies the rules to a database that may change between any two searches.

    Args:
        config: the rules.
        options: filters and search settings.
        memory: memory in the database.
        embedder: embeds the queries.
        approximate: search with the graph; False: compare every document.
    """

    def __init__(
        self,
        config: RuleConfig,
        options: SearchOptions,
        memory: SharedMemory,
        embedder: Embedder,
        *,
        approximate: bool = True,
    ) -> None:
        super().__init__(config, memory, embedder)
        self._options, self._shared = options, memory
        self._approximate = approximate and memory.manifest.dimension <= MOST_INDEXED
        self._filter = Filter(options.licences, options.sources, options.styles)

    def exact(self) -> PgvectorRetriever:
        """Return a retriever with the same rules that compares every document."""
        if not self._approximate:
            return self
        return PgvectorRetriever(
            self._config, self._options, self._shared, self._embedder, approximate=False
        )

    def _search(
        self, vectors_QE: FloatArray, width: int, parts_Q: Sequence[str]
    ) -> tuple[FloatArray, RowArray]:
        if not np.isfinite(vectors_QE).all():
            wrong = int(np.argmin(np.isfinite(vectors_QE).all(1)))
            raise DataError(
                f"query {wrong}", "its vector holds NaN or infinity", "check the embedder's weights"
            )
        width = max(1, width)

        def work(connection: Connection) -> list[list[tuple[Any, ...]]]:
            return self._rows(connection, vectors_QE, width)

        scores_QW = np.full((len(vectors_QE), width), -np.inf, np.float32)
        rows_QW = np.full(scores_QW.shape, NO_ROW, np.int64)
        for place, rows in enumerate(self._shared.database.run(work, pipelined=True)):
            self._shared.keep(row[1:] for row in rows)
            scores_QW[place, : len(rows)] = [row[0] for row in rows]
            rows_QW[place, : len(rows)] = [row[1] for row in rows]
        return scores_QW, rows_QW

    def _rows(
        self, connection: Connection, vectors_QE: FloatArray, width: int
    ) -> list[list[tuple[Any, ...]]]:
        """Return each search's rows (score, *columns `READ`), best first, from one snapshot of the database."""
        every = list(range(len(vectors_QE)))
        if self._filter.values:
            # the generic plan, used after five runs, doesn't know how few documents match the filter: it
            # walks the graph where comparing all matches takes a tenth of the time
            connection.execute("SELECT set_config('plan_cache_mode', 'force_custom_plan', true)")
        if not self._approximate:
            return self._executed(connection, self._exact(width), vectors_QE, every)
        number = max(self._options.num_candidates, 2 * width)
        list_size = min(_MOST_EF, max(self._options.ef_search, number))
        connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", [str(list_size)])
        if self._shared.version >= _ITERATIVE:
            connection.execute("SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true)")
        found = self._executed(connection, self._nearest(number, width), vectors_QE, every)
        # too few matches near the query, or no more exist: only comparing all tells
        short = [place for place in every if len(found[place]) < min(width, len(self._shared))]
        again = self._executed(connection, self._exact(width), vectors_QE, short)
        for place, rows in zip(short, again, strict=True):
            found[place] = rows
        return found

    def _executed(
        self,
        connection: Connection,
        statement: sql.Composed,
        vectors_QE: FloatArray,
        places: list[int],
    ) -> list[list[tuple[Any, ...]]]:
        """Return the rows of a statement for several searches, sent `_SENT` at a time."""
        found = []
        for start in range(0, len(places), _SENT):
            cursors = []
            for place in places[start : start + _SENT]:
                cursor = connection.cursor(binary=True)
                cursor.execute(
                    statement, {"query": vectors_QE[place], **self._filter.values}, prepare=True
                )
                cursors.append(cursor)
            found += [cursor.fetchall() for cursor in cursors]
            self._shared.database.answered()
        return found

    def _nearest(self, number: int, width: int) -> sql.Composed:
        half = f"halfvec({self._shared.manifest.dimension})"
        return formatted(
            f"SELECT -(vector <#> %(query)s) AS score, {READ} FROM ("
            f"SELECT * FROM {{s}}.documents WHERE {self._filter.condition} "
            f"ORDER BY vector::{half} <#> %(query)s::vector::{half} LIMIT {int(number)}"
            f") AS candidates ORDER BY score DESC, number LIMIT {int(width)}",
            self._shared.database.options.schema,
        )

    def _exact(self, width: int) -> sql.Composed:
        return formatted(
            f"SELECT -(vector <#> %(query)s) AS score, {READ} FROM {{s}}.documents "
            f"WHERE {self._filter.condition} "
            f"ORDER BY vector <#> %(query)s, number LIMIT {int(width)}",
            self._shared.database.options.schema,
        )

    def _vector(self, index: int) -> FloatArray:
        return self._shared.stored(index).document.vector

    def _is_preferred(self, index: int) -> bool:
        return self._shared.stored(index).has_both
