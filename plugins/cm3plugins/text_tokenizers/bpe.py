"""Config of the text tokenizer `bpe`.

The tokenizer is in ``byte_level_bpe.py``, which imports HF `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError, TokenizerError
from cm3core.files import user_path
from cm3core.interfaces.reach import READS, Outside
from cm3core.interfaces.text_tokenizer import TextTokenizerConfig
from cm3plugins.text_tokenizers.byte import NUM_BYTES

if TYPE_CHECKING:
    from cm3plugins.text_tokenizers.byte_level_bpe import ByteLevelBPETokenizer


@dataclass(kw_only=True)
class BPETokenizerConfig(TextTokenizerConfig):
    """Byte-level BPE in the style of GPT-2 and CM3leon.

    CM3leon paper section 2.1: 56,320 ids, including 4 control tokens.

    Args:
        vocab_size: target number of ids when trained on the data set's captions, at least 256 (the
            bytes). Captions with too few pairs to merge give a smaller tokenizer. Ignored if `path` is
            set: the file decides.
        path: a `tokenizer.json` written by `cm3 tokenizer train-text`, or its folder; None: train on the
            captions.
        min_frequency: merge a pair of tokens only if it occurs at least this many times.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "the tokenizer's file"),
    }

    is_default: ClassVar[bool] = True
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "vocab_size": (-(2**63), 2**24),
        "min_frequency": (1, 2**31 - 1),
    }

    vocab_size: int = 8192
    path: str | None = None
    min_frequency: int = 2

    @property
    def max_vocab_size(self) -> int | None:
        """`vocab_size`. Captions may give fewer ids; a file has its own number."""
        return self.vocab_size if self.path is None else None

    def check(self) -> None:
        """Raise `RecipeError` for a size below 256 or a frequency below 1."""
        super().check()
        if self.vocab_size < NUM_BYTES:
            cause = f"is {self.vocab_size}; the {NUM_BYTES} bytes alone take {NUM_BYTES} ids"
            raise RecipeError(
                "text_tokenizer.vocab_size",
                cause,
                f"use {NUM_BYTES} or more (CM3leon: 56320), or text_tokenizer=byte",
            )

    def build(self, corpus: Iterable[str] | None = None) -> ByteLevelBPETokenizer:
        """Load `path`, or train on `corpus`.

        Training is deterministic: the same texts, in any order, give the same tokenizer.

        Raises:
            RecipeError: see `check`.
            TokenizerError: neither a path nor a corpus is given, or the file can't be used.
        """
        from cm3plugins.text_tokenizers.byte_level_bpe import FILE_NAME, ByteLevelBPETokenizer

        self.check()
        if self.path is not None:
            path = user_path(self.path)
            return ByteLevelBPETokenizer.from_file(path / FILE_NAME if path.is_dir() else path)
        if corpus is None:
            raise TokenizerError(
                "text_tokenizer",
                "has neither a file nor texts to train on",
                "set text_tokenizer.path, or use a data set",
            )
        return ByteLevelBPETokenizer.train(corpus, self.vocab_size, self.min_frequency)

    def saved_in(self, folder: Path) -> BPETokenizerConfig:
        """With the tokenizer's file in `folder`."""
        from cm3plugins.text_tokenizers.byte_level_bpe import FILE_NAME

        return replace(self, path=str(folder / FILE_NAME))
