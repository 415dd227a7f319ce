"""Products of few bits: codes by hand, rows that know no others, sums in one pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3plugins.decoders.products import (
    GROUP,
    MOST_ROWS,
    add_product,
    int4_product,
    int8_product,
    rounds_inputs,
    why_not,
)

needs_rounding = pytest.mark.skipif(
    not rounds_inputs(torch.device("cpu")), reason="this CPU does not multiply bytes"
)


def test_int4_is_exact_where_sixteen_values_suffice() -> None:
    # -8..7 in each group, times a power of two: the scale is that power, the offset 0
    codes = torch.arange(GROUP).remainder(16).sub(8).float()
    weight = torch.stack([codes, codes.flip(0) / 4]).repeat(16, 2)  # [32, 2 * GROUP]
    x = torch.randn(3, 2 * GROUP).bfloat16()
    product = int4_product(weight)(x)
    assert product.dtype == torch.bfloat16
    exact = x.float() @ weight.T
    assert torch.allclose(product.float(), exact, rtol=2**-7, atol=2**-7)


def test_int4_rounds_within_a_group_only() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 4 * GROUP)
    weight[:, :GROUP] *= 100  # a group of large weights does not coarsen its neighbours
    x = torch.eye(4 * GROUP).bfloat16()
    found = int4_product(weight)(x).float().T
    step = weight.unflatten(1, (-1, GROUP)).aminmax(dim=-1)
    widths = ((step.max - step.min) / 15).repeat_interleave(GROUP, dim=1)
    # half a step, and what bfloat16 rounds of scale, offset and result
    assert bool(
        ((found - weight).abs() <= 0.5 * widths + 0.02 * weight.abs() + 0.04 * widths).all()
    )


@needs_rounding
@given(rows=st.integers(1, 40), seed=st.integers(0, 100))
def test_a_row_of_int8_does_not_depend_on_others(rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(48, 32, generator=generator)
    x = torch.randn(rows, 32, generator=generator)
    x[rows // 2] = 0
    product = int8_product(weight)
    together = product(x)
    assert torch.equal(
        torch.cat([product(x[place : place + 1]) for place in range(rows)]), together
    )
    assert not together[rows // 2].any()  # zeros stay zeros
    exact = x @ weight.T
    assert float((together - exact).abs().max()) < 0.05 * float(exact.abs().max()) + 0.05


@needs_rounding
def test_int8_with_activation_and_sum() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(48, 32), torch.randn(MOST_ROWS + 7, 32)
    product = int8_product(weight)
    assert torch.equal(int8_product(weight, "relu")(x), product(x).relu())
    total = torch.randn(len(x), 48)
    expected = total + product(x)
    add_product(total, product, x)
    assert torch.allclose(total, expected, atol=1e-5)
    add_product(total, lambda x: x @ weight.T, x)
    assert torch.allclose(total, expected + x @ weight.T, atol=1e-5)


def test_int4_says_what_it_needs() -> None:
    assert why_not("int4", torch.zeros(4, 48)) == (
        "int4 needs widths that are multiples of 32, but one is 48",
        "use int8",
    )
    assert why_not("int4", torch.zeros(4, 64, device="meta")) == (
        "int4 weights don't run on meta",
        "use bf16, or --device cpu",
    )
