"""Joined products: the same as one after another, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cm3plugins.decoders import transformer as module
from cm3plugins.decoders.transformer import joined, projections


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 7),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_joined_products_are_those_of_the_layers(outputs, inputs, bias, seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, number, bias=bias).double() for number in outputs]
    x_BTE = torch.randn(2, 3, inputs, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(number, dtype=torch.float64) for number in outputs]
    values, gradients = [], []
    for products in ([layer(x_BTE) for layer in layers], joined(x_BTE, layers)):
        loss = sum((one * weight).sum() for one, weight in zip(products, weights, strict=True))
        parameters = [parameter for layer in layers for parameter in layer.parameters()]
        gradients.append(torch.autograd.grad(loss, [x_BTE, *parameters]))
        values.append(products)
    for one, other in (*zip(*values, strict=True), *zip(*gradients, strict=True)):
        torch.testing.assert_close(one, other)


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Linear(4, 2), nn.Linear(4, 3)], 1),
        ([nn.Linear(4, 2, bias=False), nn.Linear(4, 3)], 0),
        ([nn.Sequential(nn.Linear(4, 2)), nn.Linear(4, 3)], 0),  # as an adapter
    ],
)
def test_only_plain_layers_on_a_gpu_are_joined(monkeypatch, layers, expected):
    calls = []
    monkeypatch.setattr(module, "joined", lambda x, layers: calls.append(1) or [])
    projections(torch.zeros(1, 1, 4).as_subclass(OnCuda), layers)
    assert len(calls) == expected
    assert [one.shape[-1] for one in projections(torch.zeros(1, 1, 4), layers)] == [2, 3]
    assert len(calls) == expected
