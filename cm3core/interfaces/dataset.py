"""Kind `dataset`: where documents come from, and a data set's records as the documents of a task."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from cm3core.document import Codes, Document, Image, Text, content_keys, text_of
from cm3core.errors import DataError
from cm3core.interfaces.component import ComponentConfig
from cm3core.interfaces.reach import TEXT, Outside
from cm3core.interfaces.task import Record, Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cm3core.interfaces.task import TaskConfig
    from cm3core.interfaces.text_tokenizer import TextTokenizerConfig

#: Stands for a folder in `DocumentSourceConfig.reads`, in place of a file extension.
FOLDER = "/"


@dataclass(kw_only=True)
class DocumentSourceConfig(ComponentConfig):
    """Base of data sets' configs.

    Args:
        split: which split: "train", or another that the data set has. Data sets of files hold out
            a fixed share as "valid".
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "split": TEXT,
    }

    kind: ClassVar[str] = "dataset"
    #: Every value that `split` may have, for `cm3 data`; a split that holds all the others, if
    #: there is one, is called "all".
    splits: ClassVar[tuple[str, ...]] = ("train",)
    #: File extensions that the data set reads, in lower case, such as ".jsonl"; `FOLDER` for a
    #: folder. Commands that are given a path without a name choose by them. A subclass does not
    #: inherit them.
    reads: ClassVar[tuple[str, ...]] = ()
    #: Whether it reads what `cm3 data encode` writes. A subclass does not inherit it.
    reads_token_shards: ClassVar[bool] = False
    split: str = "train"

    def trained_tasks(self) -> list[TaskConfig | None]:
        """Return the tasks that make its documents; None stands for plain documents.

        They are stored with models that are trained on it. By default its documents are plain."""
        return [None]

    def retrieving_tasks(self) -> list[TaskConfig | None]:
        """Return the `trained_tasks` whose documents get retrieved ones prepended, if the recipe retrieves; by
        default all."""
        return self.trained_tasks()

    def memory_config(self) -> DocumentSourceConfig:
        """Return the data set that documents are retrieved from where a recipe names no bank; by default
        itself."""
        return self

    def structures(self) -> list[str]:
        """Return what its records call the structures that they show (the field `feature` of tasks such
        as `structure`), as far as its keys say it; by default nothing."""
        return []

    @property
    def has_turns(self) -> bool:
        """Whether its documents are conversations whose turns are marked
        (`cm3core.document.is_conversation`); stored with models that are trained on it."""
        return False

    def build(self) -> DocumentSource:
        """Return the source. Bad records don't raise: `DocumentSource.skipped` lists them."""
        raise NotImplementedError


@dataclass(frozen=True)
class SkippedRecord:
    """A record that can't be used: `place` (file and line or name), `cause` and `next_step`."""

    place: str
    cause: str
    next_step: str


#: Licence of a document whose source states none.
UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True)
class Provenance:
    """Where a document comes from.

    Args:
        licence: SPDX name, or `UNKNOWN_LICENCE`.
        source: where it was published: a package, an address; "" if unknown.
        attribution: whom the licence wants named; "" if unknown.
        collection: the set or the album that it is of; "" if there is none.
        title: what the work is called there; "" if it has no name.
        link: address of the work, or of its collection; "" if unknown.
    """

    licence: str = UNKNOWN_LICENCE
    source: str = ""
    attribution: str = ""
    collection: str = ""
    title: str = ""
    link: str = ""

    @property
    def licence_link(self) -> str:
        """Where the licence can be read; "" unless it is the SPDX name of one."""
        return licence_link(self.licence)

    @property
    def address(self) -> str:
        """The link, or the source where that is an address."""
        return self.link or (self.source if self.source.startswith(("https://", "http://")) else "")

    @property
    def shared(self) -> Provenance:
        """What it says of its collection, without the work's own title: by this documents are counted."""
        return replace(self, title="")

    def stated(self) -> dict[str, str]:
        """Its fields as files store them; unknown ones are left out, except for the first three."""
        return {
            key: value
            for key, value in asdict(self).items()
            if value or key in ("licence", "source", "attribution")
        }


@dataclass(frozen=True)
class Original:
    """A document's own picture file.

    Args:
        suffix: of its name, in lower case, such as ".svg" or ".jpg".
        content: its bytes; an SVG's are UTF-8.
    """

    suffix: str
    content: bytes


