"""The icon corpus as documents: a caption, then a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cm3core import __version__
from cm3core.document import Document, Image, PixelArray, Text, text_of
from cm3core.errors import DataError, close_match
from cm3core.interfaces.dataset import DocumentSource, Original, Provenance
from cm3icons.data.captions import caption, made_up_title
from cm3icons.data.corpus import (
    IconCorpus,
    IconEntries,
    IconEntry,
    IconPictures,
    set_of,
)
from cm3icons.data.splits import is_logo, unit_hash
from cm3plugins.datasets.vector.captions import CaptionTemplate
from cm3plugins.svg import renderer_version

if TYPE_CHECKING:
    from cm3icons.evaluation.copied import Copied
    from cm3icons.evaluation.ranking import RealPictures

DRAW_ALL_AFTER = 512
"""After this number of pictures, drawn one by one, all pictures of the source are drawn into the cache; for
fewer pictures that would not pay."""
_SAMPLED = 200
"""Number of captions, spread over the source, in its quick fingerprint."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Selects the icons of a source from a corpus.

    Args:
        split: one of the corpus', "missing" or "available" (see `is_missing`), or "all".
        sets: names of sets; empty: all.
        styles: style words that an icon must have, and with a minus those that it must not have.
        things_share: share of objects to use, by a hash of their names.
    """

    split: str
    sets: Collection[str]
    styles: Collection[str]
    things_share: float = 1.0


def is_missing(icon: str, words: str) -> bool:
    """Whether an icon of a set that is held out whole is of the half of its things that are drawn, while the other half is
    retrieved: a fixed choice by the thing's name, so that all its versions are on one side.

    >>> is_missing("iconoir/bell", "bell") == is_missing("iconoir/bell-solid", "bell")
    True
    """
    return unit_hash("missing", set_of(icon), words) < 0.5


def _in_split(entries: IconEntries, split: str) -> list[int]:
    """The positions of a split's entries."""
    every = enumerate(entries.splits)
    if split == "all":
        return [index for index, _ in every]
    if split not in ("missing", "available"):
        return [index for index, own in every if own == split]
    missing = [
        own == "strangers" and is_missing(entries.ids[index], entries.words[index])
        for index, own in every
    ]
    if split == "missing":
        return [index for index, one in enumerate(missing) if one]
    return [
        index
        for index, own in enumerate(entries.splits)
        if own in ("train", "strangers") and not missing[index]
    ]


def _positions(entries: IconEntries, of: Chosen) -> list[int]:
    """Return the positions of the selected entries."""
    wanted = {word for word in of.styles if not word.startswith("-")}
    unwanted = {word.removeprefix("-") for word in of.styles} - wanted
    words_of = {style: set(style.split()) for style in set(entries.styles)}
    fitting = {style for style, own in words_of.items() if wanted <= own and not unwanted & own}
    chosen = [one for one in _in_split(entries, of.split) if entries.styles[one] in fitting]
    if of.sets:
        chosen = [index for index in chosen if set_of(entries.ids[index]) in of.sets]
    if of.things_share < 1:
        words = entries.words
        chosen = [index for index in chosen if unit_hash("share", words[index]) < of.things_share]
    return chosen


