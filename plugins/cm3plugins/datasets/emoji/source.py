"""The emoji corpus as documents: a caption, then a picture."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from cm3core.document import Document, Image, Text
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource, Original, Provenance
from cm3plugins.datasets.emoji.captions import caption
from cm3plugins.datasets.emoji.corpus import EmojiCorpus, EmojiEntry, select_concepts
from cm3plugins.datasets.emoji.packages import LICENCES, STYLE_PACKAGES
from cm3plugins.datasets.vector.captions import CaptionTemplate, author_and_address
from cm3plugins.svg import renderer_version

DRAW_ALL_AFTER = 64
"""After this number of pictures, drawn one by one, all pictures of the source are drawn into the cache;
for fewer pictures that would not pay."""


class EmojiSource(DocumentSource):
    """Documents `(caption, picture)` of the chosen split, concepts and styles, in corpus
    order.

    Args:
        split: "train", "comp", "unseen", or "all" of them.
        concepts: see `select_concepts`.
        styles: styles to include.
        image_size: side of the pictures, in pixels.
        templates: caption templates.
        cache_dir: folder of rendered pictures; None: ``CM3_CACHE`` or, if unset, the user's cache folder.

    Raises:
        DataError: the list of concepts can't be read, or nothing is selected.
    """

    def __init__(
        self,
        *,
        split: str,
        concepts: str,
        styles: Sequence[str],
        image_size: int,
        templates: Sequence[CaptionTemplate],
        cache_dir: str | None,
    ) -> None:
        self._image_size, self._cache_dir = image_size, cache_dir
        self._templates = templates
        self._captions: dict[int, str] = {}
        self.corpus = EmojiCorpus()
        chosen = select_concepts(concepts, self.corpus)
        self._indices = tuple(
            index
            for index, entry in enumerate(self.corpus.entries)
            if entry.concept in chosen and entry.style in styles and split in (entry.split, "all")
        )
        if not self._indices:
            cause = f"no picture is in split {split!r}, concepts {concepts!r} and styles {styles}"
            raise DataError("dataset", cause, "widen at least one of them")
        self._key = f"emoji-{self.corpus.data_sha256[:16]}-{renderer_version()}-{image_size}px"
        self._pictures: NDArray[np.uint8] | None = None
        self._rows: dict[int, int] = {}
        self._num_drawn = 0

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._indices)

    def id(self, index: int) -> str:
        """Style and concept: ``noto/red-apple``."""
        return self.entry(index).id

    def entry(self, index: int) -> EmojiEntry:
        """Return the corpus entry of a document: label, tags, style and so on."""
        return self.corpus.entries[self._indices[index]]

    def group(self, index: int) -> str:
        """The concept, which is the same in every style."""
        return self.entry(index).concept

    def provenance(self, index: int) -> Provenance:
        """Licence, npm package, author, style, name and package address of a document's picture."""
        style, _, name = self.id(index).partition("/")
        return replace(provenance_of(style), title=name)

    def provenances(self) -> Mapping[Provenance, int]:
        """Those of the styles, with the number of pictures of each."""
        styles = Counter(self.corpus.entries[index].style for index in self._indices)
        return {provenance_of(style): number for style, number in styles.items()}

    def original(self, index: int) -> Original:
        """The drawing, as an SVG."""
        return Original(".svg", self.corpus.svg(self._indices[index]).encode())

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        entry = self.entry(index)
        picture = Image(f"{self._key}/{entry.id}", partial(self._pixels, self._indices[index]))
        text = self._caption(index) if rng is None else caption(entry, rng, self._templates)
        return (Text(text), picture)

    def _caption(self, index: int) -> str:
        """The canonical caption; a training reads all of them several times before its first step."""
        if index not in self._captions:
            self._captions[index] = caption(self.entry(index), None, self._templates)
        return self._captions[index]

    def texts(self) -> Iterator[str]:
        """Yield the canonical captions."""
        yield from map(self._caption, range(len(self)))

    @property
    def fingerprint(self) -> str:
        """Hash of the pictures' version and the documents' ids, in order."""
        names = "\n".join((self._key, *(self.corpus.entries[index].id for index in self._indices)))
        return hashlib.sha256(names.encode()).hexdigest()

    def _pixels(self, corpus_index: int) -> NDArray[np.uint8]:
        """Draw the picture, or read it from the cache, which is filled with this source's pictures once more
        than a few are requested. A cache of the whole corpus serves any source."""
        if self._pictures is None:
            self._open_cache()
        if self._pictures is None:
            self._num_drawn += 1
            return self.corpus.render(corpus_index, self._image_size)
        return np.array(self._pictures[self._rows[corpus_index]])

    def _open_cache(self) -> None:
        size, cache_dir = self._image_size, self._cache_dir
        if self.corpus.is_rendered(size, cache_dir):
            self._pictures = self.corpus.render_all(size, cache_dir)
            self._rows = {index: index for index in self._indices}
        elif self._num_drawn >= DRAW_ALL_AFTER or self.corpus.is_rendered(
            size, cache_dir, self._indices
        ):
            self._pictures = self.corpus.render_some(self._indices, size, cache_dir)
            self._rows = {index: row for row, index in enumerate(self._indices)}


@cache
def provenance_of(style: str) -> Provenance:
    """That of a style, without a picture's name."""
    licence, named = LICENCES[style]
    author, address = author_and_address(named)
    package = STYLE_PACKAGES[style]
    return Provenance(licence, f"npm {package.name} {package.version}", author, style, "", address)
