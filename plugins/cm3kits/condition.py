"""Conformance kit of conditions.

class TestMine(ConditionContract):
    config = MyConditionConfig()
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from cm3core.boxes import text_of_boxes
from cm3core.errors import DataError
from cm3core.interfaces.condition import Condition
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import holds, refuses, same, shown
from cm3kits._module_laws import Outputs
from cm3kits.samples import example_pictures
from cm3kits.strategies import pictures

_NAMES = ("bell", "red key", "lock")
_LABELS = st.sampled_from(_NAMES)


class ConditionContract(ConfigLaws[Condition]):
    """Laws of a condition."""

    kind: ClassVar[str] = "condition"
    max_examples: ClassVar[int | None] = 15

    def build(self, config: Any) -> Condition:
        """See `ConditionConfig.build`."""
        condition: Condition = config.build()
        return condition

    def observe(self, component: Condition) -> Outputs:
        """Return structures of pictures or boxes, without and with a generator."""
        sources: list[Any] = self.sources(component)
        return {
            "structures": [component.draw(source) for source in sources],
            "structures with a generator": [
                component.draw(source, np.random.default_rng(seed))
                for seed, source in enumerate(sources)
            ],
        }

    def sources(self, component: Condition) -> list[Any]:
        """Return the sources for `observe`. Override it for texts in another format."""
        if component.draws_from == "image":
            return [*example_pictures(40), *(example_pictures(24, 36) // 2)[:2]]
        places = (10, 20, 90, 140), (100, 8, 240, 130), (0, 0, 255, 255)
        boxes = list(zip(_NAMES, places, strict=True))
        return [text_of_boxes(boxes[:count]) for count in (1, 2, 3)]

    def source(self, data: st.DataObject) -> Any:
        """Return a source of the condition: a picture, or a text of boxes. Override it for texts in another
        format."""
        if self.subject.draws_from == "image":
            return data.draw(pictures(max_side=40))
        low, high = st.integers(0, 120), st.integers(130, 255)
        box = st.tuples(_LABELS, st.tuples(low, low, high, high))
        return text_of_boxes(data.draw(st.lists(box, min_size=1, max_size=4)))

    def law_a_structure_is_a_picture_of_the_same_size(self, data: st.DataObject) -> None:
        """A structure is uint8 [height, width, 3], with the size of its picture, if it has one."""
        source = self.source(data)
        for rng in (None, np.random.default_rng(1)):
            drawn = self.subject.draw(source, rng)
            good = drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.shape[2] == 3
            expected = "uint8 [height, width, 3]"
            if not isinstance(source, str):
                good, expected = good and drawn.shape == source.shape, f"uint8 {list(source.shape)}"
            holds(good, f"drew the structure of {shown(source)}", expected, drawn)

    def law_drawing_is_deterministic(self, data: st.DataObject) -> None:
        """Equal sources and seeds give equal pictures, also from an equal condition."""
        source, seed = self.source(data), data.draw(st.integers(0, 99))
        again = source if isinstance(source, str) else source.copy()
        for make, how in (
            (lambda: None, "without a generator"),
            (lambda: np.random.default_rng(seed), "with equal generators"),
        ):
            first = self.subject.draw(source, make())
            second = self.subject.draw(again, make())
            same(second, first, f"drew {shown(source)} twice, {how}")
            other = self.make_again().draw(source, make())
            same(other, first, f"drew {shown(source)} with two conditions of one config, {how}")

    def law_the_picture_given_is_not_written_to(self, data: st.DataObject) -> None:
        """The source is unchanged, and the structure is not a view of it."""
        source = self.source(data)
        if isinstance(source, str):
            return
        before = source.copy()
        drawn = self.subject.draw(source, np.random.default_rng(0))
        same(source, before, "drew the structure of a picture, and looked at the picture given")
        holds(
            not np.shares_memory(drawn, source),
            "drew the structure of a picture",
            "a new array",
            "a view of the picture given",
            next_step="return a copy",
        )
        source.setflags(write=False)
        self.subject.draw(source)

    def law_the_fingerprint_is_fixed(self) -> None:
        """The fingerprint is a text, the same in an equal condition."""
        fingerprint = self.subject.fingerprint
        holds(
            isinstance(fingerprint, str) and fingerprint,
            "looked at its fingerprint",
            "a text",
            fingerprint,
        )
        same(self.subject.fingerprint, fingerprint, "looked at its fingerprint twice")
        again = self.make_again().fingerprint
        same(again, fingerprint, "looked at the fingerprints of two conditions of one config")

    def law_wrong_input_is_refused(self) -> None:
        """Pictures in another format and empty texts are errors, never converted."""
        wrong: list[Any] = [np.zeros(shape, np.uint8) for shape in ((4, 4), (4, 4, 1), (0, 4, 3))]
        wrong += [np.zeros((4, 4, 3), np.float32)]
        wrong += ["", " "] if self.subject.draws_from == "text" else ["a text"]
        for source in wrong:
            refuses(
                lambda source=source: self.subject.draw(source),  # type: ignore[misc]  # a default
                f"drew the structure of {shown(source)}",
                DataError,
            )
