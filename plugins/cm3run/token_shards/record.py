"""A document of a shard: what `KEY.json` and `KEY.npy` hold, and the document that they give.

    {"id": "dogs/rex", "segments": [{"texts": ["Rex, a dog", "a dog"], "ids": [[72, 9], [5, 9]]}, {"picture": 0}],
     "keys": ["image:7f.."], "licence": "CC-BY-4.0", "source": "", "attribution": "", "group": ""}

Codes are one array, uint16 or int32 [P, c] of P pictures. Legend: c codes = rows * columns of the grid.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cm3core.document import Codes, Document, IntArray, Segment, Text, starts_turn
from cm3core.errors import DataError
from cm3core.interfaces.dataset import Provenance, provenance_in
from cm3run.npy import readable_header

if TYPE_CHECKING:
    from cm3core.interfaces.text_tokenizer import TextTokenizer

#: Codes fit into two bytes below this number.
_SMALL = 1 << 16
#: A header of numpy's format 1.0: magic, version, length.
_MAGIC, _PREFIX = b"\x93NUMPY\x01\x00", 10


def written(
    name: str,
    versions: Sequence[Document],
    codes: Mapping[str, IntArray],
    tokenizer: TextTokenizer,
    *,
    codebook_size: int,
    keys: frozenset[str],
    provenance: Provenance,
    group: str,
    alternatives: Sequence[Sequence[str]] | None = None,
) -> tuple[bytes, bytes | None]:
    """Return the bytes of `KEY.json` and of `KEY.npy`, None without pictures.

    Args:
        name: the document's id.
        versions: the document with one text after another, the canonical one first; all with the same
            pictures.
        codes: of its pictures by key, int32 [c].
        tokenizer: makes the ids.
        codebook_size: decides the codes' dtype.
        keys, provenance, group: of the document.
        alternatives: of each text, where they are independent of each other; then `versions` is the
            canonical document alone.
    """
    segments: list[dict[str, Any]] = []
    rows: list[IntArray] = []
    num_texts = 0
    for place, segment in enumerate(versions[0]):
        if isinstance(segment, Text):
            own = [one for version in versions if isinstance(one := version[place], Text)]
            if alternatives is not None:
                asked = bool(segment.responses)  # the whole text, as its alternatives are
                own = [
                    Text(text, ((0, len(text)),) if asked else (), segment.starts_turn)
                    for text in alternatives[num_texts]
                ]
            num_texts += 1
            segments.append(_text(own, tokenizer))
            continue
        entry: dict[str, Any] = {"picture": len(rows)}
        if isinstance(segment, Codes):
            rows.append(segment.codes)
        else:
            rows.append(codes[getattr(segment, "key")])  # noqa: B009  # an `Image`
        if getattr(segment, "response", False):
            entry["response"] = True
        if starts_turn(segment):
            entry["turn"] = True
        segments.append(entry)
    values: dict[str, Any] = {"id": name, "segments": segments}
    if len(versions) > 1:
        values["together"] = True
    values |= {"keys": sorted(keys), **provenance.stated(), "group": group}
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    if not rows:
        return text, None
    dtype = np.uint16 if codebook_size <= _SMALL else np.int32
    file = io.BytesIO()
    np.lib.format.write_array(file, np.stack(rows).astype(dtype), version=(1, 0))
    return text, file.getvalue()


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


@dataclass(frozen=True, eq=False)
class StoredDocument:
    """A document as its shard holds it.

    Args:
        values: `KEY.json`.
        codes: int32 [P, c] of its pictures.
        grid: (rows, columns) of a picture.
        place: its name in messages.
    """

    values: Mapping[str, Any]
    codes: IntArray
    grid: tuple[int, int]
    place: str = field(repr=False)

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.values["id"])

    @property
    def group(self) -> str:
        """Its group, "" if it has none."""
        return str(self.values.get("group", ""))

    @property
    def content_keys(self) -> frozenset[str]:
        """The content keys of the document that was encoded."""
        return frozenset(map(str, self.values.get("keys", ())))

    @property
    def provenance(self) -> Provenance:
        """Where the document is from."""
        return provenance_in(self.values)

    @property
    def texts(self) -> list[str]:
        """All its texts, every alternative."""
        return [text for one in self.values["segments"] if "texts" in one for text in one["texts"]]

    def document(self, rng: np.random.Generator | None = None) -> Document:
        """Return the document; with `rng`, each text is drawn among its alternatives, or all are, where they
        belong together.

        Raises:
            DataError: it is not of the right form.
        """
        values = self.values
        together = values.get("together", False)
        number: int | None = 0 if rng is None else None
        segments: list[Segment] = []
        try:
            for one in values["segments"]:
                is_picture = "picture" in one
                turn = bool(one.get("turn"))
                if is_picture:
                    codes, asked = self.codes[one["picture"]], one.get("response", False)
                    segments.append(Codes(codes, self.grid, response=asked, starts_turn=turn))
                    continue
                texts = one["texts"]
                if rng is not None and (number is None or not together):
                    number = int(rng.integers(len(texts)))
                assert number is not None
                spans = one["responses"][number] if "responses" in one else ()
                responses = tuple((int(start), int(stop)) for start, stop in spans)
                ids = tuple(one["ids"][number])
                segments.append(Text(texts[number], responses, turn, ids))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _malformed(self.place, error) from error
        return tuple(segments)


def stored_document(
    text: bytes | memoryview, codes: bytes | memoryview, grid: tuple[int, int], place: str
) -> StoredDocument:
    """Return the document of the bytes of `KEY.json` and `KEY.npy`; the latter b"" without pictures.

    Raises:
        DataError: they are not what they should be.
    """
    width = grid[0] * grid[1]
    try:
        values = json.loads(bytes(text))
        if not isinstance(values, dict) or not {"id", "segments", "licence"} <= set(values):
            raise ValueError("no document")
        array = _array(codes) if len(codes) else np.empty((0, width), np.int32)
        if array.ndim != 2 or array.shape[1] != width:
            raise ValueError(f"codes {list(array.shape)}")
    except (ValueError, RecursionError, OverflowError) as error:
        raise _malformed(place, error) from error
    return StoredDocument(values, array, grid, place)


def _array(content: bytes | memoryview) -> IntArray:
    """int32 of the bytes of a `.npy` file."""
    length = int.from_bytes(content[8:_PREFIX], "little")
    if bytes(content[:8]) != _MAGIC or len(content) < _PREFIX + length:
        raise ValueError("no array of numpy's format 1.0")
    dtype, shape = _header(bytes(content[_PREFIX : _PREFIX + length]))
    array = np.frombuffer(content, dtype, offset=_PREFIX + length)
    return array.reshape(shape).astype(np.int32)


@lru_cache(maxsize=64)  # all documents with as many pictures have the same header
def _header(header: bytes) -> tuple[npt.DTypeLike, tuple[int, ...]]:
    with readable_header():
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(
            io.BytesIO(len(header).to_bytes(2, "little") + header)
        )
    if fortran or dtype not in (np.dtype("<u2"), np.dtype("<i4")):
        raise ValueError(f"codes of dtype {dtype}")
    return dtype, shape


def _malformed(place: str, error: Exception) -> DataError:
    return DataError(
        place,
        f"is not a document of token shards ({type(error).__name__}: {error})",
        "encode the data set again with this version",
    )
