"""What is measured: shapes, dtypes and directions as they are typed, refused before anything runs; `--list`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import CM3Error
from cm3lab.benchmarks.kernels.ops import add
from cm3lab.benchmarks.kernels.selection import (
    Asked,
    dtypes_of,
    listed,
    listing,
    parsed_shape,
    selected,
    shape_of,
)
from cm3run.benchmarks import LARGEST, BenchmarkRegistry
from kernel_bench import at, doubling
from messages import tells

QUICK = at("cpu", "quick")
KEYS = st.text(st.characters(categories=("L", "N"), include_characters="_"), min_size=1, max_size=9)
VALUES = st.text(st.characters(exclude_characters=",=", categories=("L", "N", "P")), min_size=1)
SPACES = st.sampled_from(["", " ", "  "])


@pytest.fixture(scope="module")
def registry() -> BenchmarkRegistry:
    """The bundled ops, and one that doubles."""
    made = BenchmarkRegistry()
    add(made)
    made.add_op(doubling())
    return made


def outcome(call: Callable[[], Any]) -> tuple[Any, CM3Error | None]:
    """What a call returns, or its error."""
    try:
        return call(), None
    except CM3Error as error:
        return None, error


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=6), SPACES)
def test_a_shape_is_read_as_it_was_written(values: dict[str, str], space: str) -> None:
    text = f"{space},{space}".join(f"{key}{space}={space}{value}" for key, value in values.items())
    assert parsed_shape(f"{space}{text}{space}") == values


@given(st.text(max_size=40))
def test_any_text_is_a_shape_or_an_error_at_its_place(text: str) -> None:
    found, error = outcome(lambda: parsed_shape(text))
    if error is not None:
        assert error.place.startswith("cm3 bench kernels --shape ")
        assert error.cause
        assert error.next_step
        return
    again = ",".join(f"{key}={value}" for key, value in found.items())
    assert parsed_shape(again) == found


@given(st.data())
def test_a_case_s_name_is_what_one_types(data: st.DataObject) -> None:
    """Every op: its name, read again, gives the same shape, whatever was left out at first."""
    benchmarks = BenchmarkRegistry()
    add(benchmarks)
    op = data.draw(st.sampled_from(list(benchmarks.ops.values())), label="op")
    typed = {
        key: data.draw(st.sampled_from(one.choices) if one.choices else st.integers(1, LARGEST))
        for key, one in op.keys.items()
        if data.draw(st.booleans())
    }
    text = ",".join(f"{key}={value}" for key, value in typed.items())
    shape, error = outcome(lambda: shape_of(op, text, QUICK) if text else op.shapes(QUICK)[0])
    if error is not None:
        assert error.cause.startswith(f"{op.name}: ")  # values that don't fit each other
        return
    assert typed.items() <= shape.items()
    name = op.case(shape, next(iter(op.limits)), "forward").name
    assert shape_of(op, name, QUICK) == shape


def test_several_of_everything(registry: BenchmarkRegistry) -> None:
    asked = Asked(
        ops=["double,silu_gate", "double"],
        shapes=[],
        dtypes=["float32"],
        directions=["forward"],
    )
    chosen = selected(registry, asked, QUICK)
    assert [(op.name, len(cases)) for op, cases in chosen] == [("silu_gate", 1), ("double", 1)]
    asked = Asked(
        ops=["double"],
        shapes=["n=3", "n=4,kind=minus"],
        dtypes=["float32,float64"],
        directions=["backward", "both"],
    )
    ((_, cases),) = selected(registry, asked, QUICK)
    assert [(case.name, str(case.dtype)[6:], case.direction) for case in cases] == [
        (shape, dtype, direction)
        for shape in ("n=3,kind=plus", "n=4,kind=minus")
        for dtype in ("float32", "float64")
        for direction in ("backward", "both")
    ]
    assert dtypes_of([(registry.ops["double"], cases)]) == ["float32", "float64"]


def test_without_names_the_ops_that_have_what_is_asked_for(registry: BenchmarkRegistry) -> None:
    chosen = selected(registry, Asked(directions=["backward"], dtypes=["bfloat16"]), QUICK)
    assert {op.name for op, _ in chosen} == {"attention", "linear_cross_entropy"}
    everything = {op.name for op, _ in selected(registry, Asked(), QUICK)}
    assert everything == set(registry.ops)
    # its code is for CPUs
    assert "few_rows" not in {op.name for op, _ in selected(registry, Asked(), at("cuda", "dry"))}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"ops": ["atention"]}, "--op: no op is called 'atention' ... did you mean 'attention'?"),
        ({"ops": ["double,"]}, "--op: a name is empty ... separate names by single commas"),
        (
            {"ops": ["attention"], "providers": ["cm3/tritn"]},
            "--provider: no provider is called 'cm3/tritn' ... did you mean 'cm3/triton'?",
        ),
        (
            {"dtypes": ["bflot16"]},
            "--dtype: no dtype is called 'bflot16' ... did you mean 'bfloat16'?",
        ),
        (
            {"directions": ["backwards"]},
            "--direction: no direction is called 'backwards' ... did you mean 'backward'?",
        ),
        (
            {"ops": ["double"], "dtypes": ["bfloat16"]},
            "--dtype bfloat16: double has no dtype 'bfloat16' ... its dtypes are float32, float64",
        ),
        (
            {"ops": ["double,silu_gate"], "dtypes": ["float64"]},
            "--dtype float64: silu_gate has no dtype 'float64' ... float32, float16, bfloat16",
        ),
        (
            {"ops": ["silu_gate"], "directions": ["both"]},
            "--direction both: silu_gate has no direction 'both': it is for generation ... its directions are forward",
        ),
        ({"shapes": ["n=3"]}, "--shape: an op's shapes have its own keys ... add --op NAME"),
        (
            {"ops": ["double"], "shapes": ["kid=plus"]},
            "--shape kid=plus: double has no key 'kid' ... did you mean 'kind'? its keys are n (numbers)",
        ),
        (
            {"ops": ["attention"], "shapes": ["B=8,L=1024"]},
            "--shape B=8,L=1024: attention has no key 'L' ... its keys are B (rows) ... T (tokens of a row)",
        ),
        (
            {"ops": ["double"], "shapes": ["n=3,n=4"]},
            "--shape n=3,n=4: has the key 'n' twice",
        ),
        ({"ops": ["double"], "shapes": ["n"]}, "--shape n: 'n' is not KEY=VALUE"),
        ({"ops": ["double"], "shapes": ["n=3,"]}, "--shape n=3,: '' is not KEY=VALUE"),
        (
            {"ops": ["double"], "shapes": ["n=0"]},
            "--shape n=0: n (numbers) is '0', must be a whole number from 1 to 2,147,483,647",
        ),
        ({"ops": ["double"], "shapes": ["n=2147483648"]}, "--shape n=2147483648: ... whole number"),
        ({"ops": ["double"], "shapes": ["n=1.5"]}, "--shape n=1.5: ... whole number"),
        ({"ops": ["double"], "shapes": ["n=²"]}, "--shape n=²: ... whole number"),
        (
            {"ops": ["double"], "shapes": ["kind=odd"]},
            "--shape kind=odd: kind (sign) is 'odd', must be one of plus, minus",
        ),
        (
            {"ops": ["double"], "shapes": ["n=13,kind=minus"]},
            "--shape n=13,kind=minus: double: n=13 brings bad luck",
        ),
        (
            {"ops": ["segment_decode"], "shapes": ["H=3,K=2"]},
            "--shape H=3,K=2: segment_decode: H=3 is no multiple of K=2",
        ),
        (
            {"ops": ["attention"], "shapes": ["T=2,documents=3"]},
            "--shape T=2,documents=3: attention: documents=3 is more than T=2",
        ),
        ({"ops": ["store_heads"], "shapes": ["D=3"]}, "--shape D=3: store_heads: D=3 is odd"),
        (
            {"ops": ["guided_sample"], "shapes": ["V=4,kind=cd_k"]},
            "--shape V=4,kind=cd_k: guided_sample: V=4 is less than the 8 ids",
        ),
        (
            {"ops": ["attention"], "shapes": ["T=2000000"]},
            "--op attention, B=1,H=8,T=2000000,D=64,documents=1: inputs and reference take about ... are free",
        ),
    ],
)
def test_wrong_requests_are_refused_before_anything_runs(
    asked: Any, words: str, registry: BenchmarkRegistry
) -> None:
    with pytest.raises(CM3Error) as error:
        selected(registry, Asked(**asked), QUICK)
    assert tells(error.value, f"cm3 bench kernels {words}")


def test_an_op_without_shapes_here(registry: BenchmarkRegistry) -> None:
    with pytest.raises(CM3Error) as error:
        selected(registry, Asked(ops=["few_rows"]), at("cuda", "dry"))
    assert tells(error.value, "cm3 bench kernels --op few_rows: has no shapes on cuda")
    with pytest.raises(CM3Error) as error:
        selected(registry, Asked(ops=["few_rows"], shapes=["M=2"]), at("cuda", "dry"))
    assert tells(error.value, "cm3 bench kernels --shape M=2: few_rows has no default of K, V here")
    with pytest.raises(CM3Error) as error:
        selected(registry, Asked(directions=["backward"], dtypes=["int8"]), QUICK)
    assert tells(error.value, "cm3 bench kernels: no op has all that was asked for")


def test_the_list_says_what_runs_here_and_why_not(registry: BenchmarkRegistry) -> None:
    text = listing(registry, Asked(ops=["double,few_rows"]), QUICK)
    assert re.findall(r"^\w+", text, re.MULTILINE) == ["few_rows", "double"]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "bytes 2 n w; operations n (w: bytes of an element)" in lines
    assert "dtypes float32 (default), float64; directions forward, backward, both" in lines
    assert "n 64 numbers" in lines
    assert "kind plus sign: plus, minus" in lines
    assert "right (baseline) runs" in lines
    assert "elsewhere is for another machine" in lines
    assert (
        "torch (baseline) runs (float32 forward, bfloat16 forward); has no product of float rows and an int8 weight "
        "(int8 forward)" in lines
    )
    on_cuda = listing(registry, Asked(ops=["few_rows"]), at("cuda", "dry"))
    assert "the op has no shapes on cuda" in on_cuda


def test_names_are_split_at_commas() -> None:
    assert listed("--op", ["a, b", "b,c"]) == ["a", "b", "c"]
