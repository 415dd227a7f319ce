"""`pgvector`: documents in a PostgreSQL database, shared by all models that draw from it.

    options.py     the recipe's keys; light
    config.py      what is built of them; light
    connection.py  a connection that is reopened when it is lost
    schema.py      the tables, and how they are created
    rows.py        documents to rows of the table, and back
    memory.py      the database as a source of documents; adding and removing them
    search.py      the retriever
    transfer.py    copies whole banks into a database, and back

Needs `pip install 'cm3leon[pgvector]'` and a server with the extension pgvector 0.7 or newer.
"""

from cm3plugins.retrievers.pgvector.config import PgvectorRetrieverConfig
from cm3plugins.retrievers.pgvector.options import ConnectionOptions

__all__ = ["ConnectionOptions", "PgvectorRetrieverConfig"]
