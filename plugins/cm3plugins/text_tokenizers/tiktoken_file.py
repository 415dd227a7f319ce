"""`TiktokenTokenizer`: a `.tiktoken` file, a line for each token: its bytes in base64, and its rank."""

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
_NEXT = "give a .tiktoken file: lines of base64, a space and a rank"
_NUM_BYTES = 256
#: What every pattern must cut into pieces.
_PROBE = "A b-1,\n\t é"


class TiktokenTokenizer(TextTokenizer):
    """A byte-level BPE as tiktoken keeps it.

    Args:
        content: bytes of a `.tiktoken` file.
        place: where it comes from, for error messages.
        pattern: regular expression of the pieces that a text is split into.
        control: regular expressions of tokens that are no text.
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
                f"is no regular expression of tiktoken's ({str(error)[:200]})",
                "correct it, or leave it out for that of Qwen and Emu3",
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
        """The ids of a text, control tokens included.

        Raises:
            TokenizerError: the pattern finds pieces that are empty, or leaves letters out.
        """
        lost = f"does not cut a text like {text[:20]!r} into pieces: letters would be lost"
        wrong = TokenizerError(
            "text_tokenizer.pattern", lost, "correct it, or leave it out for that of Qwen and Emu3"
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
        # tokens are bytes: a control token is characters, so its ends are those of characters
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
        """Write `tokenizer.tiktoken` into `folder`, as it was given."""
        with atomic_path(folder / _FILE_NAME) as temporary:
            Path(temporary).write_bytes(self._content)


def _ranks(content: bytes, place: str) -> dict[bytes, int]:
    """Tokens and ranks; raises `TokenizerError` unless each is there once, all bytes among them."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            piece, value = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(
                f"{place}, line {number}", "is no token and rank", _NEXT
            ) from error
        if piece in ranks:
            raise TokenizerError(f"{place}, line {number}", "is of a token that has a line", _NEXT)
        if value >= MOST_IDS:
            raise TokenizerError(
                f"{place}, line {number}", f"has the rank {value}, at most {MOST_IDS - 1:,}", _NEXT
            )
        ranks[piece] = value
    if len(set(ranks.values())) < len(ranks) or min(ranks.values(), default=0) < 0:
        raise TokenizerError(place, "gives two tokens one rank, or one below 0", _NEXT)
    missing = [one for one in range(_NUM_BYTES) if bytes([one]) not in ranks]
    if missing:
        raise TokenizerError(
            place, f"lacks {len(missing)} of the 256 bytes, so some texts would lose letters", _NEXT
        )
    return ranks
