"""Kind `dataset`: the source of documents; also, a data set's records as the documents of a task."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypedDict

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from cm3core.document import Codes, Document, Image, PixelArray, Text, content_keys, text_of
from cm3core.errors import DataError
from cm3core.interfaces.component import ComponentConfig
from cm3core.interfaces.reach import TEXT, Outside
from cm3core.interfaces.task import Record, Task, instruction_field

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cm3core.interfaces.task import TaskConfig
    from cm3core.interfaces.text_tokenizer import TextTokenizerConfig

#: Fields of records of one captioned picture, see `DocumentSource.record`.
CAPTIONED = ("image", "caption")
#: Means a folder in `DocumentSourceConfig.reads`, instead of a file extension.
FOLDER = "/"


@dataclass(frozen=True)
class Judged:
    """Held-out documents that say how good a model trained on a data set is, see `DocumentSourceConfig.judged`.

    Args:
        name: the name of the results' folder.
        title: in reports.
        split: the split of the documents.
        scores: the scores, as in a protocol; empty: those of any captioned pictures.
        headings: name of each score that a report shows -> its heading; the first one, a percentage, says whether a result is
            right, and the others what is. Empty: all scores.
        makes: what the model is asked for: pictures for the captions, or captions of the pictures.
        num: documents to judge, unless time is short.
        memory_split: documents to prepend come from this split; None: from what was trained.
        num_retrieved: documents to prepend; None: as the recipe says.
        copies: whether real pictures that could be copied instead are scored, too.
    """

    name: str
    title: str
    split: str
    scores: Sequence[Mapping[str, Any]] = ()
    headings: Mapping[str, str] = field(default_factory=dict)
    makes: Literal["pictures", "captions"] = "pictures"
    num: int = 48
    memory_split: str | None = None
    num_retrieved: int | None = None
    copies: bool = False


@dataclass(kw_only=True)
class DocumentSourceConfig(ComponentConfig):
    """Base of data sets' configs.

    Args:
        split: "train", or another split of the data set. Data sets made of files hold out
            a fixed share as "valid".
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "split": TEXT,
    }

    kind: ClassVar[str] = "dataset"
    #: Every valid value of `split`, for `cm3 data`; a split that contains all others, if
    #: there is one, is called "all".
    splits: ClassVar[tuple[str, ...]] = ("train",)
    #: File extensions that the data set reads, in lower case, such as ".jsonl"; `FOLDER` for a
    #: folder. Commands use them to choose a data set for a path. Not inherited by
    #: subclasses.
    reads: ClassVar[tuple[str, ...]] = ()
    #: Whether it reads the output of `cm3 data encode`. Not inherited by subclasses.
    reads_token_shards: ClassVar[bool] = False
    split: str = "train"

    def trained_tasks(self) -> list[TaskConfig | None]:
        """Return the tasks that make its documents; None means plain documents.

        They are stored with models trained on it. The default is plain documents."""
        return [None]

    def retrieving_tasks(self) -> list[TaskConfig | None]:
        """Return those of the `trained_tasks` whose documents get retrieved documents prepended, if the recipe
        retrieves; by default all."""
        return self.trained_tasks()

    def memory_config(self) -> DocumentSourceConfig:
        """Return the data set to retrieve documents from if a recipe names no bank; by default
        this one."""
        return self

    def record_fields(self) -> tuple[str, ...] | None:
        """Return the names of the fields that every record has (`DocumentSource.record`), as far as its keys state them,
        so that a task that asks for others is refused before the data is read. None (the default): known only from the
        data."""
        return None

    def judged(self) -> list[Judged]:
        """Return by which held-out documents, and by which scores of them, a model trained on it is judged, the most
        telling first. By default none are named: its held-out splits are then scored as any captioned pictures."""
        return []

    def structures(self) -> list[str]:
        """Return the names of structures in its records (the field `feature` of tasks such
        as `structure`), as far as its keys state them; by default none."""
        return []

    @property
    def has_turns(self) -> bool:
        """Whether its documents are conversations with marked turns
        (`cm3core.document.is_conversation`); stored with models trained on it."""
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


