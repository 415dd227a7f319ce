"""Output of `cm3 postgres stat`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cm3postgres.schema import VECTOR_INDEX, formatted
from cm3run.printing import printable

if TYPE_CHECKING:
    from cm3postgres.memory import SharedMemory
    from cm3postgres.pool import Connection

#: Number of a column's values to show, the most frequent first.
NUM_VALUES = 10


def facts(memory: SharedMemory) -> list[tuple[str, str]]:
    """Return names and values from one snapshot."""
    schema, manifest = memory.database.options.schema, memory.manifest

    def work(connection: Connection) -> list[tuple[str, str]]:
        def asked(statement: str, values: Any = None) -> list[Any]:
            return connection.execute(formatted(statement, schema), values).fetchall()

        ((number, both, size),) = asked(
            "SELECT count(*), count(*) FILTER (WHERE has_both), "
            "pg_total_relation_size(%s) FROM {s}.documents",
            [f"{schema}.documents"],
        )
        indexes = asked(
            "SELECT i.indisvalid, pg_relation_size(i.indexrelid) FROM pg_index i "
            "WHERE i.indexrelid = to_regclass(%s)",
            [f"{schema}.{VECTOR_INDEX}"],
        )
        rows = [
            ("documents", f"{number:,}, {both:,} with text and picture; {size / 1e6:,.1f} MB"),
            (
                "index",
                "none; every search is exact: cm3 postgres index"
                if not indexes
                else f"HNSW, {indexes[0][1] / 1e6:,.1f} MB"
                + ("" if indexes[0][0] else "; invalid, drop it and build it again"),
            ),
        ]
        for column, title in (("licence", "licences"), ("source", "sources"), ("style", "styles")):
            found = asked(
                f"SELECT {column}, count(*) FROM {{s}}.documents GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT "
                f"{NUM_VALUES + 1}"
            )
            shown = [
                f"{printable(str(value or 'none'))} ({count:,})"
                for value, count in found[:NUM_VALUES]
            ]
            rows.append((title, ", ".join(shown) + (", ..." if len(found) > NUM_VALUES else "")))
        return rows

    tokenizer = manifest.image_tokenizer
    return [
        *memory.database.run(work, limited=False),
        (
            "embedder",
            f"{printable(manifest.embedder.name)}, {manifest.dimension:,} numbers per vector, fingerprint "
            f"{printable(manifest.embedder.fingerprint[-12:])}",
        ),
        (
            "image tokenizer",
            f"{printable(tokenizer.name)}, {tokenizer.grid[0]} x {tokenizer.grid[1]} codes of "
            f"{tokenizer.codebook_size:,}, fingerprint "
            f"{printable(tokenizer.fingerprint[-12:])}",
        ),
        ("pgvector", ".".join(map(str, memory.version))),
    ]
