"""The conditions' kit: right conditions pass, and each law fails for one that is wrong in just that
way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cm3core.document import PixelArray
from cm3core.errors import DataError, PluginError, RecipeError
from cm3core.interfaces.condition import Condition, ConditionConfig
from cm3kits.condition import ConditionContract
from kit_mutants import assert_covers, assert_law_fails, cases
from messages import tells


class Negative(Condition):
    """Right: the negative of a picture."""

    fingerprint = "negative 1"

    def _draw(self, source: Any, rng: np.random.Generator | None) -> PixelArray:
        return np.asarray(255 - source, np.uint8)


@dataclass(kw_only=True)
class NegativeConfig(ConditionConfig):
    def build(self) -> Negative:
        return Negative()


class TestRight(ConditionContract):
    config = NegativeConfig()


class Length(Condition):
    """Right, of a text: a row with a pixel for each letter."""

    fingerprint, draws_from = "length 1", "text"

    def _draw(self, source: Any, rng: np.random.Generator | None) -> PixelArray:
        return np.full((1, len(source), 3), 9, np.uint8)


@dataclass(kw_only=True)
class LengthConfig(ConditionConfig):
    def build(self) -> Length:
        return Length()


class TestRightOfTexts(ConditionContract):
    config = LengthConfig()


class Shrinks(Negative):
    def draw(self, source: Any, rng: Any = None) -> PixelArray:
        return super().draw(source, rng)[:1, :1]


class Grey(Negative):
    def draw(self, source: Any, rng: Any = None) -> PixelArray:
        return super().draw(source, rng)[..., :1]


class AddsNoise(Negative):
    def _draw(self, source: Any, rng: Any) -> PixelArray:
        return np.random.randint(0, 256, source.shape).astype(np.uint8)  # noqa: NPY002  # what is planted


class Counts(Negative):
    calls = 0

    def _draw(self, source: Any, rng: Any) -> PixelArray:
        self.calls += 1
        return np.full(source.shape, self.calls % 256, np.uint8)


class Writes(Negative):
    def _draw(self, source: Any, rng: Any) -> PixelArray:
        source[:] //= 2
        return super()._draw(source, rng)


class ReturnsTheSource(Negative):
    def _draw(self, source: Any, rng: Any) -> PixelArray:
        return source  # type: ignore[no-any-return]  # what is planted


class NewName(Negative):
    @property
    def fingerprint(self) -> str:  # type: ignore[override]  # a class attribute above
        return str(np.random.random())  # noqa: NPY002  # what is planted


class Converts(Negative):
    def draw(self, source: Any, rng: Any = None) -> PixelArray:
        if getattr(source, "ndim", 0) == 2:
            source = np.repeat(source[..., None], 3, axis=2)
        return super().draw(source, rng)


MUTANTS = {
    "a_structure_is_a_picture_of_the_same_size": [Shrinks, Grey],
    "drawing_is_deterministic": [AddsNoise, Counts],
    "the_fingerprint_is_fixed": [NewName],
    "the_picture_given_is_not_written_to": [Writes, ReturnsTheSource],
    "wrong_input_is_refused": [Converts],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_condition_fails(law: str, wrong: Any) -> None:
    assert_law_fails(ConditionContract, law, {"make": lambda self: wrong()})


def test_every_law_has_a_mutant() -> None:
    assert_covers(ConditionContract, MUTANTS)


class Halves(Negative):
    def _draw(self, source: Any, rng: Any) -> PixelArray:
        return super()._draw(source, rng)[::2]


def test_what_a_condition_draws_is_checked() -> None:
    with pytest.raises(PluginError, match=r"it drew uint8 \[2, 4, 3\] of a picture \[4, 4, 3\]"):
        Halves().draw(np.zeros((4, 4, 3), np.uint8))


def test_wrong_sources_by_their_messages() -> None:
    with pytest.raises(DataError) as error:
        Negative().draw(np.zeros((4, 4), np.uint8))
    assert tells(error.value, "condition: its input is ... 4 ... 4 ... 3")
    with pytest.raises(DataError, match="its input is empty"):
        Length().draw("")
    with pytest.raises(RecipeError, match="feature: is empty"):
        NegativeConfig(feature=" ").check()
