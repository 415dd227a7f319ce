"""The recipe keys of the retriever `pgvector`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError
from cm3core.interfaces.reach import CONNECTS, CREDENTIALS, Reach
from cm3plugins.retrievers.dense import VectorRetrieverConfig
from cm3postgres.options import ConnectionOptions, SearchOptions

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.embedder import Embedder
    from cm3postgres.memory import SharedMemory
    from cm3postgres.search import PgvectorRetriever


#: Placeholder for the server and credentials that libpq reads from the environment.
LIBPQ = "libpq"


@dataclass(kw_only=True)
class PgvectorRetrieverConfig(ConnectionOptions, SearchOptions, VectorRetrieverConfig):
    """Retrieves the nearest document vectors from a PostgreSQL database shared by many models.

    The database is filled by `cm3 postgres`, and may change while models generate. The rules are
    described in `VectorRetrieverConfig`, the connection in `ConnectionOptions`, filters and search in
    `SearchOptions`; `bank` and `cache` are not used.
    """

    own_memory: ClassVar[bool] = True

    def check(self) -> None:
        """Check the connection's keys and the filters."""
        super().check()
        self.check_connection()
        if self.bank is not None:
            raise RecipeError(
                "retriever.bank",
                "is set, but this retriever searches a database",
                "leave it out; cm3 postgres push copies a bank into a database",
            )
        for name in ("licences", "sources", "styles"):
            if any("\0" in value for value in getattr(self, name)):
                raise RecipeError(
                    f"retriever.{name}", "holds a null character", "remove that value"
                )

    def reaches(self) -> list[Reach]:
        """Declare the server, or where libpq finds it: the environment and the user's files."""
        why = "its memory is a database there; libpq sends it the user name and the password that it finds"
        found = []
        if self.service is not None:
            target = f"service={self.service}"
            found.append(Reach(CREDENTIALS, target, "service", "of libpq", self.service))
        for host in [] if self.host is None else self.host.split(","):  # libpq tries several hosts
            if host:
                target = host if host.startswith(("/", "@")) else f"{host}:{self.port or 5432}"
                found.append(Reach(CONNECTS, target, "host", why, self.host or ""))
        if self.service is None and (self.host is None or "" in self.host.split(",")):
            left_out = "not set, so libpq uses the server and the password of your environment"
            found.append(Reach(CREDENTIALS, LIBPQ, "host", left_out, self.host or ""))
        return found

    def open_memory(self) -> SharedMemory:
        """Connect, and read the manifest of the memory.

        Raises:
            MissingPackageError: psycopg is not installed.
            DatabaseError: the server can't be reached, or has no such memory.
        """
        self.check()  # stored recipes are unchecked: a name may be a whole connection string
        return open_shared_memory(self)

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> PgvectorRetriever:
        """Return the retriever over the database, using a memory opened by `open_memory`.

        Raises:
            RecipeError: there is no embedder.
            DataError: the database's vectors are from another embedder.
        """
        if embedder is None:
            raise RecipeError(
                "retriever",
                "searches by vectors and needs an embedder, but the recipe has none",
                "add the embedder shown by cm3 postgres stat",
            )
        shared = memory if isinstance(memory, _memory_class()) else self.open_memory()
        shared.check_embedder(embedder)
        from cm3postgres.search import PgvectorRetriever

        return PgvectorRetriever(self, self, shared, embedder)


def open_shared_memory(options: ConnectionOptions) -> SharedMemory:
    """Open the memory at these options; see `PgvectorRetrieverConfig.open_memory`."""
    return _memory_class().open(options)


def _memory_class() -> type[SharedMemory]:
    from cm3postgres.memory import SharedMemory

    return SharedMemory
