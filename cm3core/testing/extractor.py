"""Conformance kit of extractors.

class TestMine(ExtractorContract):
    config = MyExtractorConfig()
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.extractor import Extractor
from cm3core.testing._laws import Contract
from cm3core.testing.strategies import pictures


def _pictures(max_num: int = 3) -> st.SearchStrategy[list[PixelArray]]:
    """Pictures of up to 40 pixels per side, each of a different size."""
    return st.lists(pictures(max_side=40), min_size=1, max_size=max_num)


class ExtractorContract(Contract[Extractor]):
    """Laws of an extractor."""

    kind: ClassVar[str] = "extractor"
    max_examples: ClassVar[int | None] = 10
    #: How much a picture's features may depend on the rest of the batch, relative to the largest.
    batch_tolerance: ClassVar[float] = 1e-4

    def build(self, config: Any) -> Extractor:
        """See `ExtractorConfig.build`."""
        extractor: Extractor = config.build()
        return extractor

    def law_features_are_finite_float32(self, data: st.DataObject) -> None:
        """Features are float32 [N, dimension] and finite."""
        many = data.draw(_pictures())
        features_ND = self.subject.extract(many)
        assert features_ND.dtype == np.float32
        assert features_ND.shape == (len(many), self.subject.dimension)
        assert np.isfinite(features_ND).all()

    def law_extracting_is_deterministic(self, data: st.DataObject) -> None:
        """Equal pictures get equal features, also from an equal extractor; inputs are unchanged."""
        many = data.draw(_pictures())
        before = [picture.copy() for picture in many]
        first = self.subject.extract(many)
        self._assert_close(self.subject.extract(many), first)
        self._assert_close(self.make_again().extract(many), first)
        assert all(map(np.array_equal, many, before))

    def law_a_batch_equals_its_pictures_one_by_one(self, data: st.DataObject) -> None:
        """The rest of the batch does not matter."""
        many = data.draw(_pictures())
        alone = np.concatenate([self.subject.extract([picture]) for picture in many])
        self._assert_close(self.subject.extract(many), alone)

    def law_pictures_are_told_apart(self) -> None:
        """A black and a white picture have different features."""
        black = np.zeros((32, 32, 3), np.uint8)
        one, other = self.subject.extract([black, black + 255])
        assert not np.allclose(one, other)

    def law_names_are_fixed(self) -> None:
        """Label and fingerprint are the same in an equal extractor, before and after use."""
        names = (self.subject.label, self.subject.fingerprint)
        assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", names[0]), names
        assert names[1]
        self.subject.extract([np.zeros((8, 8, 3), np.uint8)])
        assert (self.subject.label, self.subject.fingerprint) == names
        again = self.make_again()
        assert (again.label, again.fingerprint) == names

    def law_texts_are_read_or_refused(self) -> None:
        """Texts get features as pictures do, or `DataError` where `reads_text` is false."""
        texts = ["a red apple", "", "été 猫"]
        if not self.subject.reads_text:
            with pytest.raises(DataError, match="reads pictures only"):
                self.subject.extract_texts(texts)
            return
        features_ND = self.subject.extract_texts(texts)
        assert features_ND.shape == (3, self.subject.dimension)
        self._assert_close(self.subject.extract_texts(texts[:1]), features_ND[:1])

    def law_no_pictures_are_a_batch(self) -> None:
        """No pictures in, no features out."""
        assert self.subject.extract([]).shape == (0, self.subject.dimension)

    def law_wrong_input_is_refused(self) -> None:
        """Grey pictures, other types and pictures without pixels are errors, never converted."""
        wrong: list[Any] = [np.zeros(shape, np.uint8) for shape in ((4, 4), (4, 4, 1), (4, 4, 4))]
        for pixels in (*wrong, np.zeros((4, 4, 3), np.float32)):
            with pytest.raises(DataError, match="an extractor takes uint8"):
                self.subject.extract([pixels])
        with pytest.raises(DataError, match="has no pixels"):
            self.subject.extract([np.zeros((0, 4, 3), np.uint8)])

    def _assert_close(self, features_ND: Any, expected_ND: Any) -> None:
        scale = float(np.abs(expected_ND).max())
        np.testing.assert_allclose(
            features_ND, expected_ND, rtol=0, atol=self.batch_tolerance * max(scale, 1e-12)
        )
