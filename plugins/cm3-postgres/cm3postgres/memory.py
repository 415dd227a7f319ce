"""A memory in PostgreSQL as a source of documents, which can be added and removed at any time.

A document's index is its number in the database. Numbers are never reused, so an index always refers to the
same document or, once that is removed, to none.

Legend: E numbers per vector.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from cm3core.document import Document
from cm3core.errors import DataError
from cm3core.interfaces.dataset import UNKNOWN_LICENCE, Provenance
from cm3postgres.connection import Database
from cm3postgres.schema import (
    READ,
    About,
    StoredDocument,
    check_extension,
    create,
    formatted,
    read_manifest,
    row_of,
    stored,
)
from cm3run.bank import Memory
from cm3run.bank.shard import BankDocument

if TYPE_CHECKING:
    import numpy as np

    from cm3postgres.options import ConnectionOptions
    from cm3postgres.pool import Connection
    from cm3run.bank import Manifest

#: Columns to write, in the order of `rows.row_of`.
COLUMNS = (
    "id, licence, source, attribution, style, has_both, keys, text, segments, codes, digest, vector"
)
#: Number of documents added in one transaction, and read from the server at a time.
AT_ONCE = 1000
#: Number of recently found documents to cache, so that reading them needs no request to the server.
_KEPT = 4096


@dataclass(frozen=True)
class AddReport:
    """The numbers of documents added, replaced, and skipped because they already exist."""

    num_added: int = 0
    num_replaced: int = 0
    num_there: int = 0

    def __add__(self, other: AddReport) -> AddReport:
        return AddReport(
            self.num_added + other.num_added,
            self.num_replaced + other.num_replaced,
            self.num_there + other.num_there,
        )


@dataclass(frozen=True)
class Filter:
    """Selects documents with one of these licences, sources and styles; empty: any."""

    licences: Sequence[str] = ()
    sources: Sequence[str] = ()
    styles: Sequence[str] = ()

    @property
    def condition(self) -> str:
        """The condition for WHERE, with parameters `values`."""
        parts = [f"{column} = ANY(%({column})s)" for column, wanted in self._columns() if wanted]
        return " AND ".join(parts) or "true"

    @property
    def values(self) -> dict[str, list[str]]:
        """Values of the condition's parameters."""
        return {column: list(wanted) for column, wanted in self._columns() if wanted}

    def _columns(self) -> tuple[tuple[str, Sequence[str]], ...]:
        return (("licence", self.licences), ("source", self.sources), ("style", self.styles))


