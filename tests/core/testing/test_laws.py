"""The base of the conformance kits: every subclass gets its own tests, and they can fail."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from cm3core.testing._laws import Contract


class NumberContract(Contract[int]):
    def law_is_positive(self, data: st.DataObject) -> None:
        """Positive plus positive is positive."""
        assert self.subject + data.draw(st.integers(0, 5)) > 0

    def law_is_even(self) -> None:
        assert self.subject % 2 == 0


class TestTwo(NumberContract):
    def make(self) -> int:
        return 2


class TestFour(NumberContract):
    def make(self) -> int:
        return 4


class TestThree(NumberContract):
    def waive_is_even(self) -> str:
        return "three is odd"

    def make(self) -> int:
        return 3


def test_a_kit_itself_has_no_tests() -> None:
    assert not any(name.startswith("test_") for name in dir(NumberContract))


def test_each_subclass_has_functions_of_its_own() -> None:
    assert TestTwo.test_is_positive is not TestFour.test_is_positive
    assert TestTwo.test_is_positive.__doc__ == "Positive plus positive is positive."


def test_a_broken_implementation_fails() -> None:
    class Broken(NumberContract):
        def make(self) -> int:
            return -1

    with pytest.raises(AssertionError):
        Broken().test_is_even()
    with pytest.raises(AssertionError):
        Broken().test_is_positive()