class StatedSkipped(TypedDict):
    """The form of `dataclasses.asdict` of a `SkippedRecord` in stored documents."""

    place: str
    cause: str
    next_step: str


#: Licence of a document whose source does not state one.
UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True)
class Provenance:
    """The origin of a document.

    Args:
        licence: SPDX name, or `UNKNOWN_LICENCE`.
        source: place of publication: a package, an address; "" if unknown.
        attribution: whom to credit under the licence; "" if unknown.
        collection: the set or album it belongs to; "" if there is none.
        title: title of the work; "" if it has none.
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
        """Address of the licence's text; "" unless it is the SPDX name of a licence."""
        return licence_link(self.licence)

    @property
    def address(self) -> str:
        """The link, or the source if that is an address."""
        return self.link or (self.source if self.source.startswith(("https://", "http://")) else "")

    @property
    def shared(self) -> Provenance:
        """The provenance without the work's own title; used for counting documents."""
        return replace(self, title="")

    def stated(self) -> dict[str, str]:
        """Its fields as stored in files; unknown ones are omitted, except for the first three."""
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


class StatedProvenance(TypedDict, total=False):
    """The form of `Provenance.stated` in stored documents; older files have fewer keys."""

    licence: str
    source: str
    attribution: str
    collection: str
    title: str
    link: str


#: The keys of `StatedProvenance`.
_STATED: Final = tuple(one.name for one in fields(Provenance))


def provenance_in(values: StatedProvenance) -> Provenance:
    """Read the output of `Provenance.stated` from a stored document that has its form."""
    return Provenance(**{name: values[name] for name in _STATED if name in values})  # type: ignore[literal-required]  # its keys


