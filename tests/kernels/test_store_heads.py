"""store_heads without Triton: by hand, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from cm3kernels import store_heads


def arguments(**changed: Any) -> dict[str, Any]:
    """Two tokens, two query heads on one key head of dimension 2, a pool of four slots."""
    return {
        "qkv": torch.arange(16.0).view(2, 8),
        "keys": torch.zeros(4, 1, 2),
        "values": torch.zeros(4, 1, 2),
        "slots": torch.tensor([3, 0]),
        **changed,
    }


def test_by_hand() -> None:
    given = arguments()
    q = store_heads(**given)
    assert q.tolist() == [[[0.0, 1.0], [2.0, 3.0]], [[8.0, 9.0], [10.0, 11.0]]]
    assert given["keys"][:, 0].tolist() == [[12.0, 13.0], [0.0, 0.0], [0.0, 0.0], [4.0, 5.0]]
    assert given["values"][:, 0].tolist() == [[14.0, 15.0], [0.0, 0.0], [0.0, 0.0], [6.0, 7.0]]


def test_norms_by_hand() -> None:
    """Of two numbers a layer norm makes -1 and 1, times the weights; values stay as they are."""
    given = arguments(norms=torch.tensor([[1.0, 2.0], [3.0, 4.0]]), eps=1e-9)
    q = store_heads(**given)
    torch.testing.assert_close(q, torch.tensor([-1.0, 2.0]).expand(2, 2, 2))
    torch.testing.assert_close(given["keys"][[0, 3], 0], torch.tensor([[-3.0, 4.0]]).expand(2, 2))
    assert given["values"][3, 0].tolist() == [6.0, 7.0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"values": torch.zeros(4, 2, 2)},
            "keys are [4, 1, 2], values [4, 2, 2], must be twice [slots, key heads, D]",
        ),
        (
            {"values": torch.zeros(4, 1, 2, dtype=torch.float16)},
            "qkv is torch.float32, keys torch.float32, values torch.float16, must be floating, keys "
            "and values of one dtype",
        ),
        (
            {"qkv": torch.zeros(2, 4)},
            "qkv is [2, 4], must be [tokens, (H + 2) * 2] with H query heads",
        ),
        ({"slots": torch.tensor([1])}, "slots is [1] torch.int64, must be int64 [2]"),
        (
            {"slots": torch.tensor([1, 2], dtype=torch.int32)},
            "slots is [2] torch.int32, must be int64 [2]",
        ),
        ({"norms": torch.zeros(2, 3)}, "norms must be contiguous floating [2, 2]"),
        ({"eps": -1.0}, "eps is -1.0, must be positive"),
        ({"qkv": torch.zeros(8, 2).T}, "qkv has strides [1, 2], the last one must be 1"),
        (
            {"qkv": torch.zeros(2, 8, requires_grad=True)},
            "an argument requires a gradient, which this op doesn't have; next: call it under "
            "torch.no_grad()",
        ),
        (
            {"slots": torch.zeros(2, dtype=torch.int64, device="meta")},
            "everything must be on one device, got cpu, cpu, cpu, meta",
        ),
        ({"slots": torch.tensor([0, 4])}, "slots are 0 to 4, must be 0 to 3"),
        ({"slots": torch.tensor([-1, 2])}, "slots are -1 to 2, must be 0 to 3"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('store_heads: ' + message)}$"):
        store_heads(**arguments(**changed))
