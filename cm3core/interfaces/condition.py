"""Kind `condition`: a picture (or a text) -> a picture of its structure, used to guide generation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.component import ComponentConfig, broken
from cm3core.interfaces.reach import TEXT, Outside

if TYPE_CHECKING:
    import numpy as np

    from cm3core.document import PixelArray

#: Type of a condition's input.
SourceType = Literal["image", "text"]


@dataclass(kw_only=True)
class ConditionConfig(ComponentConfig):
    """Base of conditions' configs.

    Args:
        feature: name of the structure in a document, such as "canny edge features" (the field
            `feature` of the task that uses conditions).
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "feature": TEXT,
    }

    kind: ClassVar[str] = "condition"
    feature: str = "a structure"

    def check(self) -> None:
        """Raise `RecipeError` for invalid values."""
        super().check()
        if not self.feature.strip():
            raise RecipeError("condition.feature", "is empty", "name the structure")

    def build(self) -> Condition:
        """Return the condition."""
        raise NotImplementedError


class Condition(ABC):
    """Draws pictures of structures: edges, regions, boxes."""

    #: Input of `draw`: pixels, or a text such as "bell at (10, 12) -> (40, 44)".
    draws_from: ClassVar[SourceType] = "image"

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Determines the pictures: equal fingerprints, sources and seeds give equal pictures."""

    @abstractmethod
    def _draw(self, source: Any, rng: np.random.Generator | None) -> PixelArray:
        """Return the structure of `source`, which has been checked; see `draw`."""

    def draw(self, source: PixelArray | str, rng: np.random.Generator | None = None) -> PixelArray:
        """Return the picture of a structure, uint8 [height, width, 3].

        Args:
            source: pixels uint8 [height, width, 3], which are not modified, or a text, see
                `draws_from`. The result for pixels has their size.
            rng: varies the settings (thresholds, widths), as in training, so that a model does not
                learn a single one; None: the config's.

        Raises:
            DataError: `source` has the wrong type, or is empty.
        """
        if self.draws_from == "text":
            if not isinstance(source, str) or not source.strip():
                cause = "is empty" if isinstance(source, str) else "is not a text"
                raise DataError("condition", f"its input {cause}", "give a text")
        else:
            _check_pixels(source)
        drawn = self._draw(source, rng)
        shape: Any = getattr(drawn, "shape", ())
        wanted: Any = getattr(source, "shape", None)
        good = len(shape) == 3 and shape[2] == 3 and wanted in (None, shape)
        if not good or str(getattr(drawn, "dtype", "")) != "uint8":
            raise broken(
                self,
                "a_structure_is_a_picture_of_the_same_size",
                f"it drew {getattr(drawn, 'dtype', type(drawn).__name__)} {list(shape)}"
                + ("" if wanted is None else f" of a picture {list(wanted)}"),
            )
        return drawn


def _check_pixels(source: Any) -> None:
    shape = getattr(source, "shape", None)
    if shape is None or str(source.dtype) != "uint8" or len(shape) != 3 or shape[2] != 3:
        found = type(source).__name__ if shape is None else f"{source.dtype} {list(shape)}"
        raise DataError(
            "condition",
            f"its input is {found}, not a picture uint8 [height, width, 3]",
            "open it with cm3core.images.open_image",
        )
    if not source.size:
        raise DataError("condition", "the picture has no pixels", "give another")
