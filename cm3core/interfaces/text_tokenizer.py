"""Kind `text_tokenizer`: text <-> ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cm3core.errors import TokenizerError
from cm3core.interfaces.component import ComponentConfig


@dataclass(kw_only=True)
class TextTokenizerConfig(ComponentConfig):
    """Base of text tokenizers' configs."""

    kind: ClassVar[str] = "text_tokenizer"

    def build(self, corpus: Iterable[str] | None = None) -> TextTokenizer:
        """Return the tokenizer. `corpus` yields the training captions, for tokenizers that are
        trained on them when the recipe names no file; it is None when a trained one is loaded from
        a checkpoint (see `load`)."""
        raise NotImplementedError

    def load(self, folder: Path) -> TextTokenizer:
        """Return the tokenizer that `TextTokenizer.save` wrote into `folder` (a checkpoint's)."""
        raise NotImplementedError


class TextTokenizer(ABC):
    """Text <-> ids 0..vocab_size-1. Lossless: `decode(encode(t)) == t` for every valid string.

    Ids here are the tokenizer's own; `Vocabulary.text` places them in the model's table. No special
    token is among them: a text that spells one ("<break>") is encoded as plain text, and can never
    inject one.
    """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that decides the ids; stored with checkpoints, a mismatch is
        refused."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of `text`."""

    @abstractmethod
    def _decode(self, ids: Sequence[int]) -> str:
        """Text of valid `ids`; bytes that are no UTF-8 become U+FFFD."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `TextTokenizerConfig.load` needs into `folder`."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, each in 0..vocab_size-1. Raises `TokenizerError` for what is not a valid
        Unicode string."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                "text",
                f"is not valid Unicode ({error.reason} at {error.start})",
                "remove the lone surrogate",
            ) from error
        return self._encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. Raises `TokenizerError` for an id outside 0..vocab_size-1."""
        for place, token in enumerate(ids):
            if not 0 <= token < self.vocab_size:
                raise TokenizerError(
                    f"ids[{place}]",
                    f"{token} is not a text id (0..{self.vocab_size - 1})",
                    "decode only the text range of the vocabulary",
                )
        return self._decode(ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]
