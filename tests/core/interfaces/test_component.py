"""What the configs of all kinds share: the check of one value."""

from __future__ import annotations

import pytest

from cm3core.errors import RecipeError
from cm3core.interfaces import check_value
from messages import tells


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (0, {}, "sampler.k: is 0\n  next: use 1 or more"),
        (
            0.5,
            {"must_be": "at least 1"},
            "sampler.k: is 0.5, must be at least 1\n  next: use 1 or more",
        ),
        ([1], {}, "sampler.k: is [1]\n  next: use 1 or more"),
    ],
)
def test_a_value_out_of_range_is_refused(
    value: object, options: dict[str, str], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_value("sampler.k", value, False, "use 1 or more", **options)
    assert str(caught.value) == message


def test_a_value_in_range_passes_and_nan_does_not() -> None:
    check_value("sampler.k", 1, True)
    nan = float("nan")
    with pytest.raises(RecipeError) as caught:
        check_value("sampler.k", nan, nan >= 1, must_be="at least 1")
    assert tells(caught.value, "sampler.k: is nan, must ... least 1")
