"""The layouts' kit: a right layout passes, and each law fails for one that is wrong in just that way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from cm3core.interfaces.layout import Boundary, Frame, Layout, LayoutConfig, VocabularyParts
from cm3core.sequence.segments import SentinelLayout
from cm3core.vocab import Vocabulary, VocabularySizes
from cm3kits.layout import NUM_CODES, LayoutContract, NamedBytes
from cm3kits.samples import make_vocabulary
from kit_mutants import assert_covers, assert_law_fails, cases

TOKENIZER = NamedBytes(())
SPECIAL = {name: 262 + place for place, name in enumerate(("pad", "s", "e", "b", "x", "row"))}
VOCABULARY = Vocabulary(270, (range(256),), range(256, 262), SPECIAL)


class Framed(Layout):
    """Right: rows that end, turns that end."""

    name, vocabulary, fingerprint = "framed", VOCABULARY, "1"
    begin, end = (SPECIAL["s"],), (SPECIAL["e"],)

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        return () if boundary.text_hidden and not boundary.starts_document else self.end

    def frame(self, grid: tuple[int, int]) -> Frame:
        return Frame((SPECIAL["b"],), (SPECIAL["row"],), (SPECIAL["x"],))


@dataclass(kw_only=True)
class FramedConfig(LayoutConfig):
    has_sentinels: ClassVar[bool] = False

    def num_ids(self, sizes: VocabularySizes) -> int | None:
        return 270

    def picture_length(self, grid: tuple[int, int]) -> int:
        return grid[0] * (grid[1] + 1) + 2

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        return Framed()


class FramedContract(LayoutContract):
    config = FramedConfig()

    def text_tokenizer(self) -> NamedBytes:
        return TOKENIZER


class TestRight(FramedContract):
    pass


@dataclass(kw_only=True)
class SentinelConfig(LayoutConfig):
    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        return SentinelLayout(make_vocabulary(parts.sizes.num_text_ids, NUM_CODES, 8))


class TestWithSentinels(LayoutContract):
    config = SentinelConfig()


class TestCodesInAnyOrder(FramedContract):
    """Image codes may have ids in any order."""

    def build(self, config: Any) -> Layout:
        layout = Framed()
        order = [256 + (5 * code + 2) % NUM_CODES for code in range(NUM_CODES)]
        layout.vocabulary = Vocabulary(270, (range(256),), order, SPECIAL)
        return layout


class PadsBetween(Framed):
    def between(self, boundary):
        return (SPECIAL["pad"],)


class SeparatesNothing(Framed):
    def between(self, boundary):
        return ()


class SaysOtherwiseInPrompts(Framed):
    """What ends a sequence is not what ends a text in a prompt."""

    asked = 0

    @property
    def end(self):
        self.asked += 1
        return (SPECIAL["e"], SPECIAL["x"]) if self.asked % 2 else (SPECIAL["x"],)


class AnyText(Vocabulary):
    def text_ranges(self, num_text_ids):
        return (range(270),)


class DrawsPadding(Framed):
    vocabulary = AnyText(270, (range(256),), range(256, 262), SPECIAL)


class FramesWithCodes(Framed):
    def frame(self, grid):
        return Frame((256,), (), (SPECIAL["x"],))


class TellsOfHiddenTexts(Framed):
    """What is between segments depends on how often it was asked, so also on texts."""

    def __init__(self):
        self.count = 0

    def between(self, boundary):
        self.count += 1
        return (SPECIAL["e"],) * (1 + self.count % 3)


class ClaimsSentinels(Framed):
    has_sentinels = True

    def check(self, grid):
        return Frame()


class LongerThanSaid(Framed):
    def frame(self, grid):
        return Frame((SPECIAL["b"],) * 5, (SPECIAL["row"],), (SPECIAL["x"],))


class OfEachMake(Framed):
    def __init__(self):
        self.fingerprint = str(id(self))


MUTANTS: dict[str, list[Any]] = {
    "every_document_has_ids": [PadsBetween],
    "sequences_come_back": [SeparatesNothing],
    "prompts_continue_as_trained": [SaysOtherwiseInPrompts],
    "the_grammar_is_exact": [DrawsPadding],
    "ids_have_one_meaning": [FramesWithCodes],
    "hidden_texts_leave_no_trace": [TellsOfHiddenTexts],
    "holes_elsewhere_need_sentinels": [ClaimsSentinels],
    "sizes_are_known_without_building": [LongerThanSaid],
    "equal_makes_are_equal": [OfEachMake],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_layout_fails(law: str, wrong: Any) -> None:
    assert_law_fails(FramedContract, law, {"build": lambda self, config: wrong()})


def test_a_config_that_claims_sequences_fails() -> None:
    @dataclass(kw_only=True)
    class ClaimsSequences(FramedConfig):
        writes_sequences: ClassVar[bool] = True

    law = "holes_elsewhere_need_sentinels"
    assert_law_fails(FramedContract, law, {"config": ClaimsSequences()})


def test_every_law_has_a_mutant() -> None:
    assert_covers(LayoutContract, MUTANTS)
