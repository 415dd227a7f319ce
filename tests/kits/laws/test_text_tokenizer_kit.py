"""The text tokenizers' kit: each law fails for a tokenizer that is wrong in just that way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from cm3kits.samples import SAMPLE_TEXTS, SPECIAL_SPELLINGS
from cm3kits.text_tokenizer import TextTokenizerContract
from cm3plugins.text_tokenizers.byte import ByteTokenizer, ByteTokenizerConfig
from kit_mutants import assert_covers, assert_law_fails, cases


class Right(ByteTokenizer):
    """The bundled tokenizer of bytes, with the corpus that it was built for."""

    def __init__(self, corpus: Sequence[str] = SAMPLE_TEXTS) -> None:
        super().__init__()
        self.corpus = corpus


class TestRight(TextTokenizerContract):
    config = ByteTokenizerConfig()

    def make(self) -> Right:
        return Right()

    def trained_on(self, corpus: Sequence[str]) -> Right:
        return Right(corpus)


class LosesCase(Right):
    def _encode(self, text: str) -> list[int]:
        return super()._encode(text.lower())


class LosesSpaces(Right):
    def _decode(self, ids: Sequence[int]) -> str:
        return super()._decode(ids).strip()


class KnowsASCIIOnly(Right):
    vocab_size = 128


class WholeNumbersAsFloats(Right):
    def _encode(self, text: str) -> list[int]:
        return [float(token) for token in super()._encode(text)]  # type: ignore[misc]  # wrong on purpose


class BatchesAreOther(Right):
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        longest = max(map(len, texts), default=0)
        return [self.encode(text.ljust(longest)) for text in texts]


class WritesSurrogates(Right):
    def _decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="surrogateescape")


class KnowsSpecials(Right):
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


class TakesAnyId(Right):
    def decode(self, ids: Sequence[int]) -> str:
        return self._decode([token % 256 for token in ids])


class DropsSurrogates(Right):
    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="ignore"))  # what the law must find


class NamedByItself(Right):
    @property
    def fingerprint(self) -> str:
        return str(id(self))


class Nameless(Right):
    fingerprint = ""


class TrainedButNamedByKind(Right):
    """Its ids depend on the corpus, its fingerprint does not."""

    def _encode(self, text: str) -> list[int]:
        return [(token + len(self.corpus)) % 256 for token in super()._encode(text)]


class EmptiesTheBatch(Right):
    def encode_batch(self, texts: list[str]) -> list[list[int]]:  # type: ignore[override]  # wrong on purpose
        return [self.encode(texts.pop(0)) for _ in range(len(texts))]


class ReversesIds(Right):
    def _decode(self, ids: list[int]) -> str:  # type: ignore[override]  # wrong on purpose
        text = super()._decode(ids)
        ids.reverse()
        return text


class ReadsTheGlobalGenerator(Right):
    """A subword of several, drawn by the state of `random`, which is not advanced."""

    def _encode(self, text: str) -> list[int]:
        return [token ^ (random.getstate()[1][1] & 1) for token in super()._encode(text)]


class SavesNothing(Right):
    def save(self, folder: Path) -> None:
        """Leave the folder as it is."""


class SavesMore(Right):
    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "forgotten.txt").write_text("never read")


class HasLettersAsSpecials(Right):
    def special_ids(self) -> dict[str, int]:
        return {"e": ord("e")}


class HasSpecialsOutside(Right):
    def special_ids(self) -> dict[str, int]:
        return {"<s>": 256}


MUTANTS = {
    "round_trip_is_lossless": [LosesCase, LosesSpaces],
    "ids_are_in_range": [
        KnowsASCIIOnly,
        WholeNumbersAsFloats,
        BatchesAreOther,
        ReadsTheGlobalGenerator,
    ],
    "every_sequence_of_ids_is_text": [WritesSurrogates],
    "special_tokens_cant_be_injected": [KnowsSpecials],
    "special_ids_are_no_text": [HasLettersAsSpecials, HasSpecialsOutside],
    "ids_outside_are_refused": [TakesAnyId],
    "lone_surrogates_are_refused": [DropsSurrogates],
    "equal_makes_are_equal": [NamedByItself, Nameless],
    "different_ids_have_different_fingerprints": [TrainedButNamedByKind],
    "inputs_are_not_written_to": [EmptiesTheBatch, ReversesIds],
    "saved_is_loaded": [SavesNothing, SavesMore],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_tokenizer_fails(law: str, wrong: type[Right]) -> None:
    assert_law_fails(
        TextTokenizerContract,
        law,
        {
            "config": ByteTokenizerConfig(),
            "make": lambda self: wrong(),
            "trained_on": lambda self, corpus: wrong(corpus),
        },
    )


def test_every_law_has_a_mutant() -> None:
    assert_covers(TextTokenizerContract, MUTANTS)
