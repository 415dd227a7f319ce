"""Text tokenizer `byte`: one id per byte of UTF-8, no training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cm3core.errors import TokenizerError
from cm3core.files import write_text
from cm3core.interfaces.text_tokenizer import TextTokenizer, TextTokenizerConfig

NUM_BYTES = 256
MARK = "utf-8 bytes\n"
MARK_FILE = "byte.txt"


@dataclass(kw_only=True)
class ByteTokenizerConfig(TextTokenizerConfig):
    """Bytes of UTF-8. It has no keys."""

    @property
    def max_vocab_size(self) -> int:
        """256."""
        return NUM_BYTES

    def build(self, corpus: Iterable[str] | None = None) -> ByteTokenizer:
        """Return the tokenizer; `corpus` is not used."""
        return ByteTokenizer()

    def saved_in(self, folder: Path) -> ByteTokenizerConfig:
        """As it is: there are no keys."""
        return self

    def load(self, folder: Path) -> ByteTokenizer:
        """Return the tokenizer; raises `TokenizerError` if `folder` holds another one."""
        path = folder / MARK_FILE
        if not path.is_file() or path.read_text(encoding="utf-8") != MARK:
            raise TokenizerError(
                str(folder),
                "does not hold a byte tokenizer",
                "use the recipe that the folder was written with",
            )
        return ByteTokenizer()


class ByteTokenizer(TextTokenizer):
    """Ids 0..255 are the bytes themselves."""

    @property
    def vocab_size(self) -> int:
        """256."""
        return NUM_BYTES

    @property
    def fingerprint(self) -> str:
        """A constant: all byte tokenizers are equal."""
        return hashlib.sha256(MARK.encode()).hexdigest()

    def _encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def _decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Write a marker file, so that `load` recognises the folder."""
        write_text(folder / MARK_FILE, MARK)
