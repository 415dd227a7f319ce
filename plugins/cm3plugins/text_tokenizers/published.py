"""Configs of published text tokenizers: `hf`, `sentencepiece`, `tiktoken`. Light."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from cm3core.errors import RecipeError
from cm3core.files import user_path
from cm3core.interfaces.component import check_given
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3core.interfaces.text_tokenizer import TextTokenizerConfig

if TYPE_CHECKING:
    from cm3plugins.text_tokenizers.hf import HFTokenizer
    from cm3plugins.text_tokenizers.sentence_piece import SentencePieceTokenizer
    from cm3plugins.text_tokenizers.tiktoken_file import TiktokenTokenizer

#: Control tokens in the files of Chameleon, Lumina-mGPT, Emu3, Llama, Qwen and others, as regular expressions of
#: the whole token.
CONTROL = (
    r"</?s>|<pad>|<unk>|<mask>|<bos>|<eos>",
    r"\[(?:PAD|UNK|CLS|SEP|MASK)\]",
    r"<\|[^|<>]*\|>",
    r"IMGIMG[A-J]+Z",
    r"<reserved\d+>|<racm3:break>|<eoss>|<sentinel:\d+>|<image>",
)
#: Qwen's and Emu3's pattern for splitting a text before merging bytes.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(kw_only=True)
class PublishedTokenizerConfig(TextTokenizerConfig):
    """Base of the configs of tokenizers defined by a file.

    Args:
        path: the file.
        control: regular expressions of control tokens, in addition to the file's own special tokens. No text
            is ever encoded to them, even if it spells one, and decoding omits
            them.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(
            READS, "the tokenizer's file", needed="set it to your copy of the publisher's file"
        ),
        "control": TEXT,
    }

    has_named_tokens: ClassVar[bool] = True
    #: The file in the folder of `TextTokenizer.save`.
    saved_as: ClassVar[str]
    path: str | None = None
    control: list[str] = field(default_factory=lambda: list(CONTROL))

    def check(self) -> None:
        """Raise `RecipeError` for an invalid expression."""
        super().check()
        for pattern in self.control:
            try:
                re.compile(pattern)
            except re.error as error:
                raise RecipeError(
                    "text_tokenizer.control",
                    f"{pattern!r} is not a regular expression ({error})",
                    "escape its special characters with a backslash",
                ) from error

    def saved_in(self, folder: Path) -> Self:
        """With the file in `folder`."""
        return replace(self, path=str(folder / self.saved_as))

    def _file(self, published: str) -> Path:
        """Return `path`; raises `RecipeError` if it is not set."""
        self.check()
        check_given("text_tokenizer.path", self.path, f"set it to your copy of {published}")
        assert self.path is not None
        return user_path(self.path)


@dataclass(kw_only=True)
class HFTokenizerConfig(PublishedTokenizerConfig):
    """Any `tokenizer.json` of Hugging Face's `tokenizers`; Chameleon's `text_tokenizer.json` is one.

    Ids are the file's with `add_special_tokens=False`, for texts that spell no special token.
    """

    saved_as: ClassVar[str] = "tokenizer.json"

    def build(self, corpus: Iterable[str] | None = None) -> HFTokenizer:
        """Load `path`. Raises `TokenizerError` if it can't be used."""
        from cm3plugins.text_tokenizers.hf import FILE_NAME, HFTokenizer

        path = self._file("tokenizer.json")
        return HFTokenizer.from_file(path / FILE_NAME if path.is_dir() else path, self.control)


@dataclass(kw_only=True)
class SentencePieceConfig(PublishedTokenizerConfig):
    """A `.model` file of SentencePiece (extra `sentencepiece`).

    User-defined pieces count as control tokens, unless they are white space.
    """

    packages: ClassVar[Mapping[str, str]] = {
        "sentencepiece": "pip install 'cm3leon[sentencepiece]'"
    }
    saved_as: ClassVar[str] = "tokenizer.model"

    def build(self, corpus: Iterable[str] | None = None) -> SentencePieceTokenizer:
        """Load `path`. Raises `TokenizerError` if it can't be used."""
        return self._read(self._file("tokenizer.model"))

    def _read(self, path: Path) -> SentencePieceTokenizer:
        self.check_machine("cpu")
        from cm3plugins.text_tokenizers.sentence_piece import SentencePieceTokenizer

        return SentencePieceTokenizer.from_file(path, self.control)


@dataclass(kw_only=True)
class TiktokenConfig(PublishedTokenizerConfig):
    """A `.tiktoken` file of merged bytes and their ranks (extra `tiktoken`), as for Qwen and Emu3.

    Such files hold no special tokens.

    Args:
        pattern: regular expression that splits a text into pieces first; it is not in the file. The
            default is Qwen's and Emu3's.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "pattern": TEXT,
    }
    has_named_tokens: ClassVar[bool] = False
    packages: ClassVar[Mapping[str, str]] = {"tiktoken": "pip install 'cm3leon[tiktoken]'"}

    saved_as: ClassVar[str] = "tokenizer.tiktoken"
    pattern: str = QWEN_PATTERN

    def build(self, corpus: Iterable[str] | None = None) -> TiktokenTokenizer:
        """Load `path`. Raises `TokenizerError` if it can't be used."""
        return self._read(self._file("the .tiktoken file"))

    def _read(self, path: Path) -> TiktokenTokenizer:
        self.check_machine("cpu")
        from cm3plugins.text_tokenizers.tiktoken_file import TiktokenTokenizer

        return TiktokenTokenizer.from_file(path, self.pattern, self.control)
