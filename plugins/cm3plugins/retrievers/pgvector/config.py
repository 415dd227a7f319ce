"""The recipe's keys of the retriever `pgvector`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import MissingPackageError, RecipeError
from cm3plugins.retrievers.vector_retriever import VectorRetrieverConfig

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.embedder import Embedder
    from cm3plugins.retrievers.pgvector.memory import SharedMemory
    from cm3plugins.retrievers.pgvector.search import PgvectorRetriever

#: PostgreSQL cuts longer names.
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
#: What belongs into a connection string, where a password might be, too.
_CONNECTION_STRING = re.compile(r"[=\s]|://")


@dataclass(kw_only=True)
class ConnectionOptions:
    """Where a memory in PostgreSQL is.

    What is left out is libpq's: the variables `PGHOST`, `PGPORT`, `PGDATABASE`, `PGUSER`,
    `PGSERVICE`, and its defaults. There is no key for a password: give it by `~/.pgpass`,
    `PGPASSWORD` or a service file, which are read by libpq and stored nowhere else.

    Args:
        service: a section of the service file (`~/.pg_service.conf`).
        host: the server's name, or the folder of its Unix socket.
        port: the server's port.
        database: the database.
        user: who connects.
        schema: the schema that the memory's tables are in; a database may have several memories.
        retry_seconds: how long a lost connection is opened again, before that is an error.
        timeout_seconds: a server that does not answer for so long counts as lost.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "port": (1, 65535),
        "retry_seconds": (0, 86400),
        "timeout_seconds": (0.1, 86400),
    }

    service: str | None = None
    host: str | None = None
    port: int | None = None
    database: str | None = None
    user: str | None = None
    schema: str = "cm3_memory"
    retry_seconds: float = 10.0
    timeout_seconds: float = 30.0

    def check_connection(self, section: str = "retriever.") -> None:
        """Refuse names that PostgreSQL can't have, and connection strings.

        Messages don't repeat these: they may hold a password."""
        if not _NAME.fullmatch(self.schema):
            raise RecipeError(
                f"{section}schema",
                f"is {self.schema!r}, which is no name of a schema",
                "use a to z, 0 to 9 and _, at most 63 of them, and no digit first",
            )
        for name in ("service", "host", "database", "user"):
            value = getattr(self, name)
            if value is not None and (not value or "\0" in value):
                raise RecipeError(f"{section}{name}", "is empty", "leave it out, or give a name")
            if value is not None and _CONNECTION_STRING.search(value):
                raise RecipeError(
                    f"{section}{name}",
                    "is a connection string, and it may be one name only",
                    "give host, port, database and user, each by its key, and a password by "
                    "~/.pgpass, PGPASSWORD or a service file",
                )


@dataclass(kw_only=True)
class PgvectorRetrieverConfig(ConnectionOptions, VectorRetrieverConfig):
    """Nearest document vectors in a PostgreSQL database that many models share
    (`pip install 'cm3leon[pgvector]'`).

    The database is filled by `cm3 postgres`, and may change while models draw. The rules are
    described in `VectorRetrieverConfig`, the connection in `ConnectionOptions`; `bank` and `cache`
    are not read.

    Args:
        licences: only documents of one of these licences are found; an empty list: of any.
        sources: only documents from one of these sources.
        styles: only documents of one of these styles.
        ef_search: size of the candidate list of a search in the HNSW graph: more finds more, and
            takes longer.
        num_candidates: number of best results by the graph's 16-bit vectors that are ranked by exact
            score.
    """

    own_memory: ClassVar[bool] = True
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **ConnectionOptions.ranges,
        "ef_search": (1, 1000),
        "num_candidates": (1, 2**20),
    }

    licences: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    ef_search: int = 200
    num_candidates: int = 64

    def check(self) -> None:
        """Check the connection's keys and the filters."""
        super().check()
        self.check_connection()
        if self.bank is not None:
            raise RecipeError(
                "retriever.bank",
                "is set, and this retriever searches a database",
                "leave it out; cm3 postgres push copies a bank into a database",
            )
        for name in ("licences", "sources", "styles"):
            if any("\0" in value for value in getattr(self, name)):
                raise RecipeError(
                    f"retriever.{name}", "holds a null character", "leave that value out"
                )

    def open_memory(self) -> SharedMemory:
        """Connect, and read what the memory was made with.

        Raises:
            MissingPackageError: psycopg is not installed.
            DatabaseError: the server can't be reached, or has no such memory.
        """
        return open_shared_memory(self)

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> PgvectorRetriever:
        """Return the retriever over the database; a memory that `open_memory` opened is used.

        Raises:
            RecipeError: no embedder.
            DataError: the database's vectors are another embedder's.
        """
        if embedder is None:
            raise RecipeError(
                "retriever",
                "searches by vectors, which needs an embedder, and the recipe has none",
                "add the embedder that cm3 postgres stat names",
            )
        shared = memory if isinstance(memory, _memory_class()) else self.open_memory()
        shared.check_embedder(embedder)
        from cm3plugins.retrievers.pgvector.search import PgvectorRetriever

        return PgvectorRetriever(self, shared, embedder)


def open_shared_memory(options: ConnectionOptions) -> SharedMemory:
    """The memory at these options; see `PgvectorRetrieverConfig.open_memory`."""
    return _memory_class().open(options)


def require_packages() -> None:
    """Raise `MissingPackageError` unless psycopg and pgvector's Python package are there."""
    try:
        import pgvector.psycopg  # noqa: F401
        import psycopg  # noqa: F401
    except ImportError as error:
        name = "pgvector" if (error.name or "").startswith("pgvector") else "psycopg"
        raise MissingPackageError.extra("retriever=pgvector", name, "pgvector") from error


def _memory_class() -> type[SharedMemory]:
    require_packages()
    from cm3plugins.retrievers.pgvector.memory import SharedMemory

    return SharedMemory
