"""Kind `extractor`: a picture (or a text) -> the features that evaluation metrics compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.component import ComponentConfig, broken, is_array, shown

FeatureArray: TypeAlias = npt.NDArray[np.float32]


@dataclass(kw_only=True)
class ExtractorConfig(ComponentConfig):
    """Base of extractors' configs."""

    kind: ClassVar[str] = "extractor"

    def build(self) -> Extractor:
        """Return the extractor with its weights loaded."""
        raise NotImplementedError


class Extractor(ABC):
    """Maps pictures to features. Unlike an embedder's vectors, they keep their length.

    A score names the extractor by its label, so that scores of different networks are not
    confused: "fid-clean", "kid-lite1". Legend: N pictures, D numbers per picture.
    """

    @property
    @abstractmethod
    def label(self) -> str:
        """The suffix of a score's name after the metric's, e.g. "clean" in "fid-clean"."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """D."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of weights and preprocessing. Features are cached under it, and scores whose
        extractors have different hashes can't be compared."""

    @property
    def reads_text(self) -> bool:
        """Whether `extract_texts` works: texts and pictures then share a space."""
        return False

    @property
    def embedder_fingerprint(self) -> str | None:
        """Fingerprint of the embedder on which it is based; None: not based on one. Pictures that were chosen by
        an embedder can't be judged by it."""
        return None

    @abstractmethod
    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        """Return features float32 [N, D] of pictures uint8 [H, W, 3], N > 0, of any sizes."""

    def _extract_texts(self, texts: Sequence[str]) -> FeatureArray:
        """Return features float32 [N, D] of texts, N > 0. Override it if `reads_text` is true."""
        raise NotImplementedError

    def extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        """Return features float32 [N, D] of pictures uint8 [H, W, 3] of any sizes.

        Equal pictures get equal features, whatever else is in the batch. Raises `DataError` for
        another shape or dtype, and for features that are NaN or infinite."""
        for place, picture in enumerate(pictures):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                found = f"{picture.dtype} {list(picture.shape)}"
                raise DataError(
                    f"picture {place}",
                    f"{found}, but an extractor takes uint8 [height, width, 3]",
                    "open it with cm3core.images.open_image",
                )
            if not picture.size:
                raise DataError(f"picture {place}", "has no pixels", "leave it out")
        if not pictures:
            return np.zeros((0, self.dimension), np.float32)
        return self._checked(self._extract(pictures), len(pictures), "picture")

    def extract_texts(self, texts: Sequence[str]) -> FeatureArray:
        """Return features float32 [N, D] of texts.

        Raises:
            DataError: the extractor reads no texts, or a feature is NaN or infinite.
        """
        if not self.reads_text:
            raise DataError(
                f"extractor {self.label!r}",
                "reads pictures only",
                "choose one that reads texts too, such as clip",
            )
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        return self._checked(self._extract_texts(texts), len(texts), "text")

    def _checked(self, features_ND: FeatureArray, num: int, what: str) -> FeatureArray:
        if not is_array(features_ND, np.float32, (num, self.dimension)):
            raise broken(
                self,
                "features_are_finite_float32",
                f"it returned {shown(features_ND)} for {num} {what}s, "
                f"not float32 {[num, self.dimension]}",
            )
        finite = np.isfinite(features_ND).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{what} {int(np.argmin(finite))}",
                f"its features by {self.label!r} contain NaN or infinity",
                "check the extractor's weights",
            )
        return features_ND
