"""A document in a shard: the contents of `KEY.json` and `KEY.npy`, the document made from them, and their tar file.

    {"id": "dogs/rex", "segments": [{"texts": ["Rex, a dog", "a dog"], "ids": [[72, 9], [5, 9]]}, {"picture": 0}],
     "keys": ["image:7f.."], "licence": "CC-BY-4.0", "source": "", "attribution": "", "group": ""}

Codes are one array, uint16 or int32 [P, c] for P pictures. Members of the tar are in the order of the documents:
`KEY.json`, then `KEY.npy` if it has pictures. Headers are plain USTAR without times or owners, so equal documents
give equal bytes. Legend: c codes = rows * columns of the grid.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from cm3core.arguments import CountOrZero
from cm3core.document import Codes, Document, IntArray, Segment, Text, starts_turn
from cm3core.errors import DataError
from cm3core.interfaces.dataset import Provenance, StatedProvenance, provenance_in
from cm3run.json_text import StoredName, parse_json
from cm3run.npy import readable_header

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.text_tokenizer import TextTokenizer


_BLOCK = tarfile.BLOCKSIZE
#: Positions in a USTAR header of a member's name, its octal size, and its type.
_NAME, _SIZE, _TYPE = slice(0, 100), slice(124, 135), 156
_REGULAR = ord("0")


class Entry(NamedTuple):
    """Position of a document in its shard: start and length of its JSON, and of its codes (length 0: no
    pictures), in bytes."""

    text_start: int
    text_size: int
    codes_start: int
    codes_size: int


def write_tar(path: Path, documents: Iterable[tuple[str, bytes, bytes | None]]) -> int:
    """Write documents as (key, JSON, codes or None); return their number."""
    number = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, text, codes in documents:
            add_member(tar, f"{key}.json", text)
            if codes is not None:
                add_member(tar, f"{key}.npy", codes)
            number += 1
    return number


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file without time or owner."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def entries_of(content: bytes | memoryview, place: str) -> list[Entry]:
    """Return the position of each document in a shard.

    Args:
        content: the whole tar.
        place: its name in messages.

    Raises:
        DataError: it was not written by `write_tar`, or is truncated.
    """
    found: list[Entry] = []
    key, start, total = b"", 0, len(content)
    text: tuple[int, int] | None = None
    while start + _BLOCK <= total:
        header = bytes(content[start : start + _BLOCK])
        name = header[_NAME].rstrip(b"\0")
        if not name:
            break
        stem, _, suffix = name.rpartition(b".")
        try:
            size = int(header[_SIZE], 8)
        except ValueError:
            raise _strange(place, f"has no tar header at byte {start}") from None
        begin = start + _BLOCK
        if size < 0 or begin + size > total or header[_TYPE] != _REGULAR:
            raise _strange(place, f"ends within its member {name.decode(errors='replace')}")
        if suffix == b"json":
            if text is not None:
                found.append(Entry(*text, 0, 0))
            key, text = stem, (begin, size)
        elif suffix == b"npy" and text is not None and stem == key:
            found.append(Entry(*text, begin, size))
            text = None
        else:
            cause = f"contains {name.decode(errors='replace')}, which is not part of a document"
            raise _strange(place, cause)
        start = begin + -(-size // _BLOCK) * _BLOCK
    else:
        raise _strange(place, "lacks the end marker of a tar")
    if text is not None:
        found.append(Entry(*text, 0, 0))
    return found


def _strange(place: str, cause: str) -> DataError:
    return DataError(place, cause, "copy the shard again from its source, or encode it again")


#: Codes below this number fit into two bytes.
_SMALL = 1 << 16
#: Start of a header in numpy's format 1.0: magic, version, length.
_MAGIC, _PREFIX = b"\x93NUMPY\x01\x00", 10


@dataclass(frozen=True)
class RecordFacts:
    """A document's metadata in a record: its id, content keys, provenance and group."""

    id: str
    _: KW_ONLY
    keys: frozenset[str]
    provenance: Provenance
    group: str

    @classmethod
    def of(cls, source: DocumentSource, place: int) -> RecordFacts:
        """The metadata of a document of a source."""
        return cls(
            source.id(place),
            keys=source.content_keys(place),
            provenance=source.provenance(place),
            group=source.group(place),
        )