class SharedMemory(Memory):
    """Documents in PostgreSQL; use `open` or `create`.

    Args:
        database: connection.
        manifest: embedder and image tokenizer of the documents.
        version: version of pgvector.
    """

    def __init__(self, database: Database, manifest: Manifest, version: tuple[int, ...]) -> None:
        self.database, self.manifest, self.version = database, manifest, version
        self._kept: OrderedDict[int, StoredDocument] = OrderedDict()
        self._lock = threading.Lock()
        self._length = 0
        self.refresh()

    def __reduce__(
        self,
    ) -> tuple[type[SharedMemory], tuple[Database, Manifest, tuple[int, ...]]]:
        return type(self), (self.database, self.manifest, self.version)

    @classmethod
    def open(cls, options: ConnectionOptions) -> SharedMemory:
        """Connect to an existing memory.

        Raises:
            DatabaseError: the database can't be reached, or is not a memory.
        """
        database = Database(options)

        def work(connection: Connection) -> tuple[Manifest, tuple[int, ...]]:
            version = check_extension(connection, database.place)
            return read_manifest(connection, database), version

        return cls(database, *database.run(work))

    @classmethod
    def create(
        cls, options: ConnectionOptions, manifest: Manifest, files: Mapping[str, bytes]
    ) -> SharedMemory:
        """Create an empty memory. Arguments and errors as in `schema.create`."""
        create(Database(options), manifest, files)
        return cls.open(options)

    @property
    def place(self) -> str:
        """Schema, database and host."""
        return self.database.place

    def close(self) -> None:
        """Close the connections; they are reopened when needed."""
        self.database.close()

    def __len__(self) -> int:
        """One more than the largest document number known to this process, including removed
        documents."""
        return self._length

    @property
    def num_documents(self) -> int:
        """The current number of documents."""
        return int(self._one("SELECT count(*) FROM {s}.documents")[0])

    def refresh(self) -> None:
        """Ask the server for the largest number."""
        largest = self._one("SELECT coalesce(max(number), -1) FROM {s}.documents")[0]
        self._length = max(self._length, int(largest) + 1)

    def id(self, index: int) -> str:
        """The id under which the document was added."""
        return self.stored(index).document.id

    def content_keys(self, index: int) -> frozenset[str]:
        """Content keys of the source document and of its codes."""
        return self.stored(index).document.content_keys

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return self.stored(index).document.document

    def provenance(self, index: int) -> Provenance:
        """Licence, source and attribution, as given when the document was added."""
        row = self._one(
            "SELECT licence, source, attribution FROM {s}.documents WHERE number = %s", [index]
        )
        if not row:
            raise self._removed(index)
        return Provenance(*row)

    @property
    def fingerprint(self) -> str:
        """Hash of all current documents, in order, and of their embedder and image tokenizer. The server
        reads them all."""
        digests = self._one(
            "SELECT encode(sha256(coalesce(string_agg(digest, ''::bytea ORDER BY number), ''::bytea)), "
            "'hex') FROM {s}.documents"
        )[0]
        makers = [self.manifest.embedder.fingerprint, self.manifest.image_tokenizer.fingerprint]
        return hashlib.sha256(json.dumps([*makers, digests]).encode()).hexdigest()

    @property
    def content_fingerprint(self) -> str:
        """The same; this process does not read the documents."""
        return self.fingerprint

    def stored(self, index: int) -> StoredDocument:
        """Return a document and its vector, from the recently found ones or from the server.

        Raises:
            DataError: the document was removed.
        """
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
        row = self._one(f"SELECT {READ} FROM {{s}}.documents WHERE number = %s", [index])
        if not row:
            raise self._removed(index)
        return self.keep([row])[0]

    def keep(self, rows: Iterable[tuple[Any, ...]]) -> list[StoredDocument]:
        """Convert rows of the columns `READ` to documents, and cache them by number."""
        found = [stored(row, self.manifest, self.place) for row in rows]
        with self._lock:
            for one in found:
                self._kept[one.number] = one
                self._kept.move_to_end(one.number)
                self._length = max(self._length, one.number + 1)
            while len(self._kept) > max(_KEPT, len(found)):
                self._kept.popitem(last=False)
        return found

    def add(
        self,
        documents: Iterable[tuple[BankDocument, About]],
        *,
        replace: bool = False,
        skip_duplicates: bool = False,
    ) -> Iterator[AddReport]:
        """Add documents, `AT_ONCE` per transaction; others see each transaction as a whole. Documents that already
        exist, byte for byte, are skipped, so an interrupted call can be repeated.

        Args:
            documents: documents with their filter fields.
            replace: replace documents that have the same id and other content, which otherwise raise an
                error.
            skip_duplicates: skip them instead.

        Yields:
            A report for each transaction.

        Raises:
            DataError: an id exists with another content, or a document can't be stored.
            DatabaseError: the server can't be reached or rejects a statement.
        """
        waiting = iter(documents)
        while batch := list(islice(waiting, AT_ONCE)):
            names = [one.id for one, _ in batch]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise DataError(f"document {twice!r}", "is given twice", "use each id once")
            rows = {one.id: row_of(one, about, self.manifest) for one, about in batch}
            yield self.database.run(
                lambda connection, rows=rows: self._add(connection, rows, replace, skip_duplicates)  # type: ignore[misc]  # mypy infers no lambda with a default
            )
        self.refresh()

    def _add(
        self,
        connection: Connection,
        rows: Mapping[str, tuple[Any, ...]],
        replace: bool,
        skip_duplicates: bool,
    ) -> AddReport:
        schema = self.database.options.schema
        there = connection.execute(
            formatted(
                "SELECT id, digest, licence, source, attribution, style FROM {s}.documents "
                "WHERE id = ANY(%s) FOR UPDATE",
                schema,
            ),
            [list(rows)],
        ).fetchall()
        same: set[str] = set()
        changed: set[str] = set()
        for name, digest, *told in there:
            row = rows[str(name)]
            equal = bytes(digest) == row[-2] and tuple(told) == row[1:5]  # type: ignore[call-overload]  # a row of psycopg
            (same if equal else changed).add(str(name))
        if changed and not (replace or skip_duplicates):
            shown = ", ".join(map(repr, sorted(changed)[:3])) + (
                ", ..." if len(changed) > 3 else ""
            )
            raise DataError(
                self.place,
                f"has documents with {len(changed):,} of these ids but different content, licence, "
                f"source or style ({shown})",
                "replace them (--replace), skip them (--skip-duplicates), or use other ids",
            )
        if changed and replace:
            connection.execute(
                formatted("DELETE FROM {s}.documents WHERE id = ANY(%s)", schema), [list(changed)]
            )
        left_out = same if replace else same | changed
        new = [row for name, row in rows.items() if name not in left_out]
        with (
            connection.cursor() as cursor,
            cursor.copy(
                formatted(f"COPY {{s}}.documents ({COLUMNS}) FROM STDIN (FORMAT BINARY)", schema)
            ) as copy,
        ):
            copy.set_types(
                ["text"] * 5 + ["bool", "text[]", "text", "bytea", "bytea", "bytea", "vector"]
            )
            for row in new:
                copy.write_row(row)
        num_replaced = len(changed) if replace else 0
        return AddReport(len(new) - num_replaced, num_replaced, len(left_out))

    def remove(self, names: Sequence[str]) -> list[str]:
        """Remove the documents with these ids in one transaction, and return the ids that existed. Later
        searches don't find them.

        Raises:
            DatabaseError: the server can't be reached or rejects a statement.
        """
        given = [name for name in dict.fromkeys(names) if "\0" not in name]
        return self._removing("id = ANY(%(names)s)", {"names": given})

    def remove_where(self, chosen: Filter) -> list[str]:
        """Remove all documents that match a non-empty filter, and return their ids.

        Raises:
            DatabaseError: the server can't be reached or rejects a statement.
        """
        assert chosen.values, "an empty filter matches every document"
        return self._removing(chosen.condition, chosen.values)

    def _removing(self, condition: str, values: Mapping[str, Any]) -> list[str]:
        statement = formatted(
            f"DELETE FROM {{s}}.documents WHERE {condition} RETURNING number, id",
            self.database.options.schema,
        )
        rows: list[Any] = self.database.run(
            lambda connection: connection.execute(statement, values).fetchall(), limited=False
        )
        with self._lock:
            for number, _ in rows:
                self._kept.pop(number, None)
        return [str(name) for _, name in rows]

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the image tokenizer's files, by name."""
        statement = formatted(
            "SELECT name, content FROM {s}.tokenizer_files", self.database.options.schema
        )
        rows: list[Any] = self.database.run(
            lambda connection: connection.execute(statement).fetchall(), limited=False
        )
        return {str(name): bytes(content) for name, content in rows}

    def _one(self, statement: str, values: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Return the first row of a statement's result; empty if there is none."""
        return self.database.run(
            lambda connection: (
                connection.execute(
                    formatted(statement, self.database.options.schema), values, binary=True
                ).fetchone()
                or ()
            ),
            pipelined=True,
        )

    def _removed(self, index: int) -> DataError:
        return DataError(
            f"{self.place}, document number {index}",
            "does not exist: it was removed",
            "search again; numbers are not reused",
        )


__all__ = ["UNKNOWN_LICENCE", "About", "AddReport", "Filter", "SharedMemory"]
