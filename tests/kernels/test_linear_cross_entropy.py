"""linear_cross_entropy without Triton: by hand, against autograd in float64 and the core's own
loss, and what is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cm3core.interfaces import decoder as decoder_module
from cm3core.interfaces.decoder import Decoder
from cm3kernels import linear_cross_entropy


def batch(
    num: int, vocab: int, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and head that require gradients, targets, weights (some 0), groups."""
    generator = torch.Generator().manual_seed(seed)
    hidden, head = (
        torch.randn(rows, 8, generator=generator).to(dtype).requires_grad_()
        for rows in (num, vocab)
    )
    targets = torch.randint(vocab, (num,), generator=generator)
    weights = (
        torch.randint(0, 3, (num,), generator=generator).to(
            torch.promote_types(dtype, torch.float32)
        )
        * 0.5
    )
    return hidden, head, targets, weights, torch.randint(4, (num,), generator=generator)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_by_hand(implementation: str) -> None:
    """Two ids, logits (0, log 3): probabilities 1/4 and 3/4, log Z = log 4."""
    hidden = torch.ones(2, 1, requires_grad=True)
    head = torch.tensor([[0.0], [math.log(3.0)]], requires_grad=True)
    loss, sums = linear_cross_entropy(
        hidden,
        head,
        torch.tensor([0, 1]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([1, 2]),
        z_loss=0.1,
        implementation=implementation,
    )
    nll = [math.log(4.0), math.log(4.0 / 3.0)]
    assert loss.item() == pytest.approx(nll[0] + 2 * nll[1] + 3 * 0.1 * math.log(4.0) ** 2)
    torch.testing.assert_close(
        sums, torch.tensor([[0.0, 0.0], [nll[0], 1.0], [2 * nll[1], 2.0], [0.0, 0.0]])
    )
    loss.backward()
    # d logits = weight * (p (1 + 2 z log Z) - onehot)
    p = torch.tensor([0.25, 0.75]) * (1 + 0.2 * math.log(4.0))
    grad = torch.stack([p - torch.tensor([1.0, 0.0]), 2 * (p - torch.tensor([0.0, 1.0]))])
    torch.testing.assert_close(head.grad, grad.sum(0)[:, None])
    torch.testing.assert_close(hidden.grad, grad @ head.detach())


@given(
    num=st.integers(0, 40),
    vocab=st.integers(1, 50),
    chunk_rows=st.integers(1, 50),
    z_loss=st.sampled_from([0.0, 0.01]),
    seed=st.integers(0, 99),
)
def test_equals_plain_cross_entropy_in_float64(
    num: int, vocab: int, chunk_rows: int, z_loss: float, seed: int
) -> None:
    hidden, head, targets, weights, groups = batch(num, vocab, seed=seed, dtype=torch.float64)
    logits = hidden @ head.T
    nll = F.cross_entropy(logits, targets, reduction="none")
    plain = (weights * (nll + z_loss * logits.logsumexp(1).square())).sum()
    expected = torch.autograd.grad(3 * plain, (hidden, head))
    for implementation in ("reference", "torch"):
        loss, sums = linear_cross_entropy(
            hidden,
            head,
            targets,
            weights,
            groups,
            z_loss=z_loss,
            chunk_bytes=8 * vocab * chunk_rows,
            implementation=implementation,
        )
        torch.testing.assert_close(
            (loss, *torch.autograd.grad(3 * loss, (hidden, head))), (plain, *expected)
        )
        for group in range(4):
            torch.testing.assert_close(
                sums[group, 0], (weights * nll)[groups == group].sum().detach()
            )
            torch.testing.assert_close(sums[group, 1], weights[groups == group].sum())


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_gradcheck(implementation: str) -> None:
    hidden, head, targets, weights, groups = batch(5, 7, dtype=torch.float64)

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden,
            head,
            targets,
            weights,
            groups,
            z_loss=0.1,
            chunk_bytes=2 * 7 * 8,
            implementation=implementation,
        )[0]

    assert torch.autograd.gradcheck(loss, (hidden, head))


