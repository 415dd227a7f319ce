"""The loss of a decoder's head: equal to plain cross entropy, in values and gradients.

Tested for the interface's default and the bundled decoder's, for any chunk size.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cm3core.interfaces import decoder as decoder_module
from cm3core.interfaces.decoder import Decoder
from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder
from cm3run.training.metrics import GROUPS, modality_metrics


class Head(Decoder):
    """A decoder that is only a head."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight, self.vocab_size = weight, len(weight)

    def hidden_states(self, tokens_BT: torch.Tensor, **options: object) -> torch.Tensor:
        raise AssertionError("the loss starts from hidden states")

    def head_weight(self) -> torch.Tensor:
        return self.weight


class FusedHead(Head):
    """The same, with the bundled decoder's loss."""

    loss_sums = CM3LeonDecoder.loss_sums


@pytest.fixture(params=[Head, FusedHead])
def head_class(request: pytest.FixtureRequest) -> type[Head]:
    kind: type[Head] = request.param
    return kind


def test_by_hand(head_class: type[Head]) -> None:
    """Two ids, logits (0, log 3): probabilities 1/4 and 3/4."""
    hidden = torch.tensor([[1.0], [1.0]])
    head = torch.tensor([[0.0], [math.log(3.0)]])
    loss, sums = head_class(head).loss_sums(
        hidden, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), torch.tensor([1, 2])
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
    head_class=st.sampled_from([Head, FusedHead]),
    num=st.integers(1, 40),
    vocab=st.integers(2, 50),
    chunk_rows=st.integers(1, 50),
    z_loss=st.sampled_from([0.0, 0.01]),
    seed=st.integers(0, 99),
)
def test_equals_plain_cross_entropy(
    head_class: type[Head], num: int, vocab: int, chunk_rows: int, z_loss: float, seed: int
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_module, "LOSS_CHUNK_BYTES", 4 * vocab * chunk_rows)
        loss, sums = head_class(head).loss_sums(hidden, targets, weights, groups, z_loss=z_loss)
    got = torch.autograd.grad(3 * loss, (hidden, head))

    torch.testing.assert_close(loss, plain)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    for group in range(len(GROUPS)):
        torch.testing.assert_close(sums[group, 0], (weights * nll)[groups == group].sum().detach())
        torch.testing.assert_close(sums[group, 1], weights[groups == group].sum())


def test_tokens_of_weight_zero_change_nothing(head_class: type[Head]) -> None:
    """Not even when their hidden state is not a number."""
    hidden = torch.randn(3, 4)
    hidden[1] = float("nan")
    hidden.requires_grad_()
    head = torch.randn(5, 4, requires_grad=True)
    loss, sums = head_class(head).loss_sums(
        hidden,
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


def test_no_gradient_is_computed_when_none_is_wanted(head_class: type[Head]) -> None:
    head = torch.randn(5, 4, requires_grad=True)
    with torch.no_grad():
        loss, _ = head_class(head).loss_sums(
            torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.ones(3), torch.ones(3).long()
        )
    assert not loss.requires_grad


def test_large_logits_stay_finite(head_class: type[Head]) -> None:
    hidden = torch.tensor([[1e4]], requires_grad=True)
    loss, _ = head_class(torch.tensor([[1.0], [-1.0]])).loss_sums(
        hidden, torch.tensor([0]), torch.ones(1), torch.ones(1).long()
    )
    loss.backward()
    assert loss.item() == 0.0


def test_autocast_computes_logits_in_bfloat16_and_sums_in_float32(
    head_class: type[Head],
) -> None:
    hidden, head = torch.randn(64, 16, requires_grad=True), torch.randn(30, 16, requires_grad=True)
    targets = torch.randint(30, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = head_class(head).loss_sums(hidden, targets, torch.ones(64), torch.ones(64).long())
    loss.backward()
    assert loss.dtype == torch.float32
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32
    plain = F.cross_entropy(hidden.detach() @ head.detach().T, targets, reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), rel=0.01)
