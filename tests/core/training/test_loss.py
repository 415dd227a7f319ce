"""The chunked loss: equal to plain cross entropy, values and gradients, whatever the chunk."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cm3core.training.loss import GROUPS, cross_entropy_sums, modality_metrics


def test_by_hand() -> None:
    """Two ids, logits (0, log 3): probabilities 1/4 and 3/4."""
    hidden = torch.tensor([[1.0], [1.0]])
    head = torch.tensor([[0.0], [math.log(3.0)]])
    loss, sums = cross_entropy_sums(
        hidden, head, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), torch.tensor([1, 2])
    )
    assert loss.item() == pytest.approx(math.log(4.0) + 2 * math.log(4.0 / 3.0))
    assert sums[:, 1].tolist() == [0.0, 1.0, 2.0, 0.0]
    metrics = modality_metrics(sums)
    assert metrics["text_loss"] == pytest.approx(math.log(4.0))
    assert metrics["image_loss"] == pytest.approx(math.log(4.0 / 3.0))
    assert metrics["image_perplexity"] == pytest.approx(4.0 / 3.0)
    assert metrics["loss"] == pytest.approx((math.log(4.0) + 2 * math.log(4.0 / 3.0)) / 3)
    assert "special_loss" not in metrics


@given(
    num=st.integers(1, 40),
    vocab=st.integers(2, 50),
    chunk_rows=st.integers(1, 50),
    z_loss=st.sampled_from([0.0, 0.01]),
    seed=st.integers(0, 99),
)
def test_equals_plain_cross_entropy(
    num: int, vocab: int, chunk_rows: int, z_loss: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num, 6, generator=generator, requires_grad=True)
    head = torch.randn(vocab, 6, generator=generator, requires_grad=True)
    targets = torch.randint(vocab, (num,), generator=generator)
    weights = torch.randint(0, 3, (num,), generator=generator).float() * 0.5
    groups = torch.randint(len(GROUPS), (num,), generator=generator)

    logits = hidden @ head.T
    nll = F.cross_entropy(logits, targets, reduction="none")
    plain = (weights * (nll + z_loss * logits.logsumexp(1).square())).sum()
    expected = torch.autograd.grad(3 * plain, (hidden, head))
    loss, sums = cross_entropy_sums(
        hidden, head, targets, weights, groups, z_loss=z_loss, chunk_bytes=4 * vocab * chunk_rows
    )
    got = torch.autograd.grad(3 * loss, (hidden, head))

    torch.testing.assert_close(loss, plain)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    for group in range(len(GROUPS)):
        torch.testing.assert_close(sums[group, 0], (weights * nll)[groups == group].sum().detach())
        torch.testing.assert_close(sums[group, 1], weights[groups == group].sum())


def test_tokens_of_weight_zero_change_nothing() -> None:
    """Not even when their hidden state is not a number."""
    hidden = torch.randn(3, 4)
    hidden[1] = float("nan")
    hidden.requires_grad_()
    head = torch.randn(5, 4, requires_grad=True)
    loss, sums = cross_entropy_sums(
        hidden,
        head,
        torch.tensor([0, 1, 2]),
        torch.tensor([1.0, 0.0, 1.0]),
        torch.tensor([1, 0, 2]),
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert hidden.grad is not None
    assert hidden.grad[1].tolist() == [0.0] * 4
    assert head.grad is not None
    assert torch.isfinite(head.grad).all()
    assert sums[0].tolist() == [0.0, 0.0]


def test_no_gradient_is_computed_when_none_is_wanted() -> None:
    head = torch.randn(5, 4, requires_grad=True)
    with torch.no_grad():
        loss, _ = cross_entropy_sums(
            torch.randn(3, 4), head, torch.tensor([0, 1, 2]), torch.ones(3), torch.ones(3)
        )
    assert not loss.requires_grad


def test_large_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4]], requires_grad=True)
    loss, _ = cross_entropy_sums(
        hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([0]), torch.ones(1), torch.ones(1)
    )
    loss.backward()
    assert loss.item() == 0.0


def test_autocast_computes_logits_in_bfloat16_and_sums_in_float32() -> None:
    hidden, head = torch.randn(64, 16, requires_grad=True), torch.randn(30, 16, requires_grad=True)
    targets = torch.randint(30, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = cross_entropy_sums(hidden, head, targets, torch.ones(64), torch.ones(64))
    loss.backward()
    assert loss.dtype == torch.float32
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32
    plain = F.cross_entropy(hidden.detach() @ head.detach().T, targets, reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), rel=0.01)