class IconSource(DocumentSource):
    """Documents `(caption, picture)` of the chosen split, sets and styles, in corpus order.

    Args:
        corpus: the bundled one, or one written by `cm3 icons build`.
        chosen: selects its icons.
        image_size: side of the pictures, in pixels.
        templates: caption templates.
        renamed_share: of training sequences in which sets have made-up titles.
        cache_dir: folder of rendered pictures; None: ``CM3_CACHE`` or, if unset, the user's cache folder.

    Raises:
        DataError: nothing is selected, a set is not in the folder, or a data file can't be used.
    """

    def __init__(
        self,
        corpus: IconCorpus,
        chosen: Chosen,
        *,
        image_size: int,
        templates: Sequence[CaptionTemplate],
        renamed_share: float = 0.0,
        cache_dir: str | None,
    ) -> None:
        self._image_size, self._cache_dir = image_size, cache_dir
        self._templates, self._renamed_share = templates, renamed_share
        self.corpus = corpus
        known = corpus.manifest.licences
        for name in chosen.sets:
            if name not in known:
                cause = f"the icon corpus has no set {name!r}; {close_match(name, known)}"
                raise DataError("dataset.sets", cause, f"use some of {', '.join(known)}")
        self._indices = tuple(_positions(corpus.entries, chosen))
        if not self._indices:
            cause = (
                f"no icon is in split {chosen.split!r}, sets {list(chosen.sets)} and styles "
                f"{list(chosen.styles)}"
            )
            raise DataError("dataset", cause, "widen at least one of them")
        self._key = f"icons-{self.corpus.data_sha256[:16]}-{renderer_version()}-{image_size}px"
        self._pictures: IconPictures | None = None
        self._num_drawn = 0
        self._real_of_size: dict[int, RealPictures] = {}

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._indices)

    def id(self, index: int) -> str:
        """Set and name: ``lucide/bell-off``."""
        return self.corpus.entries.ids[self._indices[index]]

    def entry(self, index: int) -> IconEntry:
        """Return the corpus entry of a document: words, style, tags and so on."""
        return self.corpus.entries[self._indices[index]]

    def content_keys(self, index: int) -> frozenset[str]:
        """With closed splits, also the key of an icon's copies, so that none of them is retrieved for it."""
        keys = super().content_keys(index)
        first = self.corpus.copies.get(self._indices[index])
        return keys if first is None else keys | {f"copy:{self.corpus.entries.ids[first]}"}

    def group(self, index: int) -> str:
        """The object, which is the same in all versions."""
        return self.corpus.entries.words[self._indices[index]]

    def truth(self, index: int) -> Mapping[str, object]:
        """The icon's set, style and id."""
        entry = self.entry(index)
        return {"set": entry.set_name, "style": entry.style, "id": entry.id}

    def alternatives(
        self, index: int, size: int, num: int
    ) -> Sequence[tuple[str, Callable[[], PixelArray]]]:
        """The icon, and other objects of its set and style."""
        real, entries = self._real(size), self.corpus.entries
        found = real.candidates(self.entry(index), num)
        return [(entries[place].id, partial(real.__getitem__, place)) for place in found]

    def copies(self, index: int, size: int) -> Mapping[str, Callable[[], PixelArray]]:
        """The most similar things and hands, see `cm3icons.evaluation.copied`."""
        found = self._copied.of(self.entry(index))
        return {name: partial(self._real(size).__getitem__, place) for name, place in found.items()}

    def _real(self, size: int) -> RealPictures:
        if size not in self._real_of_size:
            from cm3icons.evaluation.ranking import RealPictures

            self._real_of_size[size] = RealPictures(
                self.corpus, self._image_size, (size, size), self._cache_dir
            )
        return self._real_of_size[size]

    @cached_property
    def _copied(self) -> Copied:
        from cm3icons.evaluation.copied import Copied

        return Copied(self.corpus)

    def is_withheld(self, index: int) -> bool:
        """Whether it is a logo of the bundled corpus; a corpus of your own has what you chose."""
        return self._indices[index] in self._logos

    @cached_property
    def _logos(self) -> frozenset[int]:
        """Positions of the corpus' logos."""
        if not self.corpus.is_bundled:
            return frozenset()
        entries = self.corpus.entries
        both = enumerate(zip(entries.ids, entries.words, strict=True))
        return frozenset(index for index, own in both if is_logo(*own))

    def collection(self, index: int) -> str:
        """The set."""
        return set_of(self.id(index))

    def licence(self, index: int) -> str:
        """SPDX name of the licence of a document's drawing."""
        return self.corpus.licence(self._indices[index])

    def provenance(self, index: int) -> Provenance:
        """Licence, npm package, author, set, name and set address of a document's drawing."""
        set_name, _, name = self.id(index).partition("/")
        package, author, address = self.corpus.manifest.source(set_name)
        return Provenance(self.licence(index), package, author, set_name, name, address)

    def original(self, index: int) -> Original:
        """The drawing, as an SVG."""
        return Original(".svg", self.corpus.svg(self._indices[index]).encode())

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        place = self._indices[index]
        # a canonical caption names no tag
        entry = self.corpus.entries.untagged(place) if rng is None else self.entry(index)
        picture = Image(
            f"{self._key}/{entry.id}",
            partial(self._pixels, place),
            drawing=partial(self.corpus.svg, place),
        )
        title = self.corpus.title(place)
        if rng is not None and self._renamed_share:
            title = made_up_title(title, rng, self._renamed_share)
        return (Text(caption(entry, rng, self._templates, title)), picture)

    def texts(self) -> Iterator[str]:
        """Yield the canonical captions, and other names of the objects."""
        for index, own in enumerate(self._indices):
            entry = self.entry(index)
            yield caption(entry, None, self._templates, self.corpus.title(own))
            yield from entry.tags

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pictures' version and the documents' ids, in order."""
        names = "\n".join((self._key, *(self.corpus.entries.ids[index] for index in self._indices)))
        return hashlib.sha256(names.encode()).hexdigest()

    @cached_property
    def quick_fingerprint(self) -> str:
        """Hash of the ids and pictures, and of the inputs of captions: data, settings, code. A few captions represent
        the code that words them, so that the hash also changes during development."""
        step = max(1, len(self) // _SAMPLED)
        made_of = (
            f"cm3leon {__version__}",
            self.fingerprint,
            self.corpus.data_sha256,
            sorted(self.corpus.manifest.titles.items()),
            [(template.text, template.weight) for template in self._templates],
            [text_of(self.document(index)) for index in range(0, len(self), step)],
        )
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def _pixels(self, corpus_index: int) -> NDArray[np.uint8]:
        """Draw the picture, or read it from the cache, which is filled with this source's pictures once more
        than a few are requested. A cache of the whole corpus serves any source."""
        if self._pictures is None:
            self._open_cache()
        if self._pictures is None:
            self._num_drawn += 1
            return self.corpus.render(corpus_index, self._image_size)
        return self._pictures[corpus_index]

    def _open_cache(self) -> None:
        size, cache_dir = self._image_size, self._cache_dir
        if self._num_drawn == 0 and self.corpus.is_rendered(size, cache_dir):
            self._pictures = self.corpus.pictures(size, cache_dir)
        elif self._num_drawn >= DRAW_ALL_AFTER or (
            self._num_drawn == 0 and self.corpus.is_rendered(size, cache_dir, self._indices)
        ):
            self._pictures = self.corpus.pictures(size, cache_dir, self._indices)
