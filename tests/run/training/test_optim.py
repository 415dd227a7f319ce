"""Schedule by hand, Muon against torch's, optimiser state as named tensors."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cm3core.errors import CheckpointError, RecipeError
from cm3core.interfaces import Decoder
from cm3core.recipe.sections import TrainSection
from cm3run.training.optim import Muon, OptimizerGroup, Schedule, orthogonalise
from messages import tells


def test_cosine_by_steps() -> None:
    schedule = Schedule(steps=12, minutes=None, warmup_steps=2, shape="cosine", final_fraction=0.1)
    assert [schedule.multiplier(step) for step in (0, 1, 2, 7, 12)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.55, 0.1]
    )


def test_polynomial_by_steps_and_constant() -> None:
    schedule = Schedule(
        steps=10, minutes=None, warmup_steps=0, shape="polynomial", final_fraction=0.2
    )
    assert [schedule.multiplier(step) for step in (0, 5, 10, 20)] == pytest.approx(
        [1.0, 0.6, 0.2, 0.2]
    )
    assert Schedule(10, None, 4, "constant", 0.1).multiplier(9) == 1.0
    assert Schedule(10, None, 4, "constant", 0.1).multiplier(2) == 0.75


def test_a_trapezoid_by_hand() -> None:
    """Up in 2 steps, the peak until step 8 of 12, down to 0.1 in the last four."""
    schedule = Schedule(12, None, 2, "trapezoidal", 0.1, decay_fraction=0.4)
    assert [schedule.multiplier(step) for step in (0, 1, 2, 7, 8, 9, 10, 11, 12, 20)] == (
        pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1])
    )
    by_clock = Schedule(None, 10.0, 2, "trapezoidal", 0.0, decay_fraction=0.25)
    assert [by_clock.multiplier(100, 60.0 * minute) for minute in (0, 7.5, 8.75, 10)] == (
        pytest.approx([1.0, 1.0, 0.5, 0.0])
    )
    assert Schedule(10, None, 0, "trapezoidal", 0.0, 0.0).multiplier(10) == 1.0


@given(st.integers(1, 50), st.floats(0, 1), st.floats(0, 1), st.integers(0, 60))
def test_a_trapezoid_never_rises_after_the_warm_up(steps, final, decay, step) -> None:
    """And decaying all the time is the straight line of "polynomial"."""
    schedule = Schedule(steps, None, 0, "trapezoidal", final, decay)
    assert final - 1e-9 <= schedule.multiplier(step + 1) <= schedule.multiplier(step) <= 1
    line = Schedule(steps, None, 0, "polynomial", final)
    whole = Schedule(steps, None, 0, "trapezoidal", final, 1.0)
    assert whole.multiplier(step) == pytest.approx(line.multiplier(step))


def test_by_the_clock() -> None:
    schedule = Schedule(
        steps=None, minutes=2.0, warmup_steps=10, shape="cosine", final_fraction=0.0
    )
    assert schedule.progress(1000, 60.0) == 0.5
    assert schedule.multiplier(1000, 30.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert schedule.multiplier(4, 119.0) == 0.5, "warm-up is counted in steps all the same"
    assert schedule.progress(5, 500.0) == 1.0


@given(
    steps=st.integers(1, 50),
    warmup=st.integers(0, 60),
    shape=st.sampled_from(["cosine", "polynomial", "constant"]),
    step=st.integers(0, 100),
)
def test_multiplier_stays_in_range(steps: int, warmup: int, shape: str, step: int) -> None:
    schedule = Schedule(steps, None, warmup, shape, 0.1)
    assert 0 < schedule.multiplier(step) <= 1
    if step >= warmup:
        assert schedule.multiplier(step) >= 0.1 - 1e-9


def test_exactly_one_of_steps_and_minutes() -> None:
    with pytest.raises(RecipeError, match="exactly one must be set"):
        Schedule.of(TrainSection(steps=None, minutes=None))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 12), (2, 12, 4)])
def test_orthogonalise_keeps_directions(shape: tuple[int, int, int]) -> None:
    """Singular vectors are kept, singular values approach 1."""
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inner = torch.diagonal(u.mT @ orthogonalise(matrices, 8) @ v.mT, dim1=1, dim2=2)
    assert inner.min() > 0.5
    assert inner.max() < 1.4


def test_muon_is_torchs_muon() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(6, 4)) for _ in range(3)] + [nn.Parameter(torch.randn(4, 6))]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    optimizers = (
        Muon(ours, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1),
    )
    for _ in range(3):
        for left, right in zip(ours, theirs, strict=True):
            left.grad = torch.randn_like(left)
            right.grad = left.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, atol=2e-3, rtol=0)  # bfloat16 products


class TwoLayers(nn.Module, Decoder):
    """The minimum that an optimiser needs of a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 4)

    def hidden_states(self, tokens_BT: Any, **_: Any) -> Any:
        return self.layer(self.embedding(tokens_BT))

    def head_weight(self) -> Any:
        return self.embedding.weight

    def allocate_cache(self, num_rows: int, max_length: int, dtype: Any = None) -> Any:
        raise NotImplementedError


def one_step(decoder: TwoLayers, optimizer: OptimizerGroup) -> None:
    decoder.logits(decoder.hidden_states(torch.arange(7))).square().mean().backward()
    optimizer.step(1.0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_round_trip_continues_identically(name: Literal["adamw", "muon"]) -> None:
    section = TrainSection(steps=1, optimizer=name)
    torch.manual_seed(1)
    first = TwoLayers()
    optimizer = OptimizerGroup(first, section)
    one_step(first, optimizer)
    second = TwoLayers()
    second.load_state_dict(first.state_dict())
    other = OptimizerGroup(second, section)
    other.load_state_tensors(optimizer.state_tensors())
    for decoder, group in ((first, optimizer), (second, other)):
        one_step(decoder, group)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert any(key == "layer.weight::momentum_buffer" for key in optimizer.state_tensors()) == (
        name == "muon"
    )


def test_only_matrices_decay() -> None:
    decoder = TwoLayers()
    optimizer = OptimizerGroup(decoder, TrainSection(steps=1, learning_rate=0.5, weight_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0)
    assert torch.equal(decoder.embedding.weight, before["embedding.weight"])
    assert torch.equal(decoder.layer.bias, before["layer.bias"])
    torch.testing.assert_close(decoder.layer.weight.detach(), before["layer.weight"] * 0.75)


def test_state_of_another_decoder_is_refused() -> None:
    optimizer = OptimizerGroup(TwoLayers(), TrainSection(steps=1))
    with pytest.raises(CheckpointError) as caught:
        optimizer.load_state_tensors({"head.weight::exp_avg": torch.zeros(1)})
    assert tells(caught.value, "optimizer.safetensors: 'head.weight::exp_avg' is not")


def test_unknown_optimizer() -> None:
    with pytest.raises(RecipeError, match="did you mean 'adamw'"):
        OptimizerGroup(TwoLayers(), TrainSection(steps=1, optimizer="adam"))  # type: ignore[arg-type]  # wrong on purpose
