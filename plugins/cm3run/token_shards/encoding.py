"""From documents of a data set to what a shard holds of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cm3core import images
from cm3core.document import Codes, Document, Image, IntArray, Text
from cm3core.errors import CM3Error, DataError
from cm3core.interfaces.dataset import DocumentSource, Provenance, SkippedRecord
from cm3run.token_shards.record import written

if TYPE_CHECKING:
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.text_tokenizer import TextTokenizer

#: Pictures that are in memory and encoded together.
ENCODED_AT_ONCE = 32


@dataclass
class Report:
    """What became of the documents of a shard."""

    skipped: list[SkippedRecord] = field(default_factory=list)
    provenance: dict[Provenance, int] = field(default_factory=dict)


def encoded_pictures(
    pictures: Sequence[Image], tokenizer: ImageTokenizer
) -> Iterator[tuple[Image, IntArray | DataError]]:
    """Yield each picture with its codes int32 [c], or why it can't be read."""
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        chunk = pictures[start : start + ENCODED_AT_ONCE]
        results: list[IntArray | DataError | None] = []
        pixels = []
        for picture in chunk:
            try:
                pixels.append(images.fit(picture.load(), tokenizer.image_size))
                results.append(None)
            except DataError as error:
                results.append(error)
        rows = iter(tokenizer.encode(np.stack(pixels)) if pixels else ())
        for picture, result in zip(chunk, results, strict=True):
            yield picture, next(rows) if result is None else result


def encoded_documents(
    source: DocumentSource,
    places: Sequence[int],
    text_tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer,
    num_texts: int,
    report: Report,
) -> Iterator[tuple[str, bytes, bytes | None]]:
    """Yield key, JSON and codes of each document; what can't be used is counted in `report`."""
    found: dict[int, Document] = {}
    for place in places:
        try:
            found[place] = _read(source, place)
        except DataError as error:
            report.skipped.append(_skipped(error))
    pictures = {
        segment.key: segment
        for document in found.values()
        for segment in document
        if isinstance(segment, Image)
    }
    codes: dict[str, IntArray] = {}
    unreadable: dict[str, DataError] = {}
    for picture, result in encoded_pictures(list(pictures.values()), image_tokenizer):
        if isinstance(result, DataError):
            unreadable[picture.key] = result
        else:
            codes[picture.key] = result
    for place, document in found.items():
        bad = [unreadable[key] for key in _keys(document) if key in unreadable]
        if bad:
            report.skipped.append(_skipped(bad[0]))
            continue
        provenance = source.provenance(place)
        alternatives = source.text_alternatives(place)
        versions = [document]
        if alternatives is None and num_texts > 1:
            versions = _drawn(source, place, document, num_texts)
        try:
            text, file = written(
                source.id(place),
                versions,
                codes,
                text_tokenizer,
                codebook_size=image_tokenizer.codebook_size,
                keys=source.content_keys(place),
                provenance=provenance,
                group=source.group(place),
                alternatives=alternatives,
            )
        except CM3Error as error:
            cause = f"{error.place}: {error.cause}"
            report.skipped.append(
                SkippedRecord(f"document {source.id(place)}", cause, error.next_step)
            )
            continue
        report.provenance[provenance.shared] = report.provenance.get(provenance.shared, 0) + 1
        yield f"{place:012d}", text, file


def _read(source: DocumentSource, place: int) -> Document:
    document = source.document(place)
    name = f"document {source.id(place)}"
    if not document:
        raise DataError(name, "is empty", "give it a text or a picture")
    for segment in document:
        if not isinstance(segment, (Text, Image, Codes)):
            raise DataError(
                name,
                f"holds {type(segment).__name__}; shards are made of texts and pictures",
                "fill holes first",
            )
    return document


def _drawn(
    source: DocumentSource, place: int, document: Document, num_texts: int
) -> list[Document]:
    """The canonical document and others with texts drawn as in training, each once. The draws are a function
    of the document's id."""
    digest = hashlib.sha256(source.id(place).encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    versions = {_texts(document): document}
    for _ in range(num_texts - 1):
        drawn = source.document(place, rng)
        versions.setdefault(_texts(drawn), drawn)
    return list(versions.values())


def _texts(document: Document) -> tuple[tuple[str, object], ...]:
    return tuple(
        (segment.text, segment.responses) for segment in document if isinstance(segment, Text)
    )


def _keys(document: Document) -> Iterable[str]:
    return (segment.key for segment in document if isinstance(segment, Image))


def _skipped(error: DataError) -> SkippedRecord:
    return SkippedRecord(error.place, error.cause, error.next_step)
