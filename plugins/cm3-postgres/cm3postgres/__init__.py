"""`pgvector`: documents in a PostgreSQL database, shared by the models that retrieve from it.

    options.py     the recipe's keys; light
    config.py      the config, which builds the retriever; light
    pool.py        the connections of a process
    watching.py    shuts connections whose server is silent
    connection.py  work with one of them, which is reopened when it is lost
    schema.py      the tables, and creating them
    rows.py        converts documents to rows of the table, and back
    memory.py      the database as a source of documents; adding and removing them
    search.py      the retriever
    transfer.py    copies whole banks into a database, and back
    command.py     `cm3 postgres`; stat.py is its action `stat`

Needs a server with the extension pgvector 0.7 or newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cm3core.hookspecs import hookimpl
from cm3postgres.config import PgvectorRetrieverConfig
from cm3postgres.options import ConnectionOptions

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import RetrieverConfig

__all__ = ["ConnectionOptions", "PgvectorRetrieverConfig"]

CM3_API = 1


@hookimpl
def cm3_commands() -> Mapping[str, str]:
    return {"postgres": "cm3postgres.command:configure"}


@hookimpl
def cm3_retrievers() -> Mapping[str, type[RetrieverConfig]]:
    return {"pgvector": PgvectorRetrieverConfig}
