"""The document vectors of a memory, computed once and cached.

The cache is keyed by the fingerprints of everything that determines the vectors. Computing the key reads all captions;
if the source has a quick fingerprint, a file beside the vectors stores the key under it.

Legend: M documents of the memory, E dimension of the embedder.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import ref

import numpy as np
from tqdm import tqdm

from cm3core.document import Document, Image, Text, text_of
from cm3core.errors import DataError, FileError
from cm3core.files import cache_folder, read_text, write_text
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder, VectorArray, normalise
from cm3run.built_once import computed_once
from cm3run.npy import load_array, save_array
from cm3run.progress import estimated_bar

if TYPE_CHECKING:
    from cm3plugins.retrievers.index import VectorIndex
    from cm3run.bank import VectorRows

#: Documents whose ids and texts are read per block, and the largest memory whose texts are cached.
_PIECE, _MOST_REMEMBERED = 1000, 500_000
_last_read: tuple[ref[DocumentSource] | None, tuple[bytes, ...]] = (None, ())
#: Documents embedded per block; their pictures are in memory together, at full size. Texts alone are small, and a third of
#: the time in larger blocks.
AT_ONCE, _TEXTS_AT_ONCE = 32, 256
#: Documents of which a bar is shown while their texts are read: a second's work.
_MANY_TEXTS = 50_000
#: Pictures loaded before the time of embedding is estimated: a memory may be a mixture of corpora.
_PREPARED = 16


def memory_vectors(
    memory: DocumentSource,
    embedder: Embedder,
    *,
    part: str | None = None,
    cache: bool = True,
    path: Path | None = None,
) -> VectorArray:
    """Return unit vectors float32 [M, E] of the canonical documents of `memory`, or of only their `part`, "text"
    or "image" (zeros for a document without it; pictures are embedded by `Embedder.embed_looks`).

    The vectors are memory-mapped from the cache if stored there. Documents that can't be embedded (unreadable
    pictures) get zero vectors, and their number is reported. A cached file that is damaged or has another
    shape is replaced. `path`: their file in the cache, if `vectors_file` was called before.
    """
    if cache and path is None:
        path = vectors_file(memory, embedder, part)
    if path is None:
        return _computed(memory, embedder, part)
    shape = (len(memory), embedder.dimension)
    return computed_once(
        path,
        f"embedding {len(memory):,} documents",
        lambda path: _kept(path, shape),
        lambda: _computed(memory, embedder, part, "done once, then cached"),
        save_array,
    )


def _computed(
    memory: DocumentSource, embedder: Embedder, part: str | None, note: str = ""
) -> VectorArray:
    vectors_ME = np.zeros((len(memory), embedder.dimension), np.float32)
    bad: list[DataError] = []
    _prepare_pictures(memory, part)
    with estimated_bar(
        "embedding the memory",
        total=len(memory),
        unit="document",
        disable=len(memory) <= 256,
        note=note,
    ) as advance:
        at_once = _TEXTS_AT_ONCE if part == "text" else AT_ONCE
        for start in range(0, len(memory), at_once):
            chunk = [
                memory.document(index) for index in range(start, min(start + at_once, len(memory)))
            ]
            places = [
                start + place for place, document in enumerate(chunk) if _part_of(document, part)
            ]
            if places:
                asked = [_part_of(chunk[place - start], part) for place in places]
                embed = partial(embed_part, embedder, part)
                vectors_ME[places] = _embedded(asked, embedder.dimension, embed, bad)
            advance(len(chunk))
    if bad:
        tqdm.write(
            f"note: {len(bad)} documents of the memory can't be embedded and are never found, "
            f"the first: {bad[0].place}: "
            f"{bad[0].cause}",
            file=sys.stderr,
        )
    return vectors_ME


def read_texts(memory: DocumentSource) -> Iterator[str]:
    """Yield the text of each document, with a progress bar if there are many."""
    with estimated_bar(
        "reading the texts of the memory",
        total=len(memory),
        unit="document",
        disable=len(memory) < _MANY_TEXTS,
    ) as advance:
        for start in range(0, len(memory), _PIECE):
            stop = min(start + _PIECE, len(memory))
            for index in range(start, stop):
                yield text_of(memory.document(index))
            advance(stop - start)


def open_kept(
    open_index: Callable[[VectorRows, Path | None, str | None], VectorIndex],
    rows: VectorRows,
    path: Path | None,
) -> VectorIndex:
    """Open an index over vectors of `memory_vectors`; one that takes building is stored in the cache.

    Args:
        open_index: see `VectorRetrieverConfig.open_index`.
        rows: the vectors, or those that are not zero.
        path: their file, named by everything that determines them; None: don't use the cache.
    """
    if path is None:
        return open_index(rows, None, None)
    return open_index(rows, cache_folder("indexes") / path.stem, path.stem)


def vectors_file(memory: DocumentSource, embedder: Embedder, part: str | None = None) -> Path:
    """Return the file of the cached vectors, named by `vectors_key`."""
    folder = cache_folder("embeddings")
    if (quick := memory.quick_fingerprint) is None:
        return folder / f"{vectors_key(memory, embedder, part)}.npy"
    note = folder / f"{_start(embedder, part, quick).hexdigest()[:32]}.key"
    try:
        key = read_text(note)
    except (OSError, UnicodeDecodeError):
        key = ""
    if not re.fullmatch(r"[0-9a-f]{32}", key):
        key = vectors_key(memory, embedder, part)
        with suppress(FileError):  # a read-only cache can still be read
            write_text(note, key)
    return folder / f"{key}.npy"


def _kept(path: Path, shape: tuple[int, int]) -> VectorArray | None:
    """Map the vectors of a file; None if it is missing, damaged or has another shape."""
    try:
        vectors = load_array(path, memory_map=True)
    except (ValueError, OSError):
        return None
    return np.asarray(vectors) if vectors.shape == shape and vectors.dtype == np.float32 else None


def _prepare_pictures(memory: DocumentSource, part: str | None) -> None:
    """Load some pictures from all over the memory. Some corpora then render all of theirs, for minutes, with their own
    progress bar; the estimate for embedding must not include that."""
    if part == "text":
        return
    for index in range(0, len(memory), max(1, len(memory) // _PREPARED)):
        with suppress(DataError):  # embedding counts unreadable pictures and names the first
            for segment in memory.document(index):
                if isinstance(segment, Image):
                    segment.load()


def _part_of(document: Document, part: str | None) -> Document:
    """Return the document's texts, its pictures, or all of it."""
    if part is None:
        return document
    if part == "text":
        return tuple(one for one in document if isinstance(one, Text) and one.text)
    return tuple(one for one in document if not isinstance(one, Text))


