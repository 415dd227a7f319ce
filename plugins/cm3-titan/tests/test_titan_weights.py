"""Tensors between our checkpoints and torchtitan's, exactly and both ways. Without torchtitan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import CheckpointError
from cm3leon_parts import TINY, build
from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder
from cm3run.checkpoint.tensors import weights_of
from messages import tells

pytest.importorskip("cm3titan", reason="needs pip install ./plugins/cm3-titan")

from dataclasses import replace

from cm3titan.names import own_name, own_state, titan_name, titan_state
from cm3titan.weights import newest_step, read_step, shapes_of, write_weights


def decoder(*, tied: bool = True) -> CM3LeonDecoder:
    return build(replace(TINY, grid_positions=True, qk_norm=True, tie_embeddings=tied))


def test_names_by_hand() -> None:
    pairs = {
        "embed_tokens.weight": "tok_embeddings.tokens.weight",
        "embed_positions.weight": "tok_embeddings.places.positions.weight",
        "embed_columns.weight": "tok_embeddings.places.columns.weight",
        "embed_output.weight": "lm_head.weight",
        "layers.11.q_proj.weight": "layers.11.attention.q_proj.weight",
        "layers.0.k_norm.weight": "layers.0.attention.k_norm.weight",
        "layers.3.fc2.weight": "layers.3.feed_forward.fc2.weight",
    }
    assert {own: titan_name(own) for own in pairs} == pairs
    assert {own_name(theirs): theirs for theirs in pairs.values()} == pairs


@given(tied=st.booleans(), layers=st.integers(1, 4))
def test_every_tensor_of_a_decoder_has_a_name_and_comes_back(tied: bool, layers: int) -> None:
    config = replace(TINY, num_layers=layers, grid_positions=True, qk_norm=True)
    weights = weights_of(build(replace(config, tie_embeddings=tied)))
    theirs = titan_state(weights, tied=tied)
    assert len(theirs) == len(weights) + tied
    back = own_state(theirs, tied=tied)
    assert back.keys() == weights.keys()
    assert all(back[name] is one for name, one in weights.items())


@pytest.mark.parametrize(
    "name", ["layers.0.k_mix", "layers.0.fc3.weight", "embed_axes.time.weight"]
)
def test_a_tensor_of_another_decoder_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError) as info:
        titan_name(name)
    assert tells(info.value, "... is not one of the decoder cm3leon ... use a checkpoint of that")


def test_no_name_of_another_module_is_taken_for_ours() -> None:
    with pytest.raises(CheckpointError):
        own_name("layers.0.feed_forward.q_proj.weight")


@pytest.mark.parametrize("tied", [True, False])
def test_weights_go_into_dcp_and_come_back_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    model = decoder(tied=tied)
    weights = weights_of(model)
    write_weights(tmp_path / "step-0", weights, tied=tied)
    shapes = shapes_of(model.named_parameters())
    stored = read_step(tmp_path / "step-0", shapes, tied=tied)
    assert stored.weights.keys() == weights.keys()
    for name, one in weights.items():
        assert torch.equal(stored.weights[name], one), name
    assert stored.optimizer == stored.loader == stored.train_state == {}


def test_the_newest_complete_checkpoint_counts(tmp_path: Path) -> None:
    assert newest_step(tmp_path / "none") is None
    weights = weights_of(decoder())
    for step in (9, 10):
        write_weights(tmp_path / f"step-{step}", weights, tied=True)
    (tmp_path / "step-11").mkdir()  # killed before its metadata were written
    assert newest_step(tmp_path) == 10


def test_a_checkpoint_of_another_decoder_is_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "step-0", weights_of(decoder()), tied=True)
    other = build(replace(TINY, grid_positions=True, qk_norm=True, d_ff=8))
    with pytest.raises(CheckpointError) as info:
        read_step(tmp_path / "step-0", shapes_of(other.named_parameters()), tied=True)
    assert tells(
        info.value, "... has [96, 24] (layers.0.feed_forward.fc1.weight), but ... has [8, 24]"
    )
    fewer = build(replace(TINY, qk_norm=True))
    with pytest.raises(CheckpointError) as info:
        read_step(tmp_path / "step-0", shapes_of(fewer.named_parameters()), tied=True)
    assert tells(info.value, "... columns.weight), but the recipe's decoder has no such tensor")
    deeper = build(replace(TINY, grid_positions=True, qk_norm=True, num_layers=3))
    with pytest.raises(CheckpointError) as info:
        read_step(tmp_path / "step-0", shapes_of(deeper.named_parameters()), tied=True)
    assert tells(info.value, "... lacks it (layers.2.attention.k_norm.weight), but the recipe's")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "step-0"
    model = decoder()
    write_weights(folder, weights_of(model), tied=True)
    (folder / ".metadata").write_bytes(b"")
    with pytest.raises(CheckpointError) as info:
        read_step(folder, shapes_of(model.named_parameters()), tied=True)
    assert tells(
        info.value, "... can't be read ... use a checkpoint that was made with this recipe"
    )
