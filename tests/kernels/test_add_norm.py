"""add_norm without Triton: by hand, and what is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from cm3kernels import add_norm

X = torch.zeros(2, 3)


def test_by_hand() -> None:
    """1, 2, 6 have the mean 3 and the variance 14/3. In bfloat16, 256 + 1 is 256."""
    x, added = torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[0.0, 1.0, 4.0]])
    total, normed = add_norm(x, added, eps=1e-12)
    assert total.tolist() == [[1.0, 2.0, 6.0]]
    deviation = math.sqrt(14 / 3)
    torch.testing.assert_close(normed, torch.tensor([[-2.0, -1.0, 3.0]]) / deviation)
    narrow = torch.tensor([[256.0, 0.0]], dtype=torch.bfloat16)
    total, normed = add_norm(narrow, torch.tensor([[1.0, 0.0]]), dtype=torch.float32)
    assert total.tolist() == [[256.0, 0.0]]
    assert (total.dtype, normed.dtype) == (torch.bfloat16, torch.float32)


def test_nothing_is_added_to_the_first_block_s_input() -> None:
    x = torch.tensor([[1.0, 3.0]])
    total, normed = add_norm(x, eps=1e-12)
    assert total is x
    assert normed.tolist() == [[-1.0, 1.0]]


def test_the_root_mean_square_by_hand() -> None:
    """6 and 8 have the root mean square sqrt(50)."""
    weight = torch.tensor([1.0, 2.0])
    _, normed = add_norm(torch.tensor([[6.0, 8.0]]), weight=weight, centred=False, eps=1e-9)
    torch.testing.assert_close(normed, torch.tensor([[6.0, 16.0]]) / math.sqrt(50))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(3),), {}, "x is [3] torch.float32, must be floating [rows, width]"),
        (
            (torch.zeros(2, 3, dtype=torch.int64),),
            {},
            "x is [2, 3] torch.int64, must be floating [rows, width]",
        ),
        ((X, torch.zeros(3, 2)), {}, "added is [3, 2] torch.float32, must be floating [2, 3]"),
        ((X,), {"dtype": torch.int8}, "dtype is torch.int8, must be a floating one"),
        (
            (X,),
            {"weight": torch.zeros(2)},
            "weight must be contiguous floating [3] on cpu",
        ),
        ((X,), {"eps": 0.0}, "eps is 0.0, must be positive"),
        ((torch.zeros(3, 2).T,), {}, "x has strides [1, 2], the last one must be 1"),
        ((X, torch.zeros(3, 2).T), {}, "added has strides [1, 2], the last one must be 1"),
        ((X, X.to("meta")), {}, "x is on cpu, added on meta"),
        (
            (X, X.clone().requires_grad_()),
            {},
            "an argument requires a gradient, which this op doesn't have; next: call it under "
            "torch.no_grad()",
        ),
    ],
)
def test_what_is_refused(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('add_norm: ' + message)}$"):
        add_norm(*arguments, **options)
