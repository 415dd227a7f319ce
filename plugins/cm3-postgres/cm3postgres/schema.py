"""The tables of a memory in PostgreSQL: creating them, and converting a bank's documents to rows and back.

    about             one row: the format, embedder and image tokenizer, as in a bank's manifest
    tokenizer_files   the image tokenizer's files, if it needs any
    documents         one row per document; numbers are ascending and never reused

A row stores `segments` as JSON, as in a bank's `documents.jsonl`: texts, and indices of pictures. `codes` holds the
pictures' codes, concatenated, little-endian, in the bank's dtype. `text` repeats the texts for people who read the table.

Legend: c codes per picture, E numbers per vector.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from psycopg import sql
from psycopg.types.json import Jsonb

from cm3core.arguments import CountOrZero
from cm3core.document import Codes, Document, Text, text_of
from cm3core.errors import DatabaseError, DataError
from cm3core.interfaces.dataset import Provenance
from cm3run.bank.manifest import MadeWith, made_with
from cm3run.bank.shard import LENGTH_TOLERANCE, BankDocument, code_type
from cm3run.json_text import StoredName, check_form, parse_json

if TYPE_CHECKING:
    from cm3postgres.connection import Database
    from cm3postgres.pool import Connection
    from cm3run.bank.manifest import Manifest


FORMAT = 1
#: The graph is built over 16-bit vectors; pgvector indexes up to this many numbers (since this version).
MOST_INDEXED, LEAST_VERSION = 4000, (0, 7)
#: pgvector's own limit for a vector.
MOST_NUMBERS = 16_000
#: Vectors up to this many numbers are stored in the row, which is fastest to compare; a row must fit in a
#: page of 8 kB.
_MOST_INLINE = 1500
VECTOR_INDEX = "documents_by_vector"
#: Links per node, and size of the candidate list while the graph is built: pgvector's defaults.
LINKS, CONSTRUCTION = 16, 64


def create(database: Database, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Create the schema and its empty tables; a failure leaves nothing behind.

    Args:
        database: the connection.
        manifest: embedder and image tokenizer of future documents.
        files: files of the image tokenizer, by name.

    Raises:
        DataError: vectors have more numbers than pgvector supports.
        DatabaseError: the memory exists, pgvector is missing, or the user lacks the rights.
    """
    if manifest.dimension > MOST_NUMBERS:
        raise DataError(
            "embedder",
            f"has vectors of {manifest.dimension:,} numbers, but pgvector supports {MOST_NUMBERS:,}",
            "use another embedder",
        )

    def work(connection: Connection) -> None:
        check_extension(connection, database.place, create=True)
        there = connection.execute(
            "SELECT to_regclass(%s)", [f"{database.options.schema}.about"]
        ).fetchone()
        if there is not None and there[0] is not None:
            raise DatabaseError(
                database.place,
                "already holds a memory",
                "use another schema, or add to this one: cm3 postgres push",
            )
        for statement in _statements(manifest.dimension):
            connection.execute(formatted(statement, database.options.schema))
        connection.execute(
            formatted(
                "INSERT INTO {s}.about (format, made_with) VALUES (%s, %s)", database.options.schema
            ),
            [FORMAT, Jsonb(_made_with(manifest))],
        )
        for name, content in files.items():
            connection.execute(
                formatted(
                    "INSERT INTO {s}.tokenizer_files VALUES (%s, %s)", database.options.schema
                ),
                [name, content],
            )

    database.run(work)
    database.close()  # a connection reads a new extension's types when it is opened


def _statements(dimension: int) -> list[str]:
    inline = dimension <= _MOST_INLINE
    return [
        "CREATE SCHEMA IF NOT EXISTS {s}",
        "CREATE TABLE {s}.about (only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row), "
        "format integer NOT NULL, made_with jsonb NOT NULL)",
        "CREATE TABLE {s}.tokenizer_files (name text PRIMARY KEY, content bytea NOT NULL)",
        "CREATE TABLE {s}.documents ("
        "number bigint GENERATED ALWAYS AS IDENTITY (MINVALUE 0 START 0) PRIMARY KEY, "
        "id text NOT NULL UNIQUE, "
        "licence text NOT NULL, source text NOT NULL, attribution text NOT NULL, "
        "style text NOT NULL, "
        "added timestamptz NOT NULL DEFAULT now(), "
        "has_both boolean NOT NULL, "
        "keys text[] NOT NULL, "
        "text text NOT NULL, "
        "segments bytea NOT NULL, "
        "codes bytea NOT NULL, "
        "digest bytea NOT NULL, "
        f"vector vector({dimension}) NOT NULL)",
        f"ALTER TABLE {{s}}.documents ALTER vector SET STORAGE {'PLAIN' if inline else 'EXTERNAL'}",
        "CREATE INDEX documents_by_licence ON {s}.documents (licence)",
        "CREATE INDEX documents_by_source ON {s}.documents (source)",
        "CREATE INDEX documents_by_style ON {s}.documents (style)",
    ]


