"""Model, masks and loss made of torchtitan's parts, against ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cm3kernels.linear_cross_entropy.reference import linear_cross_entropy_reference
from cm3leon_parts import TINY, VOCABULARY, build
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3run.checkpoint.tensors import weights_of
from profiles import examples

pytest.importorskip("cm3titan", reason="needs pip install ./plugins/cm3-titan")

pytestmark = pytest.mark.usefixtures("torchtitan")

KV_START = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 7], [0, 1, 1, 1, 1, 5, 5, 5]])


def batch(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    places = torch.arange(8)
    return {
        "tokens": torch.randint(VOCABULARY.size, (2, 8)),
        "positions": places - KV_START,
        "cells": torch.randint(-1, 16, (2, 8)),
        "kv_start": KV_START,
    }


def model_of(config: CM3LeonConfig, weights: dict[str, Tensor]) -> Any:
    from cm3titan.model import model_config
    from cm3titan.names import titan_state

    model: Any = model_config(config, VOCABULARY.size, (4, 4), flex=False).build()
    model.load_state_dict(titan_state(weights, tied=config.tie_embeddings))
    return model


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"qk_norm": True, "grid_positions": True, "activation": "gelu"},
        {"tie_embeddings": False, "d_ff": 40},
    ],
)
def test_the_model_is_our_decoder(changed: dict[str, Any]) -> None:
    """Hidden states, and gradients of every parameter, with random weights in place of zeros."""
    from cm3titan.masks import whole_mask
    from cm3titan.names import titan_name

    config = replace(TINY, **changed)
    ours = build(config)
    torch.manual_seed(1)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs = model_of(config, weights_of(ours))
    inputs, places = batch(), torch.arange(8)
    hidden = ours.hidden_states(
        inputs["tokens"],
        positions_BT=inputs["positions"],
        cells_BT=inputs["cells"],
        kv_start_BT=inputs["kv_start"],
    )
    logits = hidden @ ours.head_weight().T
    found = theirs(
        inputs["tokens"],
        inputs["positions"],
        inputs["cells"],
        whole_mask(inputs["kv_start"], places, places),
    )
    assert torch.allclose(found, logits, atol=2e-5)
    weights = torch.randn_like(logits)
    (logits * weights).sum().backward()
    (found * weights).sum().backward()
    named = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = named[titan_name(name)].grad
        assert torch.allclose(gradient, parameter.grad, rtol=1e-4, atol=1e-3), name


def test_drawn_weights_have_our_distribution() -> None:
    config = replace(TINY, grid_positions=True, qk_norm=True, d_model=96, init_std=0.02)
    model = model_of(config, weights_of(build(config)))
    with torch.no_grad():
        model.init_states()
    for name, one in model.state_dict().items():
        std = one.std().item()
        if name.endswith(("out_proj.weight", "fc2.weight")):
            assert not one.any(), name
        elif "norm" in name:
            assert bool((one == 1).all()), name
        else:
            expected = 0.0002 if "positions" in name else 0.02
            assert 0.85 * expected < std < 1.15 * expected, name
    assert model.tok_embeddings.tokens.weight is model.lm_head.weight


def test_masks_by_hand() -> None:
    from cm3titan.masks import shares_of_row, whole_mask

    places = torch.arange(4)
    mask = whole_mask(torch.tensor([[0, 0, 2, 2]]), places, places)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    shares = shares_of_row(4, 2)
    assert shares.tolist() == [[0, 3], [1, 2]]
    # the second process: queries 1 and 2, keys in the order 0, 3, 1, 2
    own = whole_mask(torch.tensor([[0, 2]]), shares[1], shares.flatten())
    assert own[0, 0].int().tolist() == [[1, 0, 1, 0], [0, 0, 0, 1]]


@given(seed=st.integers(0, 99), number=st.sampled_from([1, 2, 4]))
def test_every_process_has_its_part_of_the_mask(seed: int, number: int) -> None:
    from cm3titan.masks import shares_of_row, whole_mask

    torch.manual_seed(seed)
    starts = torch.randint(0, 3, (2, 16)).cumsum(1).clamp(max=torch.arange(16))
    places = torch.arange(16)
    whole = whole_mask(starts, places, places)
    shares = shares_of_row(16, number)
    assert sorted(shares.flatten().tolist()) == places.tolist()
    for own in shares:
        part = whole_mask(starts[:, own], own, shares.flatten())
        assert torch.equal(part, whole[:, :, own][..., shares.flatten()])


def test_the_blocks_of_flex_attention_are_the_same_mask() -> None:
    """FlexAttention's gradient needs a GPU; here its forward pass, and the mask as it evaluates it."""
    from torch.nn.attention.flex_attention import create_mask, flex_attention

    from cm3titan.masks import block_mask, whole_mask

    torch.manual_seed(0)
    starts = torch.randint(0, 3, (2, 128)).cumsum(1).clamp(max=torch.arange(128))
    places = torch.arange(128)
    blocks, whole = block_mask(starts, places, places), whole_mask(starts, places, places)
    made = create_mask(blocks.mask_mod, 2, 1, 128, 128, device="cpu")
    assert torch.equal(made, whole)
    q, k, v = torch.randn(3, 2, 3, 128, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=whole)
    assert torch.allclose(flex_attention(q, k, v, block_mask=blocks), expected, atol=1e-5)