def provenance_in(values: Mapping[str, object]) -> Provenance:
    """The provenance that `Provenance.stated` put among the values of a stored document; older files state less.

    Raises:
        KeyError: it has no licence.
    """
    stated = {one.name: str(values.get(one.name, "")) for one in fields(Provenance)}
    return Provenance(**stated | {"licence": str(values["licence"])})


def content_entry(name: str, document: Document) -> bytes:
    """What a document adds to `DocumentSource.content_fingerprint`.

    Args:
        name: its id.
        document: in its canonical form.
    """
    keys = [segment.key for segment in document if isinstance(segment, Image)]
    return json.dumps([name, text_of(document), keys]).encode()


class DocumentSource(ABC):
    """A finite list of documents with random access.

    Documents hold `Text` and `Image` segments (pixels by reference); those of a memory bank hold
    `Text` and `Codes`."""

    #: `content_fingerprint` once it is known: documents don't change while a source is used.
    _content_fingerprint: str | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of usable documents."""

    @abstractmethod
    def id(self, index: int) -> str:
        """Return the document's stable, unique name: the same in every run and split."""

    @abstractmethod
    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        """Return the document; see `document`."""

    def document(self, index: int, rng: np.random.Generator | None = None) -> Document:
        """Return the document at `index`.

        With `rng`, its text may vary (one of several captions, a paraphrase) as a function of the
        generator; without it, the text is canonical. The keys of its pictures never vary.
        """
        if not 0 <= index < len(self):
            raise DataError(
                f"document {index}", f"the data set has {len(self)}", f"use 0..{len(self) - 1}"
            )
        return self._document(index, rng)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        """Return the document as named fields, for tasks (`Task.document`).

        By default `caption`, all of its text, and `image`, its last picture; data sets of pairs,
        questions and the like have fields of their own. Texts may vary with `rng`, pictures never."""
        document = self.document(index, rng)
        pictures = [segment for segment in document if isinstance(segment, (Image, Codes))]
        record: dict[str, object] = {"image": pictures[-1]} if pictures else {}
        return record | ({"caption": text} if (text := text_of(document)) else {})

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that the data set is mixed of; none if it is no mixture."""
        return ()

    def part(self, index: int) -> int:
        """Return the number of the part, of `parts`, that a document is of."""
        return 0

    def retrieves(self, index: int) -> bool:
        """Return whether retrieved documents are prepended to a document where the recipe has a retriever;
        by default they are."""
        return True

    def query(self, index: int) -> Document:
        """Return the query by which documents are retrieved for a document in training; by default the canonical
        document."""
        return self.document(index)

    def epoch_order(self, seed: int, epoch: int) -> npt.NDArray[np.int64] | None:
        """Return the documents of an epoch in the order of training, as indices; None: each once, in a
        random order.

        An index may occur several times, and not at all. The order must be a function of the
        arguments."""
        return None

    def stream_order(
        self, seed: int, epoch: int, place: int, num_streams: int
    ) -> npt.NDArray[np.int64] | None:
        """Return the documents that a virtual loader, `place` of `num_streams`, is given in an epoch, as
        indices in order; None: every `num_streams`-th of the epoch's order.

        For data sets that are read best a part after another. All streams get equally many documents, none
        twice. The order must be a function of the arguments."""
        return None

    @property
    def is_encoded(self) -> bool:
        """Whether all pictures are codes and all texts have their ids: then training reads a document when
        it needs it, and none at the start."""
        return False

    @property
    def is_far(self) -> bool:
        """Whether documents come over a network when they are read: then nothing reads all of them unless it
        is asked for."""
        return False

    def check_tokenizers(self, text: str, image: str) -> None:  # noqa: B027  # pixels fit any
        """Raise `TokenizerError` if the documents were encoded by others than the tokenizers of these
        fingerprints."""

    def text_tokenizer_folder(self, name: str, config: TextTokenizerConfig) -> Path | None:
        """Return the folder of the text tokenizer that encoded the documents, if the component of this name
        built it with these values; None: the config builds one of the documents' texts."""
        return None

    def text_alternatives(self, index: int) -> list[tuple[str, ...]] | None:
        """Return, for each text of the document, those among which `document` draws one, all equally likely
        and independently, in the order of its draws; None: not so, or not known."""
        return None

    def provenances(self) -> Mapping[Provenance, int]:
        """Return where the documents are from (`Provenance.shared`), with the number of documents of each."""
        return Counter(self.provenance(index).shared for index in range(len(self)))

    def content_keys(self, index: int) -> frozenset[str]:
        """Return the document's content keys (`cm3core.document.content_keys`).

        A document that shares one with it is never retrieved for it."""
        return content_keys(self.document(index))

    def group(self, index: int) -> str:
        """Return the document's group (a concept, an album); "" if the data set has none."""
        return ""

    def provenance(self, index: int) -> Provenance:
        """Return the document's licence and source. The default knows neither."""
        return Provenance()

    def original(self, index: int) -> Original | None:
        """Return the file of the document's picture as it was published, the last one's if there are several; None:
        there is none, or nothing but its codes is known.

        The default writes its pixels as a PNG. Data sets that have the file itself, or the drawing that pixels are
        made of, override it.

        Raises:
            DataError: it can't be read.
        """
        from cm3core.images import png_bytes  # here, since describing plugins needs no pictures

        pictures = [one for one in self.document(index) if isinstance(one, Image)]
        return Original(".png", png_bytes(pictures[-1].load())) if pictures else None

    @property
    def skipped(self) -> list[SkippedRecord]:
        """Records that can't be used, each with its reason."""
        return []

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of what determines the documents' ids and pictures; names the cache of codes."""

    @property
    def content_fingerprint(self) -> str:
        """Hash of all that decides what is made from texts, such as an index; it names that.

        Covers `fingerprint` and each document's id, canonical text and picture keys, in order. The
        default reads all documents, once; override it if there is a cheaper way."""
        if self._content_fingerprint is None:
            digest = hashlib.sha256(self.fingerprint.encode())
            for index in range(len(self)):
                digest.update(content_entry(self.id(index), self._document(index, None)))
            self._content_fingerprint = digest.hexdigest()
        return self._content_fingerprint

    @property
    def documents_fingerprint(self) -> str:
        """Hash of the documents themselves, each at its place, and not of how often training draws them; names
        what is found for each. By default `content_fingerprint`."""
        return self.content_fingerprint

    @property
    def quick_fingerprint(self) -> str | None:
        """Hash that differs wherever `content_fingerprint` does, made without reading the documents, such as from
        the hash of their file and the settings that choose and word them; None, the default: there is none.

        What is kept for `content_fingerprint`, or for the texts, is found by it at once."""
        return None

    def texts(self) -> Iterator[str]:
        """Yield all canonical texts, for training a text tokenizer.

        Sources with several captions yield them all."""
        for index in range(len(self)):
            yield text_of(self._document(index, None))


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
        """The given part, as a prompt for the response has it: its pictures if it has any, else its texts."""
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