def build_index(database: Database, dimension: int, links: int, construction: int) -> bool:
    """Build the HNSW graph if it is missing; return whether it was built. Adding documents waits until it is
    done.

    Args:
        database: database of the memory.
        dimension: E.
        links, construction: the graph's `m` and `ef_construction` in pgvector.

    Raises:
        DatabaseError: vectors have more numbers than an index supports, or the server rejects it.
    """
    if dimension > MOST_INDEXED:
        raise DatabaseError(
            database.place,
            f"has vectors of {dimension:,} numbers, but a graph supports at most {MOST_INDEXED:,}",
            "search without one, which is exact and slow",
        )

    def work(connection: Connection) -> bool:
        schema = database.options.schema
        there = connection.execute(
            "SELECT to_regclass(%s)", [f"{schema}.{VECTOR_INDEX}"]
        ).fetchone()
        if there is not None and there[0] is not None:
            return False
        connection.execute(
            formatted(
                f"CREATE INDEX {VECTOR_INDEX} ON {{s}}.documents USING hnsw "
                f"((vector::halfvec({dimension})) halfvec_ip_ops) "
                f"WITH (m = {int(links)}, ef_construction = {int(construction)})",
                schema,
            )
        )
        return True

    return database.run(work, limited=False)


def read_manifest(connection: Connection, database: Database) -> Manifest:
    """Read the memory's manifest, which has no shards.

    Raises:
        DatabaseError: it is damaged, or has a newer version.
    """
    rows: list[Any] = connection.execute(
        formatted("SELECT format, made_with FROM {s}.about", database.options.schema)
    ).fetchall()
    if not rows:
        raise DatabaseError(
            database.place,
            "holds no memory",
            "create it: cm3 postgres init BANK, with the same keys",
        )
    ((number, values),) = rows
    if not isinstance(number, int) or number > FORMAT:
        raise DatabaseError(
            database.place,
            f"has the format {number}, but this version reads {FORMAT}",
            "use a newer cm3leon",
        )
    try:
        check_form(values, MadeWith, database.place)
        return made_with(values)
    except DataError as error:
        raise DatabaseError(
            database.place,
            f"its table 'about' is damaged ({error.cause})",
            "create the memory again",
        ) from error


def check_extension(connection: Connection, place: str, *, create: bool = False) -> tuple[int, ...]:
    """Return the version of pgvector in the database.

    Args:
        connection: connection to the database.
        place: name for messages.
        create: create the extension if it is missing.

    Raises:
        DatabaseError: the extension is missing or too old.
    """
    available = connection.execute(
        "SELECT coalesce((SELECT extversion FROM pg_extension WHERE extname = 'vector'), "
        "(SELECT default_version FROM pg_available_extensions WHERE name = 'vector'))"
    ).fetchone()
    version = None if available is None else available[0]
    if version is None:
        raise DatabaseError(
            place,
            "its server does not have the extension pgvector",
            "install it there; on Debian: apt-get install postgresql-VERSION-pgvector",
        )
    numbers = tuple(int(part) for part in str(version).split(".") if part.isdigit())
    if numbers < LEAST_VERSION:
        raise DatabaseError(
            place,
            f"has pgvector {version}, but needs {'.'.join(map(str, LEAST_VERSION))} or newer",
            "install a newer one, then: ALTER EXTENSION vector UPDATE",
        )
    if create:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    return numbers


def formatted(statement: str, schema: str) -> sql.Composed:
    """Replace `{s}` in a statement by the quoted schema name."""
    return sql.SQL(statement).format(s=sql.Identifier(schema))


def _made_with(manifest: Manifest) -> dict[str, Any]:
    values = asdict(manifest)
    kept: dict[str, Any] = json.loads(
        json.dumps({key: values[key] for key in ("dimension", "embedder", "image_tokenizer")})
    )
    return kept


#: Columns to read, in order.
READ = "number, id, keys, has_both, segments, codes, vector"
#: What they hold, but for the vector. The tables may be anybody's: columns of other types, NULL within an array.
_Row = tuple[int, StoredName, list[str], bool, bytes, bytes]


@dataclass(frozen=True)
class About:
    """The fields used by filters.

    Args:
        provenance: licence, source and attribution.
        style: "" if the document has none.
    """

    provenance: Provenance = field(default_factory=Provenance)
    style: str = ""


@dataclass(frozen=True, eq=False)
class StoredDocument:
    """A row: its `number` and the document."""

    number: int
    has_both: bool
    document: BankDocument


