"""`TiktokenTokenizer`: a `.tiktoken` file, with one token per line: its bytes in base64, and its rank."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from pathlib import Path

import tiktoken

from cm3core.errors import TokenizerError
from cm3core.files import atomic_path
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3plugins.text_tokenizers.shielding import (
    MOST_IDS,
    Encoded,
    is_control,
    read_file,
    shielded,
    without,
)
from cm3run.faults import panics_as_errors

_FILE_NAME = "tokenizer.tiktoken"
_NEXT = "use a .tiktoken file: lines of base64, a space and a rank"
_NUM_BYTES = 256
#: A text that every pattern must split without loss.
_PROBE = "A b-1,\n\t é"


class TiktokenTokenizer(TextTokenizer):
    """A byte-level BPE in tiktoken's format.

    Args:
        content: bytes of a `.tiktoken` file.
        place: its origin, for error messages.
        pattern: regular expression that splits a text into pieces.
        control: regular expressions of control tokens.
    """

    def __init__(self, content: bytes, place: str, pattern: str, control: Sequence[str]) -> None:
        self._content, self._place = content, place
        ranks = _ranks(content, place)
        self._ranks = frozenset(ranks.values())
        try:
            self._encoding = tiktoken.Encoding(
                "file", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
        except (ValueError, RuntimeError) as error:
            raise TokenizerError(
                "text_tokenizer.pattern",
                f"is not a valid regular expression for tiktoken ({str(error)[:200]})",
                "correct it, or leave it out to use Qwen's and Emu3's",
            ) from error
        self._pieces(_PROBE)
        self._control = frozenset(
            rank
            for token, rank in ranks.items()
            if is_control(token.decode("utf-8", "replace"), control)
        )
        self._vocab_size = 1 + max(ranks.values())
        facts = b"\0".join([content, pattern.encode(), *(one.encode() for one in control)])
        self._fingerprint = hashlib.sha256(facts).hexdigest()

    @classmethod
    def from_file(cls, path: Path, pattern: str, control: Sequence[str]) -> TiktokenTokenizer:
        """Read a `.tiktoken` file. Raises `TokenizerError` if it can't be used."""
        return cls(read_file(path), str(path), pattern, control)

    @property
    def vocab_size(self) -> int:
        """One more than the largest rank."""
        return self._vocab_size

    @property
    def fingerprint(self) -> str:
        """Hash of the file, the pattern and the control tokens."""
        return self._fingerprint

    def _encode(self, text: str) -> list[int]:
        return shielded(text, self._plainly, self._control, self._place)

    def _pieces(self, text: str) -> list[int]:
        """Return the ids of a text, including control tokens.

        Raises:
            TokenizerError: the pattern gives empty pieces, or leaves out characters.
        """
        lost = f"does not split a text like {text[:20]!r} without losing characters"
        wrong = TokenizerError(
            "text_tokenizer.pattern", lost, "correct it, or leave it out to use Qwen's and Emu3's"
        )
        try:
            with panics_as_errors():
                ids = self._encoding.encode_ordinary(text)
        except ValueError as error:
            raise wrong from error
        if self._encoding.decode_bytes(ids) != text.encode("utf-8"):
            raise wrong
        return ids

    def _plainly(self, text: str) -> Encoded:
        ids = self._pieces(text)
        if self._control.isdisjoint(ids):
            return ids, [(0, 0)] * len(ids)
        # tokens are bytes, but a control token starts and ends at characters
        spans, end = [], 0
        for token in ids:
            start, end = end, end + len(self._encoding.decode_single_token_bytes(token))
            spans.append((start, end))
        letters = [0]
        for letter in text:
            letters.append(letters[-1] + len(letter.encode("utf-8")))
        number = {place: index for index, place in enumerate(letters)}
        return ids, [(number.get(start, 0), number.get(end, 0)) for start, end in spans]

    def _decode(self, ids: Sequence[int]) -> str:
        known = [one for one in without(ids, self._control) if one in self._ranks]
        return self._encoding.decode_bytes(known).decode("utf-8", "replace")

    def save(self, folder: Path) -> None:
        """Write `tokenizer.tiktoken` into `folder`, unchanged."""
        with atomic_path(folder / _FILE_NAME) as temporary:
            Path(temporary).write_bytes(self._content)


def _ranks(content: bytes, place: str) -> dict[bytes, int]:
    """Read tokens and ranks; raises `TokenizerError` for duplicates or missing bytes."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            piece, value = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(
                f"{place}, line {number}", "is not a token and a rank", _NEXT
            ) from error
        if piece in ranks:
            raise TokenizerError(f"{place}, line {number}", "repeats a token", _NEXT)
        if value >= MOST_IDS:
            raise TokenizerError(
                f"{place}, line {number}",
                f"has the rank {value}, above the limit of {MOST_IDS - 1:,}",
                _NEXT,
            )
        ranks[piece] = value
    if len(set(ranks.values())) < len(ranks) or min(ranks.values(), default=0) < 0:
        raise TokenizerError(place, "has a duplicate or negative rank", _NEXT)
    missing = [one for one in range(_NUM_BYTES) if bytes([one]) not in ranks]
    if missing:
        raise TokenizerError(
            place,
            f"lacks {len(missing)} of the 256 bytes, so some texts would lose characters",
            _NEXT,
        )
    return ranks
