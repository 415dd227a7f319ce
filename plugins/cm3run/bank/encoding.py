"""From documents of a data set to documents of a bank: read, embedded, pictures as codes. Legend: E
numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from cm3core import images
from cm3core.document import Codes, Document, Image, PixelArray, Text, content_keys
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource, Provenance, SkippedRecord
from cm3run.bank.shard import LENGTH_TOLERANCE, BankDocument
from cm3run.bank.tools import Tools

#: Documents embedded together, and pixels of their pictures after which no more are read.
_AT_ONCE, _PIXELS_AT_ONCE = 32, 1 << 25
#: Id, document and provenance.
_Read: TypeAlias = tuple[str, Document, Provenance]


def encoded_documents(
    source: DocumentSource,
    places: Sequence[int],
    tools: Tools,
    id_prefix: str,
    skipped: list[SkippedRecord],
) -> Iterator[BankDocument]:
    """The documents of a shard; what can't be used is reported in `skipped`."""
    batch: list[_Read] = []
    num_pixels = 0
    for index in places:
        name = id_prefix + source.id(index)
        try:
            document = _read(source.document(index), name)
        except DataError as error:
            skipped.append(SkippedRecord(error.place, error.cause, error.next_step))
            continue
        batch.append((name, document, source.provenance(index)))
        num_pixels += sum(segment.load().size for segment in document if isinstance(segment, Image))
        if len(batch) == _AT_ONCE or num_pixels >= _PIXELS_AT_ONCE:
            yield from _encoded(batch, tools, skipped)
            batch, num_pixels = [], 0
    yield from _encoded(batch, tools, skipped)


def _read(document: Document, name: str) -> Document:
    """The document with its pixels in memory: the embedder and the tokenizer both look at them."""
    for segment in document:
        if not isinstance(segment, (Text, Image)):
            raise DataError(
                f"document {name}",
                f"holds {type(segment).__name__}; a bank is built of texts and pictures",
                "merge banks with cm3 memory merge, or fill holes first",
            )
    if not any(
        isinstance(segment, Image) or segment.text.strip()
        for segment in document
        if isinstance(segment, (Image, Text))
    ):
        raise DataError(f"document {name}", "has neither text nor a picture", "give it one of them")
    return tuple(
        replace(segment, load=partial(_same, segment.load()))
        if isinstance(segment, Image)
        else segment
        for segment in document
    )


def _same(pixels: PixelArray) -> PixelArray:
    return pixels


def _encoded(
    batch: Sequence[_Read], tools: Tools, skipped: list[SkippedRecord]
) -> Iterator[BankDocument]:
    """Vectors and codes of documents that were read."""
    if not batch:
        return
    try:
        vectors_BE = tools.embedder.embed_documents([document for _, document, _ in batch])
    except DataError as error:
        if len(batch) > 1:
            for one in batch:
                yield from _encoded([one], tools, skipped)
        else:
            cause = f"can't be embedded ({error.place}: {error.cause})"
            skipped.append(SkippedRecord(f"document {batch[0][0]}", cause, error.next_step))
        return
    tokenizer = tools.image_tokenizer
    for (name, document, provenance), vector in zip(batch, vectors_BE, strict=True):
        # One by one, as a model does with what it is asked about: in a batch, the last bits depend
        # on how many there are.
        coded = tuple(
            Codes(
                tokenizer.encode(images.fit(segment.load(), tokenizer.image_size)[None])[0],
                tokenizer.grid,
            )
            if isinstance(segment, Image)
            else segment
            for segment in document
        )
        length = float(np.linalg.norm(vector))
        if not abs(length - 1) <= LENGTH_TOLERANCE:
            skipped.append(
                SkippedRecord(
                    f"document {name}",
                    f"the embedder gives it a vector of length {length:g}, not 1",
                    "look at its text and pictures, or use another embedder",
                )
            )
            continue
        keys = content_keys(document) | content_keys(coded)
        yield BankDocument(name, coded, keys, vector, provenance)