def row_of(one: BankDocument, about: About, manifest: Manifest) -> tuple[Any, ...]:
    """Return the values of the columns `memory.COLUMNS`.

    Raises:
        DataError: the database can't store this document.
    """
    place = f"document {one.id!r}"
    told = about.provenance
    # the table has no column for the address, so it goes into the attribution
    named = ", ".join(filter(None, (told.attribution, told.link)))
    _check_texts(
        place,
        {
            "id": one.id,
            "licence": told.licence,
            "source": told.source,
            "attribution": named,
            "style": about.style,
        },
    )
    segments, pictures = _segments_of(place, one, manifest)
    vector = np.ascontiguousarray(one.vector, np.float32)
    if vector.shape != (manifest.dimension,) or not _is_unit(vector):
        raise DataError(
            place,
            f"its vector is not a unit vector of {manifest.dimension} numbers",
            "build the bank again",
        )
    text, codes = json.dumps(segments).encode(), b"".join(pictures)
    has_both = bool(pictures) and any(isinstance(part, str) and part for part in segments)
    keys = sorted(one.content_keys)
    digest = hashlib.sha256(
        b"\0".join([json.dumps([one.id, keys]).encode(), text, codes, vector.tobytes()])
    ).digest()
    shown = text_of(one.document).replace("\0", " ").encode("utf-8", "replace").decode()
    provenance = (one.id, told.licence, told.source, named, about.style)
    return (*provenance, has_both, keys, shown, text, codes, digest, vector)


def _check_texts(place: str, texts: Mapping[str, str]) -> None:
    """Raise `DataError` for a text that PostgreSQL can't store; `texts`: name -> text."""
    for name, value in texts.items():
        if "\0" in value or not _is_unicode(value):
            raise DataError(
                place,
                f"its {name} contains a character that PostgreSQL can't store",
                f"use another {name}",
            )


def _segments_of(
    place: str, one: BankDocument, manifest: Manifest
) -> tuple[list[str | int], list[bytes]]:
    """Return a document's texts and indices of pictures, and the pictures' codes."""
    segments: list[str | int] = []
    pictures: list[bytes] = []
    for segment in one.document:
        if isinstance(segment, Text):
            if not _is_unicode(segment.text):
                cause = "its text contains half a character (a lone surrogate)"
                raise DataError(place, cause, "correct the text")
            segments.append(segment.text)
        elif isinstance(segment, Codes) and segment.missing is None:
            segments.append(len(pictures))
            pictures.append(
                np.ascontiguousarray(segment.codes, code_type(manifest.image_tokenizer)).tobytes()
            )
        else:
            raise DataError(
                place,
                f"contains {type(segment).__name__}, but a memory stores only texts and codes",
                "build a bank of it first: cm3 memory build",
            )
    return segments, pictures


def stored(row: tuple[Any, ...], manifest: Manifest, place: str) -> StoredDocument:
    """Convert a row of the columns `READ` to a document.

    Raises:
        DataError: the row is damaged.
    """
    number, name, keys, has_both, segments, codes, vector = row
    tokenizer = manifest.image_tokenizer
    try:
        check_form(row[:-1], _Row, place)
        parts = parse_json(segments, "segments", form=list[str | CountOrZero])
        codes_pc = np.frombuffer(codes, code_type(tokenizer)).astype(np.int32)
        codes_pc = codes_pc.reshape(-1, tokenizer.grid[0] * tokenizer.grid[1])
        if codes_pc.size and not 0 <= codes_pc.min() <= codes_pc.max() < tokenizer.codebook_size:
            raise ValueError(
                f"codes {codes_pc.min()}..{codes_pc.max()}, but the codebook has "
                f"{tokenizer.codebook_size} entries"
            )
        if any(isinstance(part, int) and part >= len(codes_pc) for part in parts):
            raise ValueError("a missing picture")
        document: Document = tuple(
            Text(part) if isinstance(part, str) else Codes(codes_pc[part], tokenizer.grid)
            for part in parts
        )
        # pgvector's Python package returns arrays or, since version 0.5, its own objects
        values = np.asarray(getattr(vector, "to_numpy", lambda: vector)(), np.float32)
        if values.shape != (manifest.dimension,):
            raise ValueError(f"a vector of {values.size} numbers")
        if not _is_unit(values):
            raise ValueError(f"a vector of length {np.linalg.norm(values):g}, not 1")
    except (ValueError, TypeError) as error:
        cause = f"{error.place} {error.cause}" if isinstance(error, DataError) else error
        raise DataError(
            f"{place}, document {name!r}",
            f"is damaged ({cause})",
            "remove it (cm3 postgres remove) and push it again",
        ) from error
    return StoredDocument(number, has_both, BankDocument(name, document, frozenset(keys), values))


def _is_unit(vector: npt.NDArray[np.float32]) -> bool:
    return bool(abs(float(np.linalg.norm(vector)) - 1) <= LENGTH_TOLERANCE)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
