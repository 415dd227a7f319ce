"""Kind `dataset`: where documents come from."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.document import Document, Image, content_keys, text_of
from cm3core.errors import DataError
from cm3core.interfaces.component import ComponentConfig

if TYPE_CHECKING:
    import numpy as np

#: What `DocumentSourceConfig.reads` has in place of an ending for a folder.
FOLDER = "/"


@dataclass(kw_only=True)
class DocumentSourceConfig(ComponentConfig):
    """Base of data sets' configs.

    Args:
        split: which part: "train", or another that the data set has. Data sets of files take a
            fixed share as "valid".
    """

    kind: ClassVar[str] = "dataset"
    #: Every value that `split` may have, for `cm3 data`; a split that holds all the others, if
    #: there is one, is called "all".
    splits: ClassVar[tuple[str, ...]] = ("train",)
    #: Endings of the paths that the data set is meant for, in lower case, such as ".jsonl"; `FOLDER`
    #: for a folder. Commands that are given a path and no name choose by them. A subclass does not
    #: inherit them.
    reads: ClassVar[tuple[str, ...]] = ()
    split: str = "train"

    def build(self) -> DocumentSource:
        """Return the source. Bad records are skipped and counted (`DocumentSource.skipped`), not
        raised."""
        raise NotImplementedError


@dataclass(frozen=True)
class SkippedRecord:
    """A record that can't be used: its `place` (file and line or name), the `cause` and the
    `next_step`."""

    place: str
    cause: str
    next_step: str


class DocumentSource(ABC):
    """A finite list of documents, read at random. They hold `Text` and `Image` segments (pixels by
    reference); those of a memory bank hold `Text` and `Codes`."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of usable documents."""

    @abstractmethod
    def id(self, index: int) -> str:
        """Stable, unique name of a document: the same in every run and split."""

    @abstractmethod
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        """The document; see `document`."""

    def document(self, index: int, rng: np.random.Generator | None = None) -> Document:
        """The document `index`.

        With `rng`, its text may vary (one of several captions, a paraphrase) as a function of the
        generator; without, it is the canonical form. Its pictures' keys never vary.
        """
        if not 0 <= index < len(self):
            raise DataError(
                f"document {index}", f"the data set has {len(self)}", f"use 0..{len(self) - 1}"
            )
        return self._document(index, rng)

    def content_keys(self, index: int) -> frozenset[str]:
        """`document.content_keys` of the document: who shares one with it is never retrieved for
        it."""
        return content_keys(self.document(index))

    def group(self, index: int) -> str:
        """Name of the group the document belongs to (a concept, an album); "" when the data set has
        none."""
        return ""

    @property
    def skipped(self) -> list[SkippedRecord]:
        """Records that can't be used, each with its reason."""
        return []

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of what decides the documents' ids and pictures; names the cache of codes."""

    @property
    def content_fingerprint(self) -> str:
        """Hash of `fingerprint` and of every document's id, canonical text and pictures' keys, in
        order: names what is made of texts, such as an index. All documents are read, unless the
        source knows better."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for index in range(len(self)):
            document = self.document(index)
            keys = [segment.key for segment in document if isinstance(segment, Image)]
            digest.update(json.dumps([self.id(index), text_of(document), keys]).encode())
        return digest.hexdigest()

    def texts(self) -> Iterator[str]:
        """All canonical texts, for training a text tokenizer; sources with several captions yield
        them all."""
        for index in range(len(self)):
            yield text_of(self.document(index))