#: Creative Commons' names: what follows "CC-" and the version; a port to a country's law may follow.
_CREATIVE_COMMONS = re.compile(r"CC-(BY(?:-NC)?(?:-SA|-ND)?)-(\d\.\d)")


@cache
def licence_link(licence: str) -> str:
    """Return where a licence can be read; "" for a text that is not the SPDX name of one.

    >>> licence_link("CC-BY-4.0"), licence_link("cc0-1.0")
    ('https://creativecommons.org/licenses/by/4.0/', 'https://creativecommons.org/publicdomain/zero/1.0/')
    >>> licence_link("MIT"), licence_link("MIT OR Apache-2.0"), licence_link("unknown")
    ('https://spdx.org/licenses/MIT.html', '', '')
    """
    try:
        name = canonicalize_license_expression(licence)
    except InvalidLicenseExpression:
        return ""
    if " " in name or "(" in name or name.startswith("LicenseRef-"):
        return ""
    if name == "CC0-1.0":
        return "https://creativecommons.org/publicdomain/zero/1.0/"
    if (common := _CREATIVE_COMMONS.fullmatch(name)) is not None:
        return f"https://creativecommons.org/licenses/{common[1].lower()}/{common[2]}/"
    return f"https://spdx.org/licenses/{name.removesuffix('+')}.html"