class Head(Decoder):
    """A decoder that is its head, with the interface's plain loss."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight, self.vocab_size = weight, len(weight)

    def hidden_states(self, tokens_BT: torch.Tensor, **options: object) -> torch.Tensor:
        raise AssertionError("the loss starts from hidden states")

    def head_weight(self) -> torch.Tensor:
        return self.weight


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 7, 100])
def test_parity_with_the_interfaces_default(
    autocast: bool, chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that has no fused loss trains on the same one: loss, sums and gradients."""
    hidden, head, targets, weights, groups = batch(33, 29)
    monkeypatch.setattr(decoder_module, "LOSS_CHUNK_BYTES", 4 * 29 * chunk_rows)
    plain = Head(head)
    options = {"implementation": "torch", "chunk_bytes": 4 * 29 * chunk_rows}
    results = []
    for function in (
        lambda: plain.loss_sums(hidden, targets, weights, groups, z_loss=0.01),
        lambda: linear_cross_entropy(
            hidden, head, targets, weights, groups, z_loss=0.01, **options
        ),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, sums = function()
        results.append((loss, sums, *torch.autograd.grad(loss, (hidden, head))))
    for place, (theirs, ours) in enumerate(zip(*results, strict=True)):
        assert theirs.dtype == ours.dtype
        rounded = (
            autocast and place >= 2
        )  # gradients are sums of bfloat16 products in another order
        torch.testing.assert_close(
            ours, theirs, rtol=2e-2 if rounded else 1e-5, atol=2e-2 if rounded else 1e-6
        )


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_tokens_of_weight_zero_change_nothing(implementation: str) -> None:
    """Not even with invalid hidden state, target and group; nor when no token is left."""
    hidden, head, targets, _, groups = batch(3, 5)
    hidden.data[1] = math.nan
    targets[1], groups[1] = -100, 77
    for weights in (torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3)):
        loss, sums = linear_cross_entropy(
            hidden, head, targets, weights, groups, implementation=implementation
        )
        grad_hidden, grad_head = torch.autograd.grad(loss, (hidden, head))
        assert torch.isfinite(loss)
        assert sums[:, 1].sum() == weights.sum()
        assert grad_hidden[1].abs().max() == 0
        assert torch.isfinite(grad_head).all()
        assert (loss == 0) == (weights.sum() == 0)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_compiles_as_one_graph(implementation: str) -> None:
    """Also where tokens of weight 0 are invalid, and cannot be dropped."""
    hidden, head, targets, _, groups = batch(6, 9)
    hidden.data[1] = math.nan
    targets[1], weights = -100, torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0, 2.0])

    def loss(hidden: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(
            hidden * 2,
            head,
            targets,
            weights,
            groups,
            z_loss=0.1,
            chunk_bytes=4 * 9 * 4,
            implementation=implementation,
        )

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        value, sums = function(hidden, head)
        grad_hidden, grad_head = torch.autograd.grad(value, (hidden, head))
        results.append((value, sums, grad_hidden[weights > 0], grad_head))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_huge_logits(implementation: str) -> None:
    hidden = torch.tensor([[1e4], [1e4]], requires_grad=True)
    head = torch.tensor([[1e4], [-1e4], [1e4]], requires_grad=True)
    loss, _ = linear_cross_entropy(
        hidden,
        head,
        torch.tensor([0, 1]),
        torch.tensor([1.0, 0.0]),
        torch.zeros(2, dtype=torch.int64),
        implementation=implementation,
    )
    assert loss.item() == pytest.approx(math.log(2.0))
    torch.testing.assert_close(
        torch.autograd.grad(loss, head)[0], torch.tensor([[-5e3], [0.0], [5e3]])
    )


def test_no_gradient_is_computed_when_none_is_wanted() -> None:
    with torch.no_grad():
        loss, _ = linear_cross_entropy(*batch(3, 5))
    assert not loss.requires_grad


def test_a_gradient_of_the_gradient_is_refused() -> None:
    hidden, head, *rest = batch(3, 5)
    loss, _ = linear_cross_entropy(hidden, head, *rest, implementation="torch")
    upstream = torch.ones((), requires_grad=True)
    (grad,) = torch.autograd.grad(loss, hidden, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def call(**changed: Any) -> tuple[Tensor, Tensor]:
    names = ("hidden_NE", "head_VE", "targets_N", "weights_N", "groups_N")
    return linear_cross_entropy(**{**dict(zip(names, batch(3, 5), strict=True)), **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"hidden_NE": torch.zeros(3, 8, dtype=torch.int64)},
            "hidden_NE is [3, 8] torch.int64, must be a floating matrix",
        ),
        ({"head_VE": torch.zeros(8)}, "head_VE is [8] torch.float32, must be a floating matrix"),
        (
            {"head_VE": torch.zeros(5, 7)},
            "hidden_NE [3, 8] and head_VE [5, 7] differ in the model dimension, or it is 0",
        ),
        ({"head_VE": torch.zeros(0, 8)}, "head_VE has no rows"),
        (
            {"targets_N": torch.zeros(3, dtype=torch.int32)},
            "targets_N is [3] torch.int32, must be int64 [3]",
        ),
        ({"weights_N": torch.zeros(4)}, "weights_N is [4] torch.float32, must be floating [3]"),
        (
            {"weights_N": torch.ones(3, requires_grad=True)},
            "weights_N requires a gradient, but only hidden states and head get one; next: "
            "weights_N.detach()",
        ),
        ({"groups_N": torch.zeros(3)}, "groups_N is [3] torch.float32, must be integer [3]"),
        ({"num_groups": 0}, "num_groups is 0, must be positive"),
        ({"z_loss": -1.0}, "z_loss is -1.0, must be finite and not negative"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0, must be positive"),
        (
            {"targets_N": torch.tensor([0, 5, 0]), "weights_N": torch.ones(3)},
            "targets_N[1] is 5, must be 0 to 4",
        ),
        (
            {"groups_N": torch.tensor([0, 0, -1]), "weights_N": torch.ones(3)},
            "groups_N[2] is -1, must be 0 to 3",
        ),
        (
            {"targets_N": torch.zeros(3, dtype=torch.int64, device="meta")},
            "everything must be on one device, got hidden_NE on cpu, head_VE on cpu, targets_N "
            "on meta, weights_N on cpu, "
            "groups_N on cpu",
        ),
    ],
)
def test_refusals(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('linear_cross_entropy: ' + message)}$"):
        call(**changed)
