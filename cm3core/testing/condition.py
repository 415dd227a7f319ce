"""Conformance kit of conditions.

class TestMine(ConditionContract):
    config = MyConditionConfig()
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.boxes import text_of_boxes
from cm3core.errors import DataError
from cm3core.interfaces.condition import Condition
from cm3core.testing._laws import Contract
from cm3core.testing.strategies import pictures

_LABELS = st.sampled_from(["bell", "red key", "lock"])


class ConditionContract(Contract[Condition]):
    """Laws of a condition."""

    kind: ClassVar[str] = "condition"
    max_examples: ClassVar[int | None] = 15

    def build(self, config: Any) -> Condition:
        """See `ConditionConfig.build`."""
        condition: Condition = config.build()
        return condition

    def source(self, data: st.DataObject) -> Any:
        """What the condition is drawn from: a picture, or a text of boxes. Override it for texts of
        another form."""
        if self.subject.draws_from == "image":
            return data.draw(pictures(max_side=40))
        low, high = st.integers(0, 120), st.integers(130, 255)
        box = st.tuples(_LABELS, st.tuples(low, low, high, high))
        return text_of_boxes(data.draw(st.lists(box, min_size=1, max_size=4)))

    def law_a_structure_is_a_picture_of_the_same_size(self, data: st.DataObject) -> None:
        """It is uint8 [height, width, 3]; of a picture, as large as that."""
        source = self.source(data)
        for rng in (None, np.random.default_rng(1)):
            drawn = self.subject.draw(source, rng)
            assert drawn.dtype == np.uint8
            assert drawn.ndim == 3
            assert drawn.shape[2] == 3
            if not isinstance(source, str):
                assert drawn.shape == source.shape

    def law_drawing_is_deterministic(self, data: st.DataObject) -> None:
        """Equal sources and seeds give equal pictures, also from an equal condition."""
        source, seed = self.source(data), data.draw(st.integers(0, 99))
        again = source if isinstance(source, str) else source.copy()
        for make in (lambda: None, lambda: np.random.default_rng(seed)):
            first = self.subject.draw(source, make())
            assert np.array_equal(self.subject.draw(again, make()), first)
            assert np.array_equal(self.make_again().draw(source, make()), first)

    def law_the_picture_given_is_not_written_to(self, data: st.DataObject) -> None:
        """The source is what it was, and what is drawn is no part of it."""
        source = self.source(data)
        if isinstance(source, str):
            return
        before = source.copy()
        drawn = self.subject.draw(source, np.random.default_rng(0))
        assert np.array_equal(source, before)
        assert not np.shares_memory(drawn, source)
        source.setflags(write=False)
        self.subject.draw(source)

    def law_the_fingerprint_is_fixed(self) -> None:
        """It is a text, the same in an equal condition."""
        fingerprint = self.subject.fingerprint
        assert isinstance(fingerprint, str)
        assert fingerprint
        assert self.subject.fingerprint == fingerprint
        assert self.make_again().fingerprint == fingerprint

    def law_wrong_input_is_refused(self) -> None:
        """Pictures of another form and empty texts are errors, never converted."""
        wrong: list[Any] = [np.zeros(shape, np.uint8) for shape in ((4, 4), (4, 4, 1), (0, 4, 3))]
        wrong += [np.zeros((4, 4, 3), np.float32)]
        wrong += ["", " "] if self.subject.draws_from == "text" else ["a text"]
        for source in wrong:
            with pytest.raises(DataError):
                self.subject.draw(source)
