"""What a key may have in words, and what to write instead of a wrong value."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cm3core.config.schema import fit
from cm3core.config.words import correction, in_words, setting, shown_value

PLACE = "command line: train.key"


@pytest.mark.parametrize(
    ("value", "annotation", "step"),
    [
        ("100", int, "write train.key=100"),
        (7.0, int, "write train.key=7"),
        ("many", int, "write train.key=3"),
        ("many", int | None, "write train.key=3, or train.key=null"),
        ("cos", Literal["linear", "cosine"], "write train.key=cosine"),
        ("zzz", Literal["linear", "cosine"], "write train.key=linear"),
        (0.9, list[float], "write 'train.key=[0.9]'"),
        ("0.9,0.8", list[float], "write 'train.key=[0.9, 0.8]'"),
        ("a,b", list[str], "write 'train.key=[\"a,b\"]'"),
        ("true", bool, "write train.key=true"),
        (2024, str, "write 'train.key=\"2024\"'"),
        ([1, 2, 3], tuple[int, int], "write 'train.key=[1, 1]'"),
        ("x", dict[str, int], "write 'train.key={name: 1}'"),
    ],
)
def test_what_to_write(value: object, annotation: Any, step: str) -> None:
    default = 3 if annotation in (int, int | None) else None
    assert correction(PLACE, value, annotation, default) == step


def test_a_line_of_a_file() -> None:
    assert setting("mine.yaml: sampler.inner.top_p", 0.5) == "top_p: 0.5"
    assert setting("standard input: train.steps", None) == "steps: null"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.floats(allow_nan=False, width=16),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.none() | st.booleans() | st.integers() | st.text(alphabet="ab1.,:[{#'\" ~-", max_size=8))
def test_yaml_reads_what_is_shown(value: object) -> None:
    assert yaml.safe_load(f"[{shown_value(value)}]") == [value]
    assert yaml.safe_load(f"{{a: {shown_value(value)}}}") == {"a": value}


@given(
    VALUES,
    st.sampled_from([int, float | None, bool, str, list[int], Literal["a", "b"], tuple[int, str]]),
)
def test_a_correction_fits(value: object, annotation: Any) -> None:
    """What is written after `key=` fits, whatever was wrong."""
    assert in_words(annotation)
    import shlex

    step = correction(PLACE, value, annotation)
    written = shlex.split(step.removeprefix("write ").partition(", or ")[0])
    assert len(written) == 1
    fit(yaml.safe_load(written[0].removeprefix("train.key=")), annotation)
