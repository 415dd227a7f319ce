"""Turn a bank's document into a row of the table `documents`, and back.

`segments` is JSON as in a bank's `documents.jsonl`: texts, and numbers of pictures. `codes` holds the
pictures' codes, concatenated, little-endian, in the bank's type. `text` repeats the texts for people who
look at the table. Legend: c codes of a picture, E numbers of a vector.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cm3core.document import Codes, Document, Text, text_of
from cm3core.errors import DataError
from cm3core.interfaces.dataset import Provenance
from cm3run.bank.shard import LENGTH_TOLERANCE, BankDocument, code_type

if TYPE_CHECKING:
    from cm3run.bank.manifest import Manifest

#: Columns to read, in order.
READ = "number, id, keys, has_both, segments, codes, vector"


@dataclass(frozen=True)
class About:
    """The fields that filters use.

    Args:
        provenance: licence, source and attribution.
        style: "" if the document has none.
    """

    provenance: Provenance = field(default_factory=Provenance)
    style: str = ""


@dataclass(frozen=True, eq=False)
class StoredDocument:
    """A row as it was read: its `number` and the document."""

    number: int
    has_both: bool
    document: BankDocument


def row_of(one: BankDocument, about: About, manifest: Manifest) -> tuple[Any, ...]:
    """Values of the columns `memory.COLUMNS`.

    Raises:
        DataError: a database can't hold this document.
    """
    place = f"document {one.id!r}"
    told = about.provenance
    # the table has no column for the address, so it goes into the attribution
    named = ", ".join(filter(None, (told.attribution, told.link)))
    for name, value in (
        ("id", one.id),
        ("licence", told.licence),
        ("source", told.source),
        ("attribution", named),
        ("style", about.style),
    ):
        if "\0" in value or not _is_unicode(value):
            raise DataError(
                place,
                f"its {name} holds a character that PostgreSQL can't",
                f"give it another {name}",
            )
    segments: list[str | int] = []
    pictures: list[bytes] = []
    for segment in one.document:
        if isinstance(segment, Text):
            segments.append(segment.text)
        elif isinstance(segment, Codes) and segment.missing is None:
            segments.append(len(pictures))
            pictures.append(
                np.ascontiguousarray(segment.codes, code_type(manifest.image_tokenizer)).tobytes()
            )
        else:
            raise DataError(
                place,
                f"holds {type(segment).__name__}, and a memory holds texts and codes",
                "build a bank of it first: cm3 memory build",
            )
    vector = np.ascontiguousarray(one.vector, np.float32)
    if vector.shape != (manifest.dimension,) or not (
        abs(float(np.linalg.norm(vector)) - 1) <= LENGTH_TOLERANCE
    ):
        raise DataError(
            place,
            f"its vector is no unit vector of {manifest.dimension} numbers",
            "build the bank again",
        )
    text, codes = json.dumps(segments).encode(), b"".join(pictures)
    has_both = bool(pictures) and any(isinstance(part, str) and part for part in segments)
    keys = sorted(one.content_keys)
    digest = hashlib.sha256(
        b"\0".join([json.dumps([one.id, keys]).encode(), text, codes, vector.tobytes()])
    ).digest()
    shown = text_of(one.document).replace("\0", " ").encode("utf-8", "replace").decode()
    return (
        one.id,
        told.licence,
        told.source,
        named,
        about.style,
        has_both,
        keys,
        shown,
        text,
        codes,
        digest,
        vector,
    )


def stored(row: tuple[Any, ...], manifest: Manifest, place: str) -> StoredDocument:
    """Turn a row of the columns `READ` into a document.

    Raises:
        DataError: the row is damaged.
    """
    number, name, keys, has_both, segments, codes, vector = row
    tokenizer = manifest.image_tokenizer
    try:
        parts = json.loads(segments)
        if not isinstance(parts, list) or not all(type(part) in (str, int) for part in parts):
            raise TypeError("segments of unexpected types")
        codes_pc = np.frombuffer(codes, code_type(tokenizer)).astype(np.int32)
        codes_pc = codes_pc.reshape(-1, tokenizer.grid[0] * tokenizer.grid[1])
        if codes_pc.size and not 0 <= codes_pc.min() <= codes_pc.max() < tokenizer.codebook_size:
            raise ValueError(
                f"codes {codes_pc.min()}..{codes_pc.max()}, the codebook has "
                f"{tokenizer.codebook_size} entries"
            )
        if any(type(part) is int and not 0 <= part < len(codes_pc) for part in parts):
            raise ValueError("a picture that is not there")
        document: Document = tuple(
            Text(part) if isinstance(part, str) else Codes(codes_pc[part], tokenizer.grid)
            for part in parts
        )
        # pgvector's Python package returns arrays, since version 0.5 its own objects
        values = np.asarray(getattr(vector, "to_numpy", lambda: vector)(), np.float32)
        if values.shape != (manifest.dimension,):
            raise ValueError(f"a vector of {values.size} numbers")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{place}, document {name!r}",
            f"is damaged ({error})",
            "remove it (cm3 postgres remove) and push it again",
        ) from error
    return StoredDocument(number, has_both, BankDocument(name, document, frozenset(keys), values))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
