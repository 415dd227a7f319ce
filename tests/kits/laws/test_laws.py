"""The base of the conformance kits: every subclass gets its own tests, they can fail, and laws are
waived in the open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st

from cm3core.errors import PluginError, RecipeError
from cm3core.interfaces.component import ComponentConfig
from cm3kits._findings import LawBroken
from cm3kits._laws import Contract, presupposes
from messages import tells


@dataclass(kw_only=True)
class NumberConfig(ComponentConfig):
    kind: ClassVar[str] = "number"
    value: int = 2

    def check(self) -> None:
        if self.value > 1000:
            raise RecipeError("number.value", f"is {self.value}", "use 1000 or less")


@dataclass(kw_only=True)
class GivenNumberConfig(NumberConfig):
    low: int
    high: int


@dataclass(kw_only=True)
class LetterConfig(ComponentConfig):
    kind: ClassVar[str] = "letter"


class NumberContract(Contract[int]):
    kind = "number"

    def build(self, config: Any) -> int:
        return config.value

    def law_is_positive(self, data: st.DataObject) -> None:
        """Positive plus positive
        is positive.

        Always."""
        assert self.subject + data.draw(st.integers(0, 5)) > 0

    def law_is_even(self) -> None:
        assert self.subject % 2 == 0


class TestTwo(NumberContract):
    config = NumberConfig()


class TestFour(NumberContract):
    def make(self) -> int:
        return 4


class TestThree(NumberContract):
    config = NumberConfig(value=3)

    def waive_is_even(self) -> str:
        return "three is odd"


class TestFiveAsThree(TestThree):
    config = NumberConfig(value=5)


def test_a_kit_itself_has_no_tests() -> None:
    assert not any(name.startswith("test_") for name in dir(NumberContract))


def test_each_subclass_has_functions_and_a_subject_of_its_own() -> None:
    assert TestTwo.test_is_positive is not TestFour.test_is_positive
    assert TestThree.test_is_positive is not TestFiveAsThree.test_is_positive
    assert TestTwo.test_is_positive.__doc__ == NumberContract.law_is_positive.__doc__
    assert [test().subject for test in (TestTwo, TestFour, TestThree, TestFiveAsThree)] == [
        2,
        4,
        3,
        5,
    ]


def test_a_broken_implementation_fails() -> None:
    class Broken(NumberContract):
        def make(self) -> int:
            return -1

    with pytest.raises(AssertionError):
        Broken().test_is_even()
    with pytest.raises(AssertionError):
        Broken().test_is_positive()


def test_laws_are_listed() -> None:
    of_all = ["it_can_be_built", "members_fit_the_interface", "global_generators_are_left_alone"]
    assert list(NumberContract.laws()) == [*of_all, "is_even", "is_positive"]
    assert NumberContract.laws()["is_positive"] == "Positive plus positive is positive."
    assert list(Contract.laws()) == of_all


class CausesContract(Contract[int]):
    """Laws of which one says nothing where another one fails."""

    kind = "causes"

    @presupposes("is_small")
    def law_a_compound(self) -> None:
        assert self.subject < 10

    def law_is_small(self) -> None:
        assert self.subject < 100


def test_causes_come_before_compounds() -> None:
    assert list(CausesContract.laws())[3:] == ["is_small", "a_compound"]
    test = type("TestCauses", (CausesContract,), {"make": lambda self: 1000})()
    with pytest.raises(AssertionError, match="is_small"):
        test.test_is_small()
    with pytest.raises(pytest.skip.Exception, match="presupposes 'is_small', which does not hold"):
        test.test_a_compound()
    alone = type("TestAlone", (CausesContract,), {"make": lambda self: 50})()
    alone.test_is_small()
    with pytest.raises(AssertionError, match="a_compound"):
        alone.test_a_compound()


def test_what_cannot_be_built_fails_one_law() -> None:
    def make(self: object) -> int:
        raise TypeError("Small.__init__() takes 1 positional argument but 2 were given")

    test = type("TestUnbuilt", (CausesContract,), {"make": make})()
    with pytest.raises(PluginError, match="takes no value besides self, but gets 1 value"):
        test.test_it_can_be_built()
    with pytest.raises(pytest.skip.Exception, match="it_can_be_built"):
        test.test_is_small()


def test_an_error_of_a_component_is_told() -> None:
    class Raises(CausesContract):
        def make(self) -> int:
            return 1

        def law_raises(self) -> None:
            [][1]

    with pytest.raises(LawBroken, match="IndexError: list index out of range") as found:
        Raises().test_raises()  # type: ignore[attr-defined]  # made of the law
    assert isinstance(found.value.__cause__, IndexError)


def test_a_test_is_made_for_a_config() -> None:
    test = NumberContract.for_config(NumberConfig(value=8), max_examples=3)
    assert test.__name__ == "TestNumberConfig"
    assert test().subject == 8
    assert test.max_examples == 3
    test().test_is_even()
    assert NumberContract.for_config(NumberConfig)().subject == 2


def test_a_config_is_checked_before_it_is_built() -> None:
    with pytest.raises(RecipeError) as caught:
        NumberContract.for_config(NumberConfig(value=1001))().test_is_even()
    assert str(caught.value) == "number.value: is 1001\n  next: use 1000 or less"


def test_a_config_without_a_value_names_the_key() -> None:
    with pytest.raises(PluginError) as caught:
        NumberContract.for_config(GivenNumberConfig)
    assert tells(caught.value, "GivenNumberConfig.low: has neither a default nor a")


def test_a_config_of_another_kind_is_refused() -> None:
    with pytest.raises(PluginError) as caught:
        NumberContract.for_config(LetterConfig())
    assert tells(
        caught.value, "TestLetterConfig: its config LetterConfig ... 'letter' ... 'number'"
    )


def test_a_waived_law_is_a_skip_that_says_why() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^waived: three is odd$"):
        TestThree().test_is_even()
    TestThree().test_is_positive()


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        (
            "waive_is_evn",
            lambda self: "odd",
            "TestWrong.waive_is_evn: there is no ... 'is_evn'",
        ),
        (
            "waive_is_even",
            lambda self: " ",
            "TestWrong.waive_is_even: returns ' '",
        ),
        (
            "waive_is_even",
            lambda self: None,
            "TestWrong.waive_is_even: returns None, not a reason",
        ),
        (
            "test_is_even",
            None,
            "TestWrong.test_is_even: would replace the ... 'is_even'",
        ),
        (
            "test_is_even",
            lambda self: None,
            "TestWrong.test_is_even: would replace the ... 'is_even'",
        ),
    ],
)
def test_a_law_is_not_lost_in_silence(name: str, body: Any, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        type("TestWrong", (NumberContract,), {"config": NumberConfig(), name: body})
    assert tells(caught.value, message)
