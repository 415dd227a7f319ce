"""Conformance kit of extractors.

class TestMine(ExtractorContract):
    config = MyExtractorConfig()
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.extractor import Extractor
from cm3kits._config_laws import ConfigLaws, of_small_batches
from cm3kits._findings import every, holds, refuses, same
from cm3kits._module_laws import Outputs
from cm3kits.samples import SAMPLE_TEXTS, example_pictures
from cm3kits.strategies import pictures


def _pictures(max_num: int = 3) -> st.SearchStrategy[list[PixelArray]]:
    """Draw pictures of up to 40 pixels per side, each with another size."""
    return st.lists(pictures(max_side=40), min_size=1, max_size=max_num)


class ExtractorContract(ConfigLaws[Extractor]):
    """Laws of an extractor."""

    kind: ClassVar[str] = "extractor"
    max_examples: ClassVar[int | None] = 10
    #: Tolerance of features computed in different batches, relative to the largest feature.
    batch_tolerance: ClassVar[float] = 1e-4

    def build(self, config: Any) -> Extractor:
        """See `ExtractorConfig.build`."""
        extractor: Extractor = config.build()
        return extractor

    def observe(self, component: Extractor) -> Outputs:
        """Return features of pictures, and of texts if supported."""
        found: Outputs = {"features": component.extract(list(example_pictures(32)[:4]))}
        if component.reads_text:
            found["features of texts"] = component.extract_texts(SAMPLE_TEXTS)
        return found

    def law_features_are_finite_float32(self, data: st.DataObject) -> None:
        """Features are float32 [N, dimension] and finite."""
        many = data.draw(_pictures())
        features_ND, dimension = self.subject.extract(many), self.subject.dimension
        did = f"extracted features of {len(many)} pictures"
        holds(
            features_ND.dtype == np.float32 and features_ND.shape == (len(many), dimension),
            did,
            f"float32 [{len(many)}, {dimension}]",
            features_ND,
        )
        every(features_ND, np.isfinite(features_ND), did, "finite numbers")

    def law_extracting_is_deterministic(self, data: st.DataObject) -> None:
        """Equal pictures get equal features, also from an equal extractor; inputs are unchanged."""
        many = data.draw(_pictures())
        before = [picture.copy() for picture in many]
        first = self.subject.extract(many)
        self._same(self.subject.extract(many), first, "extracted features of pictures twice")
        again = self.make_again().extract(many)
        self._same(again, first, "extracted features with two extractors of one config")
        same(many, before, "extracted features, and looked at the pictures given")

    def law_a_batch_equals_its_pictures_one_by_one(self, data: st.DataObject) -> None:
        """A picture's features do not depend on the rest of the batch."""
        many = data.draw(_pictures())
        alone = np.concatenate([self.subject.extract([picture]) for picture in many])
        did = f"extracted features of {len(many)} pictures together, and one by one"
        self._same(self.subject.extract(many), alone, did)

    def law_any_number_of_pictures_is_a_batch(self) -> None:
        """With a key `batch_size`, one picture less than a batch has, a batch, and one more have the features that they
        have alone."""
        component, size = of_small_batches(self), 3
        pictures = [*example_pictures(32), *example_pictures(24)]
        for count in (size - 1, size, size + 1, 2 * size):
            did = f"extracted features of {count} pictures with a batch_size of {size}, and one by one"
            own = pictures[:count]
            alone = np.concatenate([component.extract([one]) for one in own])
            self._same(component.extract(own), alone, did)

    def law_the_embedder_is_named(self) -> None:
        """`embedder_fingerprint` is a text, or None."""
        name = self.subject.embedder_fingerprint
        holds(
            name is None or (isinstance(name, str) and name),
            "looked at embedder_fingerprint",
            "a text, or None",
            name,
        )

    def law_pictures_are_told_apart(self) -> None:
        """A black and a white picture have different features."""
        black = np.zeros((32, 32, 3), np.uint8)
        one, other = self.subject.extract([black, black + 255])
        holds(
            not np.allclose(one, other),
            "extracted features of a black and of a white picture",
            "different features",
            "the same features",
        )

    def law_names_are_fixed(self) -> None:
        """Label and fingerprint are the same in an equal extractor, before and after use."""
        names = [self.subject.label, self.subject.fingerprint]
        holds(
            re.fullmatch(r"[a-z0-9][a-z0-9_-]*", names[0]),
            "looked at its label",
            "lower-case letters, digits, '_' and '-'",
            names[0],
        )
        holds(names[1], "looked at its fingerprint", "a text", names[1])
        self.subject.extract([np.zeros((8, 8, 3), np.uint8)])
        now = [self.subject.label, self.subject.fingerprint]
        same(now, names, "looked at label and fingerprint before and after use")
        again = self.make_again()
        same(
            [again.label, again.fingerprint],
            names,
            "looked at label and fingerprint of two extractors of one config",
        )

    def law_texts_are_read_or_refused(self) -> None:
        """Texts get features like pictures, or raise `DataError` if `reads_text` is false."""
        some = ["a red apple", "", "été 猫"]
        if not self.subject.reads_text:
            refuses(
                lambda: self.subject.extract_texts(some),
                "extracted features of texts, though reads_text is False",
                DataError,
                match="reads pictures only",
            )
            return
        features_ND = self.subject.extract_texts(some)
        shape = [3, self.subject.dimension]
        same(list(features_ND.shape), shape, "extracted features of 3 texts")
        alone = self.subject.extract_texts(some[:1])
        self._same(alone, features_ND[:1], "extracted features of a text alone, and among 3")

    def law_no_pictures_are_a_batch(self) -> None:
        """No pictures give no features."""
        shape = list(self.subject.extract([]).shape)
        same(shape, [0, self.subject.dimension], "extracted features of no pictures")

    def law_wrong_input_is_refused(self) -> None:
        """Grey pictures, other dtypes and empty pictures are errors, never converted."""
        wrong: list[Any] = [np.zeros(shape, np.uint8) for shape in ((4, 4), (4, 4, 1), (4, 4, 4))]
        wrong += [np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
        for pixels in wrong:
            refuses(
                lambda pixels=pixels: self.subject.extract([pixels]),  # type: ignore[misc]  # a default
                f"extracted features of {pixels.dtype} {list(pixels.shape)}",
                DataError,
                match="an extractor takes uint8" if pixels.size else "has no pixels",
            )

    def _same(self, features_ND: Any, expected_ND: Any, did: str) -> None:
        scale = max(float(np.abs(expected_ND).max(initial=0)), 1e-12)
        same(features_ND / scale, expected_ND / scale, did, tolerance=self.batch_tolerance)
