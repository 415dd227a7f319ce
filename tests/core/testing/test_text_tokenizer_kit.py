"""The text tokenizers' kit: each law fails for a tokenizer that is wrong in just that way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cm3core.testing.samples import SPECIAL_SPELLINGS
from cm3core.testing.text_tokenizer import TextTokenizerContract
from cm3plugins.text_tokenizers.byte import ByteTokenizer, ByteTokenizerConfig
from kit_mutants import assert_covers, assert_law_fails, cases


class LosesCase(ByteTokenizer):
    def _encode(self, text: str) -> list[int]:
        return super()._encode(text.lower())


class LosesSpaces(ByteTokenizer):
    def _decode(self, ids: Sequence[int]) -> str:
        return super()._decode(ids).strip(" ")


class KnowsASCIIOnly(ByteTokenizer):
    vocab_size = 128


class WholeNumbersAsFloats(ByteTokenizer):
    def _encode(self, text: str) -> list[int]:
        return [float(token) for token in super()._encode(text)]  # type: ignore[misc]  # wrong on purpose


class BatchesAreOther(ByteTokenizer):
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        longest = max(map(len, texts), default=0)
        return [self.encode(text.ljust(longest)) for text in texts]


class WritesSurrogates(ByteTokenizer):
    def _decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="surrogateescape")


class KnowsSpecials(ByteTokenizer):
    vocab_size = 256 + len(SPECIAL_SPELLINGS)

    def _encode(self, text: str) -> list[int]:
        for index, spelling in enumerate(SPECIAL_SPELLINGS):
            before, found, after = text.partition(spelling)
            if found:
                return [*self._encode(before), 256 + index, *self._encode(after)]
        return super()._encode(text)

    def _decode(self, ids: Sequence[int]) -> str:
        return b"".join(
            bytes([token]) if token < 256 else SPECIAL_SPELLINGS[token - 256].encode()
            for token in ids
        ).decode("utf-8", errors="replace")


class TakesAnyId(ByteTokenizer):
    def decode(self, ids: Sequence[int]) -> str:
        return self._decode([token % 256 for token in ids])


class DropsSurrogates(ByteTokenizer):
    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="ignore"))  # what the law must find


class NamedByItself(ByteTokenizer):
    @property
    def fingerprint(self) -> str:
        return str(id(self))


class Nameless(ByteTokenizer):
    fingerprint = ""


class SavesNothing(ByteTokenizer):
    def save(self, folder: Path) -> None:
        folder.mkdir()


class SavesMore(ByteTokenizer):
    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "forgotten.txt").write_text("never read")


MUTANTS = {
    "round_trip_is_lossless": [LosesCase, LosesSpaces],
    "ids_are_in_range": [KnowsASCIIOnly, WholeNumbersAsFloats, BatchesAreOther],
    "every_sequence_of_ids_is_text": [WritesSurrogates],
    "special_tokens_cant_be_injected": [KnowsSpecials],
    "ids_outside_are_refused": [TakesAnyId],
    "lone_surrogates_are_refused": [DropsSurrogates],
    "equal_makes_are_equal": [NamedByItself, Nameless],
    "saved_is_loaded": [SavesNothing, SavesMore],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_tokenizer_fails(law: str, wrong: type[ByteTokenizer]) -> None:
    assert_law_fails(
        TextTokenizerContract, law, {"config": ByteTokenizerConfig(), "make": lambda self: wrong()}
    )


def test_every_law_has_a_mutant() -> None:
    assert_covers(TextTokenizerContract, MUTANTS)