def embed_part(embedder: Embedder, part: str | None, documents: Sequence[Document]) -> VectorArray:
    """Return unit vectors float32 [N, E] of documents with a single part: pictures by `embed_looks` (averaged if
    there are several), texts as documents."""
    if part != "image":
        return embedder.embed_documents(documents)
    pictures = [
        [segment.load() for segment in document if isinstance(segment, Image)]
        for document in documents
    ]
    if not all(pictures):
        raise DataError("document", "has no picture to embed", "give it one")
    owner = [place for place, own in enumerate(pictures) for _ in own]
    total = np.zeros((len(documents), embedder.dimension), np.float32)
    np.add.at(total, owner, embedder.embed_looks([one for own in pictures for one in own]))
    return normalise(total)


def _embedded(
    documents: Sequence[Document],
    dimension: int,
    embed: Callable[[Sequence[Document]], VectorArray],
    bad: list[DataError],
) -> VectorArray:
    """Return vectors float32 [len(documents), E].

    A document that can't be embedded gets zeros, and its reason is added to `bad`.
    """
    try:
        return embed(documents)
    except DataError as error:
        if len(documents) > 1:
            return np.concatenate(
                [_embedded([document], dimension, embed, bad) for document in documents]
            )
        bad.append(error)
        return np.zeros((1, dimension), np.float32)


def vectors_key(memory: DocumentSource, embedder: Embedder, part: str | None = None) -> str:
    """Return the cached file's name: a hash of the embedder, the memory, and every document's id and text.

    The source's fingerprint covers only ids and pictures; captions may change without changing it, so
    they are hashed here.
    """
    digest = _start(embedder, part, memory.fingerprint)
    for piece in _ids_and_texts(memory):
        digest.update(piece)
    return digest.hexdigest()[:32]


def _start(embedder: Embedder, part: str | None, fingerprint: str) -> hashlib._Hash:
    """Begin a hash with the embedder, a fingerprint of the memory, and the part of its documents."""
    maker = embedder.looks_fingerprint if part == "image" else embedder.fingerprint
    digest = hashlib.sha256(f"{maker}\0{fingerprint}\0".encode())
    if part is not None:
        digest.update(f"{part} alone\0".encode())
    return digest


def _ids_and_texts(memory: DocumentSource) -> Iterator[bytes]:
    """Yield every document's id and text, in pieces. The last memory's are cached unless there are too many:
    texts and pictures each need a key, and reading 100,000 captions takes seconds."""
    global _last_read
    source, known = _last_read
    if source is not None and source() is memory:
        yield from known
        return
    read: list[bytes] = []
    for start in range(0, len(memory), _PIECE):
        piece = "".join(
            f"{memory.id(index)}\0{text_of(memory.document(index))}\0"
            for index in range(start, min(start + _PIECE, len(memory)))
        ).encode()
        if start < _MOST_REMEMBERED:
            read.append(piece)
        yield piece
    if (
        len(memory) <= _MOST_REMEMBERED
    ):  # replaced in one assignment: other threads may be reading it
        _last_read = ref(memory), tuple(read)
