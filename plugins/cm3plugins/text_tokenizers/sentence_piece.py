"""`SentencePieceTokenizer`: a `.model` file, with special pieces that texts can't produce.

SentencePiece matches pieces of the type "user defined" in a text before anything else, but never control
pieces. So control tokens are changed to the type control when the file is read. The file is a protocol
buffer; only its list of pieces is read (field 1: text, score, type).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from cm3core.errors import TokenizerError
from cm3core.files import atomic_path
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3plugins.text_tokenizers.shielding import is_control, read_file, without

_FILE_NAME = "tokenizer.model"
_NEXT = "use the .model file of a SentencePiece tokenizer"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
#: Wire types of protocol buffers.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class SentencePieceTokenizer(TextTokenizer):
    """A SentencePiece tokenizer.

    Args:
        content: bytes of a `.model` file.
        place: its origin, for error messages.
        control: regular expressions of control tokens.
    """

    def __init__(self, content: bytes, place: str, control: Sequence[str]) -> None:
        self._content = content
        try:
            changed, hidden = _with_control(content, control)
            self._processor = SentencePieceProcessor(model_proto=changed)
        except (ValueError, RuntimeError, IndexError, UnicodeDecodeError) as error:
            cause = f"is not a SentencePiece model ({str(error)[:200] or type(error).__name__})"
            raise TokenizerError(place, cause, _NEXT) from error
        unknown = self._processor.unk_id()
        self._hidden = frozenset(hidden | {unknown})
        self._special = {
            self._processor.id_to_piece(one): one for one in sorted(hidden - {unknown})
        }
        facts = content + "\0".join(control).encode()
        self._fingerprint = hashlib.sha256(facts).hexdigest()

    @classmethod
    def from_file(cls, path: Path, control: Sequence[str]) -> SentencePieceTokenizer:
        """Read a `.model` file. Raises `TokenizerError` if it can't be used."""
        return cls(read_file(path), str(path), control)

    @property
    def vocab_size(self) -> int:
        """Number of pieces, including control pieces, which texts never produce."""
        return int(self._processor.get_piece_size())

    @property
    def fingerprint(self) -> str:
        """Hash of the file and the control tokens."""
        return self._fingerprint

    def special_ids(self) -> Mapping[str, int]:
        """Control pieces, except the unknown piece."""
        return self._special

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text, out_type=int)
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._processor.decode(without(ids, self._hidden))
        return text

    def save(self, folder: Path) -> None:
        """Write `tokenizer.model` into `folder`, unchanged."""
        with atomic_path(folder / _FILE_NAME) as temporary:
            Path(temporary).write_bytes(self._content)


def _with_control(content: bytes, control: Sequence[str]) -> tuple[bytes, set[int]]:
    """Return the model with control tokens changed to control pieces, and the ids of all control pieces.

    Raises:
        ValueError, IndexError: it is not a protocol buffer with pieces.
    """
    changed, hidden, number = bytearray(), set(), 0
    for tag, start, end in _fields(content):
        if tag != (1 << 3 | _BYTES):
            changed += content[start:end]
            continue
        piece, kind = _piece(content, start, end)
        own = kind == _USER_DEFINED and piece.strip("\u2581 \t\r\n")
        if own or (kind in (_NORMAL, _USER_DEFINED) and is_control(piece, control)):
            kind = _CONTROL
        if kind == _CONTROL:
            hidden.add(number)
            # the last of several values of a field wins
            body = _body(content, start, end) + bytes([3 << 3 | _VARINT, _CONTROL])
            changed += bytes([tag]) + _varint(len(body)) + body
        else:
            changed += content[start:end]
        number += 1
    if not number:
        raise ValueError("it has no pieces")
    return bytes(changed), hidden


def _piece(content: bytes, start: int, end: int) -> tuple[str, int]:
    """Return text and type of the piece in a field."""
    text, kind, body = "", _NORMAL, _body(content, start, end)
    for tag, begin, stop in _fields(body):
        if tag == (1 << 3 | _BYTES):
            text = _body(body, begin, stop).decode("utf-8")
        elif tag == (3 << 3 | _VARINT):
            kind, _ = _read_varint(body, begin + 1)
    return text, kind


def _fields(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (tag, start, end) of each field of a message, including the tag's bytes."""
    place = 0
    while place < len(content):
        start = place
        tag, place = _read_varint(content, place)
        wire = tag & 7
        if wire == _VARINT:
            _, place = _read_varint(content, place)
        elif wire in (_FIXED64, _FIXED32):
            place += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            length, place = _read_varint(content, place)
            place += length
        else:
            raise ValueError(f"wire type {wire}")
        if place > len(content):
            raise ValueError("it ends in the middle of a field")
        yield tag, start, place


def _body(content: bytes, start: int, end: int) -> bytes:
    """Return the value of a field of bytes."""
    _, place = _read_varint(content, start)
    _, place = _read_varint(content, place)
    return content[place:end]


def _read_varint(content: bytes, place: int) -> tuple[int, int]:
    """Read a number of 7 bits per byte; returns it and the offset after it."""
    value = shift = 0
    while True:
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
        value |= (content[place] & 127) << shift
        place += 1
        if content[place - 1] < 128:
            return value, place
        shift += 7


def _varint(value: int) -> bytes:
    """The inverse of `_read_varint`."""
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])
