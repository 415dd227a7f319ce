"""Arguments are checked against annotations: what passes, and what is said of what doesn't."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core import arguments
from cm3core.arguments import (
    Called,
    Count,
    CountOrZero,
    Matching,
    Name,
    Range,
    Shape,
    Without,
    check_value,
    checked,
    misfit,
    shown,
)
from cm3core.errors import CM3Error, DataError, GenerationError
from messages import tells

if TYPE_CHECKING:
    from fractions import Fraction

Pixels = Annotated[npt.NDArray[np.uint8], Shape((None, None, 3)), Called("RGB pixels")]


@dataclass(frozen=True)
class Part:
    size: int
    codes: npt.NDArray[np.int32] | None = None


@checked(GenerationError)
def draw(
    prompt: str | Sequence[str],
    number: Count | None = None,
    *more: int,
    box: tuple[int, int] | Sequence[tuple[int, int]] = (),
    picture: Pixels | str | Path | None = None,
    scale: float = 1.0,
    whole: bool = False,
    order: Literal["up", "down"] = "up",
    called: Callable[[int], None] | None = None,
    sampler: Name | None = None,
    ids: Collection[str] = (),
    keys: Mapping[str, int] = {},
    part: Part | None = None,
    share: Annotated[float, Range(0, 1)] = 0,
    ratio: Fraction | None = None,
    rest: Iterable[int] = (),
    **options: Any,
) -> str:
    """Of every form."""
    return "drawn"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": 5}, "prompt: is 5, must be a text or a list of texts"),
        ({"prompt": b"red"}, "prompt: is b'red', must be a text or a list of texts"),
        ({"prompt": ["red", 5]}, "prompt[1]: is 5, must be a text"),
        ({"number": "2"}, "number: is '2', must be a whole number or None"),
        ({"number": True}, "number: is True, must be a whole number or None"),
        ({"number": 2.0}, "number: is 2.0, must be a whole number or None"),
        ({"box": (0, 1.5)}, "box[1]: is 1.5, must be a whole number"),
        ({"box": [(0, 1), (2, "x")]}, "box[1][1]: is 'x', must be a whole number"),
        ({"box": 4}, "box: is 4, must be 2 whole numbers or a list"),
        (
            {"picture": np.zeros((4, 4), np.uint8)},
            "picture: is uint8 [4, 4], must be RGB pixels, a path or None",
        ),
        (
            {"picture": np.zeros((0, 4, 3), np.uint8)},
            "picture: is uint8 [0, 4, 3], must be RGB pixels, a path or None",
        ),
        ({"picture": 7}, "picture: is 7, must be RGB pixels, a path or None"),
        ({"scale": "1"}, "scale: is '1', must be a number"),
        ({"scale": 1j}, "scale: is 1j, must be a number"),
        ({"whole": 1}, "whole: is 1, must be True or False"),
        ({"called": 3}, "called: is 3, must be a function or None"),
        ({"sampler": 3}, "sampler: is 3, must be a name or None"),
        ({"ids": "ab"}, "ids: is 'ab', must be a list of texts"),
        ({"keys": {"a": "b"}}, "keys['a']: is 'b', must be a whole number"),
        ({"part": Part("x")}, "part.size: is 'x', must be a whole number"),  # type: ignore[arg-type]  # the test
        (
            {"part": Part(1, np.zeros(2))},
            "part.codes: is float64 [2], must be an array of whole numbers or None",
        ),
        ({"ratio": 0.5}, "ratio: is 0.5, must be a Fraction or None"),
        ({"rest": 5}, "rest: is 5, must be a list of whole numbers"),
    ],
)
def test_a_wrong_argument_is_named_with_what_it_must_be(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(GenerationError) as caught:
        draw(**{"prompt": "red", **given})
    assert str(caught.value) == f"{message}\n  next: correct the value"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"number": 0}, "number: is 0\n  next: use 1 or more"),
        ({"share": float("nan")}, "share: is nan\n  next: use 0 to 1"),
        ({"share": -0.5}, "share: is -0.5\n  next: use 0 to 1"),
        ({"order": "left"}, "order: is 'left'\n  next: use one of up, down"),
        ({"picture": "a\0b"}, "picture: is 'a\\x00b', not a path\n  next: correct the path"),
        ({"picture": ""}, "picture: is '', not a path\n  next: correct the path"),
        (
            {"picture": Path("x" * 300)},
            f"{'x' * 300}: can't be used (File name too",
        ),
    ],
)
def test_a_value_out_of_its_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerationError) as caught:
        draw(**{"prompt": "red", **given})
    assert tells(caught.value, message)


def test_what_fits_passes() -> None:
    from fractions import Fraction

    assert draw(["red", "blue"], np.int64(2), 3, 4, box=[0, np.int32(1)], scale=np.float32(2)) == (  # type: ignore[arg-type]  # numpy's numbers
        "drawn"
    )
    assert draw("red", box=np.array([[0, 1], [2, 3]]), picture=np.zeros((4, 4, 3), np.uint8)) == (  # type: ignore[arg-type]  # rows of an array
        "drawn"
    )
    assert draw("red", picture="a.png", whole=np.True_, called=print, ids={"a"}, keys={"a": 1}) == (  # type: ignore[arg-type]  # numpy's
        "drawn"
    )
    assert draw(
        "red", part=Part(1, np.zeros(2, np.int64)), ratio=Fraction(1), anything=object()
    ) == (  # type: ignore[arg-type]  # larger whole numbers
        "drawn"
    )


def test_an_iterator_is_not_consumed() -> None:
    @checked(DataError)
    def first(rest: Iterable[int]) -> Iterator[int]:
        return iter(rest)

    assert next(first(iter([7, 8]))) == 7


def test_python_says_itself_what_is_missing_or_unknown() -> None:
    @checked(DataError)
    def one(first: int) -> None: ...

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'first'"):
        one()  # type: ignore[call-arg]  # the test
    with pytest.raises(TypeError, match="unexpected keyword argument 'second'"):
        one(1, second=2)  # type: ignore[call-arg]  # the test


def test_generators_and_methods_are_checked_at_the_call() -> None:
    class Thing:
        @checked(DataError)
        def grow(self, size: Count) -> Iterator[int]:
            yield size

        @classmethod
        @checked(DataError)
        def of(cls, size: int) -> int:
            return size

    with pytest.raises(DataError, match="size: is 0"):
        Thing().grow(0)
    with pytest.raises(DataError, match="size: is 'x', must be a whole number"):
        Thing.of("x")  # type: ignore[arg-type]  # the test
    assert list(Thing().grow(size=2)) == [2]
    assert Thing.of(3) == 3


def test_a_long_or_strange_value_is_shown_short() -> None:
    class Silent:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown("x" * 10**6) == "'" + "x" * 59 + "..."
    assert shown(10**400) == "a number of very many digits"
    assert shown(object()) == "a object"
    assert shown(Silent()) == "a Silent"
    assert shown(np.zeros((2, 3), np.float32)) == "float32 [2, 3]"


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(value=ANYTHING)
def test_whatever_is_given_passes_or_is_refused_with_place_cause_and_next_step(value: Any) -> None:
    for annotation in (
        int,
        str | None,
        Sequence[tuple[int, str]],
        Mapping[str, Sequence[float]] | None,
        Literal["a", "b"],
        Pixels | str | Path,
    ):
        told = ""
        try:
            check_value("it", value, annotation, DataError)
        except CM3Error as error:
            told = str(error)
        assert not told or re.fullmatch(r"it.*: is .+\n  next: .+", told, re.DOTALL)


@given(number=st.integers(), least=st.integers(-5, 5), most=st.integers(6, 9))
def test_a_range_has_both_ends(number: int, least: int, most: int) -> None:
    annotation = Annotated[int, Range(least, most)]
    if least <= number <= most:
        check_value("it", number, annotation, DataError)
    else:
        with pytest.raises(DataError, match=f"use {least} to {most}"):
            check_value("it", number, annotation, DataError)


# ---- forms of stored documents


class Inner(TypedDict):
    sizes: NotRequired[tuple[Count, Count]]
    hash: NotRequired[Annotated[str, Matching("[0-9a-f]{4}", "four digits")]]
    name: NotRequired[Annotated[str, Without("/", "a name")]]


class Outer(TypedDict):
    inner: dict[str, Inner]
    ids: NotRequired[list[int]]
    parts: NotRequired[list[str | CountOrZero]]
    ratio: NotRequired[Annotated[float, Range(0, 1)] | None]


@pytest.mark.parametrize(
    ("value", "where", "cause"),
    [
        ({}, "", "has no 'inner'"),
        ({"inner": []}, ".inner", "is [], must be a mapping"),
        ({"inner": {"a": 1}}, ".inner['a']", "is 1, must be a mapping"),
        ({"inner": {"a": {"sizes": [1]}}}, ".inner['a'].sizes", "is [1], must be 2 whole numbers"),
        ({"inner": {"a": {"sizes": [1, 0]}}}, ".inner['a'].sizes[1]", "is 0 (use 1 or more)"),
        ({"inner": {"a": {"hash": "12"}}}, ".inner['a'].hash", "is '12', must be four digits"),
        ({"inner": {"a": {"hash": "123a\n"}}}, ".inner['a'].hash", None),
        ({"inner": {"a": {"name": "a/b"}}}, ".inner['a'].name", "is 'a/b', must be a name"),
        ({"inner": {}, "ids": [1, True]}, ".ids[1]", "is True, must be a whole number"),
        ({"inner": {}, "parts": ["a", -1]}, ".parts[1]", "is -1 (use 0 or more)"),
        ({"inner": {}, "ratio": 1.5}, ".ratio", "is 1.5 (use 0 to 1)"),
        ({"inner": {}, "ratio": float("nan")}, ".ratio", "is nan (use 0 to 1)"),
    ],
)
def test_what_does_not_have_its_form(value: Any, where: str, cause: str | None) -> None:
    found = misfit(value, Outer)
    assert found is not None
    assert found[0] == where
    assert cause in (None, found[1])


def test_what_has_its_form() -> None:
    inner = {"a": {"sizes": [1, 2], "hash": "12af", "name": "b", "of a later version": None}}
    assert misfit({"inner": inner, "ids": [-1], "parts": ["a", 0], "ratio": None}, Outer) is None
    assert misfit({"inner": {}, "ids": [], "ratio": 1}, Outer) is None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats()
    | st.sampled_from(("", "12af", "/")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("inner", "sizes", "hash", "name", "ids", "parts", "ratio")), inner
        )
    ),
    max_leaves=12,
)
FORMS = (Outer, Inner, list[int], list[Count], dict[str, Inner], list[str | CountOrZero])


@given(JSON, st.sampled_from(FORMS))
def test_the_quick_look_only_lets_through_what_the_check_does(value: Any, form: Any) -> None:
    """Of long lists and large documents, most of which fit; it decides nothing else."""
    if arguments._likely(form)(value):
        arguments._check(value, form)