def written(
    facts: RecordFacts,
    versions: Sequence[Document],
    codes: Mapping[str, IntArray],
    tokenizer: TextTokenizer,
    *,
    codebook_size: int,
    alternatives: Sequence[Sequence[str]] | None = None,
) -> tuple[bytes, bytes | None]:
    """Return the bytes of `KEY.json` and of `KEY.npy`, None without pictures.

    Args:
        facts: the document's metadata.
        versions: the document with alternative texts, the canonical one first; all with the same
            pictures.
        codes: of its pictures by key, int32 [c].
        tokenizer: makes the ids.
        codebook_size: determines the codes' dtype.
        alternatives: for each text, if they are independent of each other; `versions` is then the
            canonical document alone.
    """
    segments: list[dict[str, Any]] = []
    rows: list[IntArray] = []
    num_texts = 0
    for place, segment in enumerate(versions[0]):
        if isinstance(segment, Text):
            own = [one for version in versions if isinstance(one := version[place], Text)]
            if alternatives is not None:
                asked = bool(segment.responses)  # the whole text, as in its alternatives
                own = [
                    Text(text, ((0, len(text)),) if asked else (), segment.starts_turn)
                    for text in alternatives[num_texts]
                ]
            num_texts += 1
            segments.append(_text(own, tokenizer))
        else:
            segments.append(_picture(segment, len(rows)))
            rows.append(
                segment.codes if isinstance(segment, Codes) else codes[getattr(segment, "key")]  # noqa: B009  # an `Image`
            )
    values: dict[str, Any] = {"id": facts.id, "segments": segments}
    if len(versions) > 1:
        values["together"] = True
    values |= {"keys": sorted(facts.keys), **facts.provenance.stated(), "group": facts.group}
    try:
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"document {facts.id!a}",
            f"holds half a character ({error.object[error.start]!a}), which is not Unicode",
            "correct its text, or leave it out",
        ) from error
    if not rows:
        return text, None
    dtype = np.uint16 if codebook_size <= _SMALL else np.int32
    file = io.BytesIO()
    np.lib.format.write_array(file, np.stack(rows).astype(dtype), version=(1, 0))
    return text, file.getvalue()


def _picture(segment: Segment, row: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"picture": row}
    if getattr(segment, "response", False):
        entry["response"] = True
    if starts_turn(segment):
        entry["turn"] = True
    return entry


def _text(texts: Sequence[Text], tokenizer: TextTokenizer) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "texts": [text.text for text in texts],
        "ids": [tokenizer.encode(text.text) for text in texts],
    }
    if any(text.responses for text in texts):
        entry["responses"] = [[list(span) for span in text.responses] for text in texts]
    if texts[0].starts_turn:
        entry["turn"] = True
    return entry


#: Most bytes of `KEY.json`.
_MOST_BYTES: Final = 1 << 24


class _Segment(TypedDict, total=False):
    """A text with its alternatives, each with its ids and its ranges of a response; or a picture's row of the codes."""

    texts: list[str]
    ids: list[list[int]]  # which of them there are is known where they become tokens
    responses: list[list[tuple[CountOrZero, CountOrZero]]]
    picture: CountOrZero
    response: bool
    turn: bool


class _Record(StatedProvenance):
    """`KEY.json`."""

    id: StoredName
    segments: list[_Segment]
    together: NotRequired[bool]
    keys: NotRequired[list[str]]
    group: NotRequired[str]


