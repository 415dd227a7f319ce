"""Kind `text_tokenizer`: text <-> ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from cm3core.errors import TokenizerError
from cm3core.interfaces.component import ComponentConfig, broken, shown


@dataclass(kw_only=True)
class TextTokenizerConfig(ComponentConfig):
    """Base of text tokenizers' configs."""

    kind: ClassVar[str] = "text_tokenizer"

    #: Whether it has tokens besides those of texts, found by their names (`TextTokenizer.special_ids`).
    has_named_tokens: ClassVar[bool] = False
    #: Whether every text has ids. False for tokenizers of classes.
    reads_words: ClassVar[bool] = True

    def offers(self) -> Mapping[str, bool]:
        """Named tokens, and words."""
        return {"named_tokens": self.has_named_tokens, "words": self.reads_words}

    @property
    def max_vocab_size(self) -> int | None:
        """Maximum number of ids, available before building; None: unknown."""
        return None

    def build(self, corpus: Iterable[str] | None = None) -> TextTokenizer:
        """Return the tokenizer.

        `corpus` yields the training captions, for tokenizers that are trained on them if the recipe
        names no file. It is None if a trained tokenizer is loaded from a checkpoint (see
        `load`)."""
        raise NotImplementedError

    def saved_in(self, folder: Path) -> Self | None:
        """Return this config with its keys naming the files that `TextTokenizer.save` wrote into `folder`, so that `build`
        returns that tokenizer: a recipe can then take it out of a model (`text_tokenizer=runs/mine`).

        Default: None, no keys can say so."""
        return None

    def load(self, folder: Path) -> TextTokenizer:
        """Return the tokenizer that `TextTokenizer.save` wrote into `folder` (a checkpoint's).

        Default: build `saved_in`. Override one of the two."""
        config = self.saved_in(folder)
        if config is None:
            raise NotImplementedError
        return config.build()


class TextTokenizer(ABC):
    """Text <-> ids 0..vocab_size-1. Lossless: `decode(encode(t)) == t` for every valid string.

    Ids here are the tokenizer's own; `Vocabulary.text` maps them into the model's table. They
    include no special token: a text that spells one ("<break>") is encoded as plain text, and can
    never inject one.
    """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that determines the ids, stored with checkpoints.

        Data with another fingerprint is refused."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""

    @abstractmethod
    def _decode(self, ids: Sequence[int]) -> str:
        """Return the text of valid `ids`; bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files that `TextTokenizerConfig.load` needs into the existing `folder`."""

    def special_ids(self) -> Mapping[str, int]:
        """Non-text tokens by name: ids within 0..vocab_size-1 that `encode` never returns.

        Layouts of published models find the tokens around pictures and turns among them. None by
        default."""
        return {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, each in 0..vocab_size-1.

        Raises `TokenizerError` for a string that is not valid Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                "text",
                f"is not valid Unicode ({error.reason} at {error.start})",
                "remove the unpaired surrogate",
            ) from error
        ids = self._encode(text)
        if not isinstance(ids, list) or (ids and not 0 <= min(ids) <= max(ids) < self.vocab_size):
            given = f"ids {min(ids)}..{max(ids)}" if isinstance(ids, list) else shown(ids)
            raise broken(
                self,
                "ids_are_in_range",
                f"it returned {given}, not a list of ids 0..{self.vocab_size - 1}",
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`. Raises `TokenizerError` for an id outside 0..vocab_size-1."""
        for place, token in enumerate(ids):
            if not 0 <= token < self.vocab_size:
                raise TokenizerError(
                    f"ids[{place}]",
                    f"{token} is not a text id (0..{self.vocab_size - 1})",
                    "decode only the text range of the vocabulary",
                )
        return self._decode(ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return `encode` of each text."""
        return [self.encode(text) for text in texts]
