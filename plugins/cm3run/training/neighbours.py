"""Each document's neighbours in the memory, found once and cached on disk.

Training only looks them up.

Legend: N documents, R numbers stored per document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cm3core.document import Codes, Document, Image, IntArray, PixelArray, Text, content_keys
from cm3core.files import cache_folder
from cm3core.interfaces.dataset import DocumentSource
from cm3run.progress import make_bar
from cm3run.training.code_cache import NOTHING, CodeCache, sharded_rows

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import Embedder
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.retriever import Region, Retriever, RetrieverConfig

#: Part of the folders' names; increased when the same settings find other neighbours.
_VERSION = 6
#: Numbers stored for a document found for a part: its index, and the part's box.
_PART = 5
#: Keys of a retriever that don't affect its results: the number of results used, and the source of the
#: inputs.
_NOT_RESULTS = (
    "num_retrieved",
    "random_num_retrieved",
    "num_ranks",
    "order",
    "own_share",
    "full_share",
    "bank",
    "query_dropout",
    "cache",
)


def retriever_fingerprint(
    config: RetrieverConfig, embedder: Embedder | None, memory: DocumentSource
) -> str:
    """Hash of everything that determines a retriever's results, except their number."""
    left_out = (*_NOT_RESULTS, *getattr(config, "only_in_generation", ()))
    settings = {key: value for key, value in asdict(config).items() if key not in left_out}
    kind = f"{type(config).__module__}.{type(config).__qualname__}"
    parts = [
        kind,
        json.dumps(settings, sort_keys=True, default=str),
        "" if embedder is None else embedder.fingerprint,
        memory.content_fingerprint,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Neighbours(Protocol):
    """The memory documents that may be prepended to each document of a source."""

    def __len__(self) -> int:
        """Number of documents of the source."""
        ...

    def neighbours(self, index: int) -> list[int]:
        """Indices into the memory for document `index`, best first."""
        ...

    def parts(self, index: int) -> list[tuple[int, Region]]:
        """For a document whose picture shows several things: for each its memory index and
        region. Prepended instead of `neighbours`; empty for other documents."""
        ...


@dataclass(frozen=True)
class NeighbourSettings:
    """Settings that determine a table of neighbours, besides the source.

    Args:
        fingerprint: of the retriever, see `retriever_fingerprint`.
        num_ranks: results stored per document.
        query_dropout: probability of dropping each word of a query.
        seed: of the query dropout.
        text_only: use a document's text as the query if it has one, like a prompt for its picture.
    """

    fingerprint: str
    num_ranks: int = 8
    query_dropout: float = 0.0
    seed: int = 0
    text_only: bool = False

    def query(self, source: DocumentSource, index: int) -> Document:
        """The query for a document."""
        document = source.query(index)
        if self.text_only:
            texts = (segment for segment in document if isinstance(segment, Text) and segment.text)
            document = tuple(texts) or document
        return (
            with_words_left_out(document, self.query_dropout, _rng_of(self.seed, source.id(index)))
            if self.query_dropout
            else document
        )

    def name(self, source: DocumentSource) -> str:
        """Name of a source's table: equal names mean equal neighbours."""
        asked = [
            _VERSION,
            self.fingerprint,
            source.documents_fingerprint,
            self.num_ranks,
            self.text_only,
            [self.query_dropout, self.seed] if self.query_dropout else None,
            *(["pictures from codes"] if source.is_encoded else []),
        ]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]


@dataclass(frozen=True, eq=False)
class Queries:
    """The documents of a source as queries to a retriever.

    Args:
        retriever: over the memory.
        source: N documents, whose canonical forms are the queries.
        settings: of the queries.
        codes: of the source's pictures, with which a memory of codes identifies a document. Documents
            with unreadable pictures, and empty ones, have no neighbours.
        image_tokenizer: draws the pictures of queries that hold only their codes, as those of token shards; None: such
            queries have no pictures.
    """

    retriever: Retriever
    source: DocumentSource
    settings: NeighbourSettings
    codes: CodeCache | None = None
    image_tokenizer: ImageTokenizer | None = None

    @property
    def width(self) -> int:
        """R."""
        return self.settings.num_ranks + _PART * self.retriever.max_parts

    def rows(self, indices: Sequence[int]) -> IntArray:
        """The results for documents, int32 [len(indices), R]: memory indices, best first, then for each
        part of a picture the index and the box."""
        source, num_ranks = self.source, self.settings.num_ranks
        rows = np.full((len(indices), self.width), NOTHING, np.int32)
        asked = [
            (row, index)
            for row, index in enumerate(indices)
            if source.retrieves(index)
            and (self.codes is None or self.codes.usable_N[index])
            and source.content_keys(index)
        ]
        own = [own_names(source, index, self.codes) for _, index in asked]
        queries = [self._query(index) for _, index in asked]
        found = self.retriever.retrieve(queries, num_ranks, own)
        for (row, _), results in zip(asked, found, strict=True):
            rows[row, : len(results)] = [result.index for result in results]
        if self.retriever.max_parts:
            of_parts = self.retriever.retrieve_parts(queries, own)
            for (row, _), results in zip(asked, of_parts, strict=True):
                flat = [value for one in results for value in (one.index, *(one.region or ()))]
                rows[row, num_ranks : num_ranks + len(flat)] = flat
        return rows

    def _query(self, index: int) -> Document:
        document, tokenizer = self.settings.query(self.source, index), self.image_tokenizer
        return document if tokenizer is None else with_pictures(document, tokenizer)

    def neighbours(self, row_R: IntArray) -> list[int]:
        """See `Neighbours.neighbours`; for one row."""
        return [found for found in row_R[: self.settings.num_ranks].tolist() if found != NOTHING]

    def parts(self, row_R: IntArray) -> list[tuple[int, Region]]:
        """See `Neighbours.parts`; for one row."""
        rows = row_R[self.settings.num_ranks :].reshape(-1, _PART).tolist()
        return [(found, (x0, y0, x1, y1)) for found, x0, y0, x1, y1 in rows if found != NOTHING]


