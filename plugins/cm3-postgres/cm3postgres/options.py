"""Keys of the retriever `pgvector`: the connection to the database, and the search."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from cm3core.errors import RecipeError
from cm3core.interfaces.reach import TEXT, Outside

#: PostgreSQL truncates longer names.
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
#: Characters of connection strings, which may contain a password.
_CONNECTION_STRING = re.compile(r"[=\s]|://")


@dataclass(kw_only=True)
class ConnectionOptions:
    """The connection to a memory in PostgreSQL.

    Keys that are not set default to libpq's variables `PGHOST`, `PGPORT`, `PGDATABASE`, `PGUSER`,
    `PGSERVICE`, and its defaults. There is no key for a password: set it in `~/.pgpass`,
    `PGPASSWORD` or a service file, which are read by libpq and stored nowhere else.

    Args:
        service: a section of the service file (`~/.pg_service.conf`).
        host: the server's name, or the folder of its Unix socket.
        port: the server's port.
        database: the database.
        user: the user to connect as.
        schema: schema of the memory's tables; a database may have several memories.
        retry_seconds: how long to try to reopen a lost connection before raising an error.
        timeout_seconds: a server that does not answer for this long counts as lost. Also how long a request
            waits if others use all connections.
        num_connections: the most connections of a process. They are opened when threads need them, and an unused
            one is closed after some minutes; one is enough for one thread.
    """

    later_keys: ClassVar[tuple[str, ...]] = ("num_connections",)

    outside: ClassVar[Mapping[str, Outside]] = {
        "service": TEXT,
        "host": TEXT,
        "database": TEXT,
        "user": TEXT,
        "schema": TEXT,
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "port": (1, 65535),
        "retry_seconds": (0, 86400),
        "timeout_seconds": (0.1, 86400),
        "num_connections": (1, 1000),
    }

    service: str | None = None
    host: str | None = None
    port: int | None = None
    database: str | None = None
    user: str | None = None
    schema: str = "cm3_memory"
    retry_seconds: float = 10.0
    timeout_seconds: float = 30.0
    num_connections: int = 8

    def check_connection(self, section: str = "retriever.") -> None:
        """Reject names that PostgreSQL can't have, and connection strings.

        Messages don't repeat these, since they may contain a password."""
        if not _NAME.fullmatch(self.schema):
            raise RecipeError(
                f"{section}schema",
                f"is {self.schema!r}, which is not a valid schema name",
                "use at most 63 of a to z, 0 to 9 and _, without a digit first",
            )
        for name in ("service", "host", "database", "user"):
            value = getattr(self, name)
            if value is not None and (not value or "\0" in value):
                raise RecipeError(f"{section}{name}", "is empty", "leave it out, or set a name")
            if value is not None and _CONNECTION_STRING.search(value):
                raise RecipeError(
                    f"{section}{name}",
                    "is a connection string, but it must be a single name",
                    "set host, port, database and user by their own keys, and a password in "
                    "~/.pgpass, PGPASSWORD or a service file",
                )


@dataclass(kw_only=True)
class SearchOptions:
    """Filters, and the thoroughness of searches.

    Args:
        licences: retrieve only documents with one of these licences; an empty list: any.
        sources: only documents from one of these sources.
        styles: only documents with one of these styles.
        ef_search: size of the candidate list of a search in the HNSW graph: higher values find more and
            take longer.
        num_candidates: number of best results by the graph's 16-bit vectors that are ranked by exact
            score.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "licences": TEXT,
        "sources": TEXT,
        "styles": TEXT,
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "ef_search": (1, 1000),
        "num_candidates": (1, 2**20),
    }

    licences: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    ef_search: int = 200
    num_candidates: int = 64