@dataclass(frozen=True, eq=False)
class StoredDocument:
    """A document as stored in a shard.

    Args:
        values: `KEY.json`, checked by `stored_document`.
        codes: int32 [P, c] of its pictures.
        grid: (rows, columns) of a picture.
        place: its name in messages.
    """

    values: _Record
    codes: IntArray
    grid: tuple[int, int]

    @property
    def id(self) -> str:
        """Its id."""
        return self.values["id"]

    @property
    def group(self) -> str:
        """Its group, "" if it has none."""
        return self.values.get("group", "")

    @property
    def content_keys(self) -> frozenset[str]:
        """The content keys of the document that was encoded."""
        return frozenset(self.values.get("keys", ()))

    @property
    def provenance(self) -> Provenance:
        """The document's licence and source."""
        return provenance_in(self.values)

    @property
    def texts(self) -> list[str]:
        """All its texts, including every alternative."""
        return [text for one in self.values["segments"] if "texts" in one for text in one["texts"]]

    def document(self, rng: np.random.Generator | None = None) -> Document:
        """Return the document. With `rng`, each text is drawn from its alternatives; alternatives that belong together
        are drawn together."""
        values = self.values
        together = values.get("together", False)
        number: int | None = 0 if rng is None else None
        segments: list[Segment] = []
        for one in values["segments"]:
            turn = one.get("turn", False)
            if "picture" in one:
                codes, asked = self.codes[one["picture"]], one.get("response", False)
                segments.append(Codes(codes, self.grid, response=asked, starts_turn=turn))
                continue
            texts = one["texts"]
            if rng is not None and (number is None or not together):
                number = int(rng.integers(len(texts)))
            assert number is not None
            spans = one["responses"][number] if "responses" in one else ()
            responses = tuple((start, stop) for start, stop in spans)
            segments.append(Text(texts[number], responses, turn, tuple(one["ids"][number])))
        return tuple(segments)


def stored_document(
    text: bytes | memoryview, codes: bytes | memoryview, grid: tuple[int, int], place: str
) -> StoredDocument:
    """Return the document in the bytes of `KEY.json` and `KEY.npy`; the latter b"" without pictures.

    Raises:
        DataError: the record is malformed.
    """
    width = grid[0] * grid[1]
    try:
        values = parse_json(bytes(text), place, form=_Record, most_bytes=_MOST_BYTES)
    except DataError as error:
        raise _malformed(place, error.cause) from error
    try:
        array = _array(codes) if len(codes) else np.empty((0, width), np.int32)
        if array.ndim != 2 or array.shape[1] != width:
            raise ValueError(f"codes {list(array.shape)}")
    except (ValueError, OverflowError) as error:
        raise _malformed(place, f"{type(error).__name__}: {error}") from error
    if (cause := _misfit(values, len(array))) is not None:
        raise _malformed(place, cause)
    return StoredDocument(values, array, grid)


def _misfit(values: _Record, num_pictures: int) -> str | None:
    """What is wrong with the lengths and rows that a record states; None: nothing."""
    together = values.get("together", False)
    counts = set()
    for place, one in enumerate(values["segments"]):
        if "picture" in one:
            if one["picture"] >= num_pictures:
                return f"segments[{place}] is picture {one['picture']} of {num_pictures}"
            continue
        if "texts" not in one or "ids" not in one:
            return f"segments[{place}] is neither a text with its ids nor a picture"
        texts, number = one["texts"], len(one["texts"])
        counts.add(number)
        spans = (
            one["responses"] if "responses" in one else list[list[tuple[int, int]]]([[]] * number)
        )
        if not number == len(one["ids"]) == len(spans) or not number:
            return (
                f"segments[{place}] has {number} texts, {len(one['ids'])} of ids and "
                f"{len(spans)} of responses"
            )
        for text, own in zip(texts, spans, strict=True):
            if any(not start <= stop <= len(text) for start, stop in own):
                return f"segments[{place}] has a response outside of its text"
    if together and len(counts) > 1:
        return f"segments have {sorted(counts)} texts, which belong together"
    return None


def _array(content: bytes | memoryview) -> IntArray:
    """The int32 array in the bytes of a `.npy` file."""
    length = int.from_bytes(content[8:_PREFIX], "little")
    if bytes(content[:8]) != _MAGIC or len(content) < _PREFIX + length:
        raise ValueError("not an array in numpy's format 1.0")
    dtype, shape = _header(bytes(content[_PREFIX : _PREFIX + length]))
    array = np.frombuffer(content, dtype, offset=_PREFIX + length)
    return array.reshape(shape).astype(np.int32)


@lru_cache(maxsize=64)  # documents with equally many pictures have the same header
def _header(header: bytes) -> tuple[npt.DTypeLike, tuple[int, ...]]:
    with readable_header():
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(
            io.BytesIO(len(header).to_bytes(2, "little") + header)
        )
    if fortran or dtype not in (np.dtype("<u2"), np.dtype("<i4")):
        raise ValueError(f"codes of dtype {dtype}")
    return dtype, shape


def _malformed(place: str, cause: str) -> DataError:
    return DataError(
        place,
        f"is not a document of token shards ({cause})",
        "encode the data set again with this version",
    )