class NeighbourTable:
    """The memory documents that a retriever finds for each document of a source, cached on disk.

    They are sorted, best first, and never include the document itself.

    Args:
        queries: to the memory.
        cache_dir: where caches are kept; None: `files.cache_directory()`.
        progress: show a bar while retrieving.
        shard_size: number of documents queried at once.
    """

    def __init__(
        self,
        queries: Queries,
        cache_dir: Path | None = None,
        *,
        progress: bool = True,
        shard_size: int = 1024,
    ) -> None:
        self._queries = queries
        name = queries.settings.name(queries.source)
        self.folder = cache_folder("neighbours", name, root=cache_dir)
        self._rows_NR = sharded_rows(
            self.folder,
            (len(queries.source), queries.width),
            np.int32,
            lambda start, stop: queries.rows(range(start, stop)),
            shard_size=shard_size,
            bar=partial(make_bar, desc="neighbours", unit="document", disable=not progress),
            what=f"finding the neighbours of {len(queries.source):,} documents",
        )

    def __len__(self) -> int:
        return len(self._rows_NR)

    def neighbours(self, index: int) -> list[int]:
        """See `Neighbours.neighbours`; at most `num_ranks`."""
        return self._queries.neighbours(self._rows_NR[index])

    def parts(self, index: int) -> list[tuple[int, Region]]:
        """See `Neighbours.parts`."""
        return self._queries.parts(self._rows_NR[index])


class NeighboursOnDemand:
    """The neighbours of documents, found when requested: for few documents of a large source, as in validation.

    Args:
        queries: the documents.
    """

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._rows: dict[int, IntArray] = {}

    def __len__(self) -> int:
        return len(self._queries.source)

    def _row(self, index: int) -> IntArray:
        if index not in self._rows:
            [self._rows[index]] = self._queries.rows([index])
        return self._rows[index]

    def neighbours(self, index: int) -> list[int]:
        """See `Neighbours.neighbours`."""
        return self._queries.neighbours(self._row(index))

    def parts(self, index: int) -> list[tuple[int, Region]]:
        """See `Neighbours.parts`."""
        return self._queries.parts(self._row(index))


def own_names(
    source: DocumentSource, index: int, codes: CodeCache | None = None
) -> Collection[str]:
    """Names to exclude from retrieval for a document: its id and its content keys.

    Includes the keys of its pictures as codes.
    """
    names = {source.id(index), *source.content_keys(index)}
    if codes is not None and codes.usable_N[index]:
        names |= content_keys(codes.encoded(source.document(index)))
    return names


def with_words_left_out(document: Document, share: float, rng: np.random.Generator) -> Document:
    """The document with each word of its texts dropped with probability `share`.

    Each text that has words keeps at least one.

    >>> with_words_left_out((Text("a very red apple"),), 0.5, np.random.default_rng(1))
    (Text(text='very apple'),)
    """

    def shortened(text: str) -> str:
        if not (words := text.split()):
            return text
        draws = rng.random(len(words))
        kept = [word for word, draw in zip(words, draws, strict=True) if draw >= share]
        return " ".join(kept or [words[int(draws.argmax())]])

    return tuple(
        Text(shortened(segment.text)) if isinstance(segment, Text) else segment
        for segment in document
    )


def with_pictures(document: Document, tokenizer: ImageTokenizer) -> Document:
    """The document with pictures in place of codes, which are decoded if a retriever looks at them."""
    return tuple(
        Image(f"codes-{_hash_of(one)}", partial(_decoded, tokenizer, one))
        if isinstance(one, Codes)
        else one
        for one in document
    )


def _hash_of(codes: Codes) -> str:
    return hashlib.sha256(codes.codes.tobytes()).hexdigest()


def _decoded(tokenizer: ImageTokenizer, codes: Codes) -> PixelArray:
    picture: PixelArray = tokenizer.decode(codes.codes[None])[0]  # in a batch, the last bits differ
    return picture


def _rng_of(seed: int, name: str) -> np.random.Generator:
    """A generator per document, so that its query does not depend on other documents."""
    digest = hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
