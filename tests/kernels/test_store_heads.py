"""store_heads without Triton: by hand, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from cm3kernels import HeadNorms, Turn, store_heads


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
    """Of two numbers a layer norm makes -1 and 1, times the weights of the head; values stay as they are."""
    weight = torch.tensor([[1.0, 2.0], [1.0, 1.0], [3.0, 4.0]])
    bias = torch.tensor([[0.0, 0.0], [5.0, 5.0], [0.0, 1.0]])
    given = arguments(norms=HeadNorms(weight, bias, eps=1e-9))
    q = store_heads(**given)
    torch.testing.assert_close(q, torch.tensor([[-1.0, 2.0], [4.0, 6.0]]).expand(2, 2, 2))
    torch.testing.assert_close(given["keys"][[0, 3], 0], torch.tensor([[-3.0, 5.0]]).expand(2, 2))
    assert given["values"][3, 0].tolist() == [6.0, 7.0]


def test_a_root_mean_square_and_a_quarter_turn_by_hand() -> None:
    """(6, 8) has the root mean square sqrt(50); a quarter turn makes (-b, a) of (a, b)."""
    given = arguments(qkv=torch.tensor([[6.0, 8.0] * 4, [1.0, 0.0] * 4]))
    turn = Turn(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    norms = HeadNorms(torch.ones(3, 2), centred=False, eps=1e-9)
    q = store_heads(**given, norms=norms, turn=turn)
    root = 50**0.5
    torch.testing.assert_close(q[0], torch.tensor([[-8.0, 6.0]]).expand(2, 2) / root)
    torch.testing.assert_close(q[1], torch.tensor([[2**0.5, 0.0]]).expand(2, 2))
    torch.testing.assert_close(given["keys"][3, 0], torch.tensor([-8.0, 6.0]) / root)
    assert given["values"][3, 0].tolist() == [6.0, 8.0]


def test_a_bias_is_added_to_all_heads() -> None:
    given = arguments(bias=torch.arange(8.0))
    assert store_heads(**given)[0].tolist() == [[0.0, 2.0], [4.0, 6.0]]
    assert given["keys"][3, 0].tolist() == [8.0, 10.0]
    assert given["values"][3, 0].tolist() == [12.0, 14.0]


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
        (
            {"norms": HeadNorms(torch.zeros(2, 3))},
            "norms.weight is [2, 3] torch.float32, must be contiguous floating [3, 2]",
        ),
        (
            {"norms": HeadNorms(torch.ones(3, 2), torch.zeros(2))},
            "norms.bias is [2] torch.float32, must be contiguous floating [3, 2]",
        ),
        (
            {"norms": HeadNorms(torch.ones(3, 2), eps=-1.0)},
            "norms.eps is -1.0, must be positive",
        ),
        (
            {"turn": Turn(torch.zeros(1, 2), torch.zeros(2, 2))},
            "turn.cosines is [1, 2] torch.float32, must be contiguous floating [2, 2]",
        ),
        (
            {"turn": Turn(torch.zeros(2, 2), torch.zeros(2, 2).bfloat16())},
            "turn.sines is [2, 2] torch.bfloat16, must be contiguous floating [2, 2]",
        ),
        ({"bias": torch.zeros(7)}, "bias is [7] torch.float32, must be contiguous floating [8]"),
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


def test_heads_of_an_odd_dimension_are_not_rotated() -> None:
    pool = torch.zeros(2, 1, 3)
    turn = Turn(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"^store_heads: heads of 3 dimensions can't be rotated$"):
        store_heads(torch.zeros(1, 9), pool, pool.clone(), torch.tensor([0]), turn=turn)