def test_labels_by_hand() -> None:
    from cm3titan.loss import label_weight, packed_labels, unpacked_labels

    targets, weights = torch.tensor([[5, 7, 2]]), torch.tensor([[1.0, 0.25, 0.0]])
    labels = packed_labels(targets, weights)
    assert labels.dtype == torch.int64
    assert labels.tolist()[0][2] == -100
    assert unpacked_labels(labels)[0].tolist() == [[5, 7, 0]]
    assert unpacked_labels(labels)[1].tolist() == [[1.0, 0.25, 0.0]]
    assert label_weight(labels) == 1.25


@given(
    pairs=st.lists(
        st.tuples(st.integers(0, 2**31 - 1), st.floats(-(2.0**90), 2.0**90, width=32)), min_size=1
    )
)
@settings(max_examples=examples(50))
def test_labels_keep_every_bit(pairs: list[tuple[int, float]]) -> None:
    from cm3titan.loss import packed_labels, unpacked_labels

    targets = torch.tensor([[one for one, _ in pairs]])
    weights = torch.tensor([[one for _, one in pairs]], dtype=torch.float32)
    found, kept = unpacked_labels(packed_labels(targets, weights))
    assert torch.equal(kept, weights)
    assert torch.equal(found, torch.where(weights == 0, 0, targets))


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_loss_is_ours(z_loss: float) -> None:
    """The value without z_loss, as in our metrics, and the gradient with it."""
    from cm3titan.loss import WeightedCrossEntropy, packed_labels

    torch.manual_seed(0)
    hidden, head = torch.randn(2, 5, 6, requires_grad=True), torch.randn(9, 6)
    targets, weights = torch.randint(9, (2, 5)), torch.rand(2, 5) * (torch.rand(2, 5) > 0.3)
    loss: Any = WeightedCrossEntropy.Config(vocab_size=9, z_loss=z_loss).build()
    loss.step_weight = torch.tensor(3.5)
    value, _ = loss(hidden @ head.T, packed_labels(targets, weights))
    (gradient,) = torch.autograd.grad(value, hidden)
    flat = hidden.flatten(0, 1)
    total, sums = linear_cross_entropy_reference(
        flat,
        head,
        targets.flatten(),
        weights.flatten(),
        torch.zeros(10, dtype=torch.int64),
        num_groups=1,
        z_loss=z_loss,
    )
    (expected,) = torch.autograd.grad(total / 3.5, hidden)
    assert torch.allclose(value, sums[0, 0] / 3.5, rtol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-6)