def content_entry(name: str, document: Document) -> bytes:
    """A document's contribution to `DocumentSource.content_fingerprint`.

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

    #: Cached `content_fingerprint`: documents don't change while a source is used.
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

        By default `caption`, all of its text, and `image`, its last picture. Data sets of pairs,
        questions and the like have their own fields. Texts may vary with `rng`, pictures never."""
        document = self.document(index, rng)
        pictures = [segment for segment in document if isinstance(segment, (Image, Codes))]
        record: dict[str, object] = {"image": pictures[-1]} if pictures else {}
        return record | ({"caption": text} if (text := text_of(document)) else {})

    def truth(self, index: int) -> Mapping[str, object]:
        """Return what the document's picture shows, as JSON values in the data set's own terms, for metrics that judge by it
        (the column `targets`). By default nothing is known."""
        return {}

    def alternatives(
        self, index: int, size: int, num: int
    ) -> Sequence[tuple[str, Callable[[], PixelArray]]] | None:
        """Return the real pictures among which a drawing of the document is to be found: (name, what loads it), that of the
        document first.

        Args:
            index: the document.
            size: side of the pictures, in pixels.
            num: how many, at most.

        None, the default: any of the data set's training documents of other groups.
        """
        return None

    def copies(self, index: int, size: int) -> Mapping[str, Callable[[], PixelArray]] | None:
        """Return the real pictures that could be copied instead of drawing the document, by what is copied; see
        `alternatives`. None, the default: the training document with the nearest caption, and any."""
        return None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of a mixed data set; empty if it is not a mixture."""
        return ()

    def part(self, index: int) -> int:
        """Return the number of a document's part, an index into `parts`."""
        return 0

    def retrieves(self, index: int) -> bool:
        """Return whether documents are retrieved for a document if the recipe has a retriever;
        by default True."""
        return True

    def query(self, index: int) -> Document:
        """Return the query for retrieving a document's neighbours in training; by default the canonical
        document."""
        return self.document(index)

    def epoch_order(self, seed: int, epoch: int) -> npt.NDArray[np.int64] | None:
        """Return the documents of an epoch in training order, as indices; None: each once, in a
        random order.

        An index may occur several times, or not at all. The order must be a function of the
        arguments."""
        return None

    def stream_order(
        self, seed: int, epoch: int, place: int, num_streams: int
    ) -> npt.NDArray[np.int64] | None:
        """Return the documents for one virtual loader, `place` of `num_streams`, in an epoch, as
        indices in order; None: every `num_streams`-th of the epoch's order.

        For data sets that are best read one part at a time. All streams get equally many documents, none
        twice. The order must be a function of the arguments."""
        return None

    @property
    def is_encoded(self) -> bool:
        """Whether all pictures are codes and all texts have their ids. Training then reads each document when
        needed, and none at the start."""
        return False

    @property
    def is_far(self) -> bool:
        """Whether documents are read over a network. All of them are then read only on
        request."""
        return False

    def check_tokenizers(self, text: str, image: str) -> None:  # noqa: B027  # pixels fit any
        """Raise `TokenizerError` if the documents were encoded with tokenizers of other
        fingerprints."""

    def text_tokenizer_folder(self, name: str, config: TextTokenizerConfig) -> Path | None:
        """Return the folder of the text tokenizer that encoded the documents, if the component with this name and
        config built it; None: the config builds one from the documents' texts."""
        return None

    def text_alternatives(self, index: int) -> list[tuple[str, ...]] | None:
        """Return, for each text of the document, the alternatives from which `document` draws, all equally likely
        and independent, in the order of its draws; None: not applicable, or unknown."""
        return None

    def instructions(self) -> Mapping[str, Mapping[str, int] | None]:
        """Return, for each task whose documents change a picture by an instruction, by its title, the instructions with
        their numbers of documents; None: more than `MOST_INSTRUCTIONS`. By default there is no such task."""
        return {}

    def provenances(self) -> Mapping[Provenance, int]:
        """Return the documents' provenances (`Provenance.shared`), each with its number of documents."""
        return Counter(self.provenance(index).shared for index in range(len(self)))

    def content_keys(self, index: int) -> frozenset[str]:
        """Return the document's content keys (`cm3core.document.content_keys`).

        A document that shares a key with it is never retrieved for it."""
        return content_keys(self.document(index))

    def group(self, index: int) -> str:
        """Return the document's group (a concept, an album); "" if the data set has none."""
        return ""

    def is_withheld(self, index: int) -> bool:
        """Whether the document is never retrieved, such as a logo, whose owner decides on its use. By default False."""
        return False

    def collection(self, index: int) -> str:
        """Return the name of the document's collection, for prompts that name it ("fire, emoji"), if it is quickly found;
        "", the default: it has none, or only its caption and `provenance` name it."""
        return ""

    def provenance(self, index: int) -> Provenance:
        """Return the document's licence and source. By default both are unknown."""
        return Provenance()

    def original(self, index: int) -> Original | None:
        """Return the original file of the document's picture as published, the last one's if there are several; None:
        no picture, or only codes are available.

        The default encodes its pixels as a PNG. Data sets that have the original file, or the drawing that pixels were
        rendered from, override it.

        Raises:
            DataError: the file can't be read.
        """
        from cm3core.images import png_bytes  # imported here: describing plugins needs no pictures

        pictures = [one for one in self.document(index) if isinstance(one, Image)]
        return Original(".png", png_bytes(pictures[-1].load())) if pictures else None

    @property
    def skipped(self) -> list[SkippedRecord]:
        """Records that can't be used, each with its reason."""
        return []

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that determines the documents' ids and pictures; names the cache of codes."""

    @property
    def content_fingerprint(self) -> str:
        """Hash of everything that determines data made from texts, such as an index; names its cache.

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
        """Hash of the documents and their positions, but not of how often training draws them; names
        caches with one entry per document. By default `content_fingerprint`."""
        return self.content_fingerprint

    @property
    def quick_fingerprint(self) -> str | None:
        """Hash that changes whenever `content_fingerprint` does, computed without reading the documents, for example
        from their file's hash and the settings that select and word them. None, the default: not available.

        It gives quick access to data cached under `content_fingerprint`, or for the texts."""
        return None

    def texts(self) -> Iterator[str]:
        """Yield all canonical texts, for training a text tokenizer.

        Sources with several captions yield them all."""
        for index in range(len(self)):
            yield text_of(self._document(index, None))


#: The most different instructions of a task that are counted; with more, they are free text.
MOST_INSTRUCTIONS = 20_000


class TaskSource(DocumentSource):
    """The documents that a task makes from a source's records. Unusable records are skipped.

    Args:
        source: its `record` gives the fields.
        task: makes the documents.
        title: the task's name as users see it, for `instructions`.
    """

    def __init__(self, source: DocumentSource, task: Task, title: str = "") -> None:
        self.source, self.task, self.title = source, task, title
        self._instructions: Counter[str] | None = Counter()
        self._skipped: list[SkippedRecord] = []
        self._indices: list[int] = []
        # all documents are made here to find the usable ones; their hash is a by-product
        digest = hashlib.sha256(self.fingerprint.encode())
        for index in range(len(source)):
            try:
                document = self._make(index, None)
            except DataError as error:
                self._skipped.append(SkippedRecord(error.place, error.cause, error.next_step))
            else:
                self._indices.append(index)
                self._count_instruction(index)
                digest.update(content_entry(source.id(index), document))
        if not self._skipped:  # otherwise the hash is not that of the stored fingerprint
            self._content_fingerprint = digest.hexdigest()

    def _count_instruction(self, index: int) -> None:
        """Count a record's instruction, in each of its wordings."""
        name, counts = instruction_field(self.task), self._instructions
        if name is None or counts is None:
            return
        record = self.source.record(index)
        wordings: Sequence[str] = (str(record[name]),)
        alternatives = self.source.text_alternatives(index) or []
        # constants of a table come before the fields of its rows
        texts = [one for one, value in record.items() if isinstance(value, str)]
        own = dict(zip(texts[len(texts) - len(alternatives) :], alternatives, strict=False))
        counts.update(text.strip() for text in own.get(name, wordings))
        if len(counts) > MOST_INSTRUCTIONS:
            self._instructions = None

    def instructions(self) -> Mapping[str, Mapping[str, int] | None]:
        return {} if instruction_field(self.task) is None else {self.title: self._instructions}

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
        """The given part, as in a prompt for the response: its pictures if it has any, otherwise its texts."""
        index = self._indices[index]
        record = self.source.record(index)
        prompt = self.task.prompt(record, place=f"record {self.source.id(index)}")
        pictures = tuple(one for one in prompt if isinstance(one, (Image, Codes)))
        return pictures or tuple(one for one in prompt if isinstance(one, Text))

    def truth(self, index: int) -> Mapping[str, object]:
        return self.source.truth(self._indices[index])

    def content_keys(self, index: int) -> frozenset[str]:
        """Includes the record's keys, because it may contain more than its document shows."""
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
        if not self._indices:  # messages name the first skipped record as the reason
            return [*self._skipped, *self.source.skipped]
        return [*self.source.skipped, *self._skipped]

    @property
    def fingerprint(self) -> str:
        kept = f" {self._indices}" if self._skipped else ""
        return hashlib.sha256(f"task {self.source.fingerprint}{kept}".encode()).hexdigest()


#: Creative Commons' names: the text after "CC-" and the version; a country code may follow.
_CREATIVE_COMMONS = re.compile(r"CC-(BY(?:-NC)?(?:-SA|-ND)?)-(\d\.\d)")


@cache
def licence_link(licence: str) -> str:
    """Return the address of a licence's text; "" for a text that is not the SPDX name of a licence.

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
