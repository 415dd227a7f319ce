"""A data set's records as the documents of a task."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cm3core.document import Codes, Document, Image, Text
from cm3core.errors import DataError
from cm3core.interfaces.dataset import (
    DocumentSource,
    Original,
    Provenance,
    SkippedRecord,
    content_entry,
)
from cm3core.interfaces.task import Record, Task

if TYPE_CHECKING:
    import numpy as np


class TaskSource(DocumentSource):
    """The documents that a task makes of a source's records. Records that it can't use are skipped.

    Args:
        source: its `record` gives the fields.
        task: makes the documents.
    """

    def __init__(self, source: DocumentSource, task: Task) -> None:
        self.source, self.task = source, task
        self._skipped: list[SkippedRecord] = []
        self._indices: list[int] = []
        # all documents are made here to see which can be: their hash comes with it
        digest = hashlib.sha256(self.fingerprint.encode())
        for index in range(len(source)):
            try:
                document = self._make(index, None)
            except DataError as error:
                self._skipped.append(SkippedRecord(error.place, error.cause, error.next_step))
            else:
                self._indices.append(index)
                digest.update(content_entry(source.id(index), document))
        if not self._skipped:  # else the fingerprint that the hash begins with names what is kept
            self._content_fingerprint = digest.hexdigest()

    def _make(self, index: int, rng: np.random.Generator | None) -> Document:
        record = self.source.record(index, rng)
        return self.task.document(record, rng, place=f"record {self.source.id(index)}")

    def __len__(self) -> int:
        return len(self._indices)

    def id(self, index: int) -> str:
        return self.source.id(self._indices[index])

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return self._make(self._indices[index], rng)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        return self.source.record(self._indices[index], rng)

    def query(self, index: int) -> Document:
        """What is given, as a prompt for the response has it: its pictures if it has any, else its texts."""
        index = self._indices[index]
        record = self.source.record(index)
        prompt = self.task.prompt(record, place=f"record {self.source.id(index)}")
        pictures = tuple(one for one in prompt if isinstance(one, (Image, Codes)))
        return pictures or tuple(one for one in prompt if isinstance(one, Text))

    def content_keys(self, index: int) -> frozenset[str]:
        """Also those of the record, which may be made of more than its document shows."""
        return super().content_keys(index) | self.source.content_keys(self._indices[index])

    def group(self, index: int) -> str:
        return self.source.group(self._indices[index])

    def provenance(self, index: int) -> Provenance:
        return self.source.provenance(self._indices[index])

    def original(self, index: int) -> Original | None:
        return self.source.original(self._indices[index])

    @property
    def is_far(self) -> bool:
        return self.source.is_far

    def check_tokenizers(self, text: str, image: str) -> None:
        self.source.check_tokenizers(text, image)

    @property
    def skipped(self) -> list[SkippedRecord]:
        if not self._indices:  # messages name the first: that is why there is none
            return [*self._skipped, *self.source.skipped]
        return [*self.source.skipped, *self._skipped]

    @property
    def fingerprint(self) -> str:
        kept = f" {self._indices}" if self._skipped else ""
        return hashlib.sha256(f"task {self.source.fingerprint}{kept}".encode()).hexdigest()
