"""The keys of the retriever `pgvector`: where the database is, and how it is searched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from cm3core.errors import RecipeError
from cm3core.interfaces.reach import TEXT, Outside

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
class SearchOptions:
    """Which documents are searched, and how thoroughly.

    Args:
        licences: only documents of one of these licences are found; an empty list: of any.
        sources: only documents from one of these sources.
        styles: only documents of one of these styles.
        ef_search: size of the candidate list of a search in the HNSW graph: more finds more, and
            takes longer.
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
