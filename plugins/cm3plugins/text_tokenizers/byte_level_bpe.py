"""Byte-level BPE on HF `tokenizers`: training, loading, and checks.

The checks ensure that it is lossless and free of special tokens. Ids 0..255 are the bytes (in the order of
GPT-2's byte symbols), followed by the merges in the order learned. Nothing is normalised, no space is
prepended, and no token is special, so every valid string round-trips and a text can't spell a
control token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cm3core.errors import TokenizerError
from cm3core.files import read_text, write_text
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3run.faults import panics_as_errors

#: File written by `save`.
FILE_NAME = "tokenizer.json"
NEXT_STEP = "train one with 'cm3 tokenizer train-text'"

#: Keys of a tokenizer.json -> values for which decode(encode(text)) == text holds for every text,
#: and the ids depend only on the text.
LOSSLESS: Mapping[str, tuple[Any, ...]] = {
    "normalizer": (None,),
    "truncation": (None,),
    "padding": (None,),
    "added_tokens": ([],),
    "model.type": ("BPE",),
    "model.dropout": (None, 0.0),
    "model.continuing_subword_prefix": (None, ""),
    "model.end_of_word_suffix": (None, ""),
    "model.byte_fallback": (None, False),
    "pre_tokenizer.type": ("ByteLevel",),
    "pre_tokenizer.add_prefix_space": (False,),
    "decoder.type": ("ByteLevel",),
    "post_processor": (None,),
}


class ByteLevelBPETokenizer(TextTokenizer):
    """A trained byte-level BPE.

    Args:
        content: text of a `tokenizer.json`.
        place: its origin, for error messages.

    Raises:
        TokenizerError: it is not a byte-level BPE, changes texts, or has special tokens.
    """

    def __init__(self, content: str, place: str) -> None:
        check_content(content, place)
        try:
            with panics_as_errors():
                self._tokenizer = Tokenizer.from_str(content)
        except Exception as error:
            # the Rust library raises plain Exception for anything it can't read
            raise TokenizerError(place, f"can't be read: {error}", NEXT_STEP) from error
        self._vocab_size: int = self._tokenizer.get_vocab_size()
        self._fingerprint = hashlib.sha256(self.content.encode()).hexdigest()

    @classmethod
    def train(
        cls, corpus: Iterable[str], vocab_size: int, min_frequency: int = 2
    ) -> ByteLevelBPETokenizer:
        """Learn merges from `corpus`.

        Stops at `vocab_size` ids, or when no pair occurs `min_frequency` times.

        Raises:
            TokenizerError: a text is not valid Unicode.
        """
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(_valid(corpus), trainer)
        return cls(tokenizer.to_str(), "the trained tokenizer")

    @classmethod
    def from_file(cls, path: Path) -> ByteLevelBPETokenizer:
        """Read a `tokenizer.json`."""
        try:
            content = read_text(path)
        except FileNotFoundError as error:
            raise TokenizerError(
                str(path), "there is no such file", f"correct text_tokenizer.path, or {NEXT_STEP}"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(str(path), f"can't be read: {error}", NEXT_STEP) from error
        return cls(content, str(path))

    @property
    def vocab_size(self) -> int:
        """Number of ids: 256 bytes and the merges."""
        return self._vocab_size

    @property
    def fingerprint(self) -> str:
        """Hash of the whole tokenizer.json in its canonical form."""
        return self._fingerprint

    @property
    def content(self) -> str:
        """The tokenizer.json in canonical form: formatting and the order of keys don't matter."""
        return json.dumps(json.loads(self._tokenizer.to_str()), ensure_ascii=False, indent=1) + "\n"

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)
        return text

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` into `folder`."""
        write_text(folder / FILE_NAME, self.content)


def check_content(content: str, place: str) -> None:
    """Raise `TokenizerError` unless `content` is lossless and has no special tokens."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(place, f"is not JSON: {error}", NEXT_STEP) from error
    for key, allowed in LOSSLESS.items():
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value not in allowed:
            shown = json.dumps(value, ensure_ascii=False)
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            cause = (
                f"its {key} is {shown}; a lossless byte-level BPE needs {json.dumps(allowed[0])}"
            )
            raise TokenizerError(place, cause, NEXT_STEP)
    vocabulary = values["model"].get("vocab")
    if (
        not isinstance(vocabulary, dict)
        or any(type(number) is not int for number in vocabulary.values())
        or set(vocabulary.values()) != set(range(len(vocabulary)))
    ):
        raise TokenizerError(
            place, "its model.vocab does not number its tokens 0, 1, 2, ...", NEXT_STEP
        )
    if missing := [
        symbol for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()) if symbol not in vocabulary
    ]:
        raise TokenizerError(
            place,
            f"its model.vocab lacks {len(missing)} of the 256 bytes, so some texts would lose "
            "characters",
            NEXT_STEP,
        )


def _valid(corpus: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(corpus):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"text {number} of the corpus",
                f"is not valid Unicode ({error.reason} at {error.start})",
                "remove the lone surrogate",
            ) from error
        yield text
