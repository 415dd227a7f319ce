"""The extractors' kit: a right extractor passes, and each law fails for one that is wrong in just
that way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cm3core.document import PixelArray
from cm3core.errors import DataError, PluginError
from cm3core.interfaces.extractor import Extractor, ExtractorConfig, FeatureArray
from cm3kits.extractor import ExtractorContract
from kit_mutants import assert_covers, assert_law_fails, cases
from messages import tells


class Means(Extractor):
    """Right: the mean colour; of a text, its length."""

    dimension = 3
    label = "means"
    fingerprint = "means 1"
    reads_text = True

    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        return np.array([p.mean((0, 1)) for p in pictures], np.float32).reshape(-1, 3)

    def _extract_texts(self, texts: Sequence[str]) -> FeatureArray:
        return np.array([[len(text)] * 3 for text in texts], np.float32)


@dataclass(kw_only=True)
class MeansConfig(ExtractorConfig):
    def build(self) -> Means:
        return Means()


class TestRight(ExtractorContract):
    config = MeansConfig()


class Doubles(Means):
    def _checked(self, features_ND: FeatureArray, num: int, what: str) -> FeatureArray:
        return features_ND.astype(np.float64)  # type: ignore[return-value]  # what is planted


class AddsNoise(Means):
    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        features = super()._extract(pictures)
        return (features + np.random.normal(0, 9, features.shape)).astype(np.float32)  # noqa: NPY002  # what is planted


class Writes(Means):
    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        for picture in pictures:
            picture[:] //= 2
        return super()._extract(pictures)


class Centres(Means):
    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        features = super()._extract(pictures)
        return features - features.mean(0)


class SeesSizes(Means):
    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        return np.array([picture.shape for picture in pictures], np.float32)


class NewName(Means):
    @property
    def fingerprint(self) -> str:  # type: ignore[override]  # a class attribute above
        return str(np.random.random())  # noqa: NPY002  # what is planted


class BadLabel(Means):
    label = "My Means"


class LiesAboutTexts(Means):
    def extract_texts(self, texts: Sequence[str]) -> FeatureArray:
        return np.full((len(texts), 3), len(texts), np.float32)


class AtLeastOne(Means):
    def extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        return super().extract(pictures or [np.zeros((1, 1, 3), np.uint8)])


class Converts(Means):
    def extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        grey = [np.zeros((1, 1, 3), np.uint8) if p.ndim == 2 or not p.size else p for p in pictures]
        return super().extract(grey)


MUTANTS = {
    "a_batch_equals_its_pictures_one_by_one": [Centres],
    "extracting_is_deterministic": [AddsNoise, Writes],
    "features_are_finite_float32": [Doubles],
    "names_are_fixed": [NewName, BadLabel],
    "no_pictures_are_a_batch": [AtLeastOne],
    "pictures_are_told_apart": [SeesSizes],
    "texts_are_read_or_refused": [LiesAboutTexts],
    "wrong_input_is_refused": [Converts],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_extractor_fails(law: str, wrong: Any) -> None:
    assert_law_fails(ExtractorContract, law, {"make": lambda self: wrong()})


def test_every_law_has_a_mutant() -> None:
    assert_covers(ExtractorContract, MUTANTS)


class OneShort(Means):
    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        return super()._extract(pictures)[1:]


def test_what_an_extractor_returns_is_checked() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(PluginError, match=r"returned float32 \[0, 3\] for 1 pictures") as caught:
        OneShort().extract([picture])
    assert "'features_are_finite_float32'" in str(caught.value)


class NotANumber(Means):
    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        features = super()._extract(pictures)
        features[-1] = np.nan
        return features


def test_nan_names_the_picture() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(DataError) as caught:
        NotANumber().extract([picture, picture])
    assert tells(caught.value, "picture 1: its features by 'means' ... NaN")
