"""Decoder `glm_image`: the kit's laws, positions by hand, and what is refused; equal to transformers':
`convert/test_convert_glm_image`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cm3core.errors import RecipeError
from cm3core.vocab import Vocabulary
from cm3kits.decoder import DecoderContract
from cm3plugins.attention import SDPAAttentionConfig
from cm3published.decoders import GlmImageDecoderConfig
from cm3published.decoders.glm_image import GridsRotary
from messages import tells
from profiles import examples

TINY = GlmImageDecoderConfig(
    context_length=64,
    num_layers=2,
    d_model=32,
    num_heads=4,
    num_key_heads=2,
    head_dim=16,
    d_ff=24,
    grids=[[2, 2], [2, 6]],
    sections=[2, 2, 3],
    head_ids=20,
)


#: Codes, the ids around them, and texts, in GLM-Image's order.
VOCABULARY = Vocabulary(60, (range(20, 58),), range(16), {"pad": 59, "boi": 16, "eoi": 17})


class TestGlmImageDecoder(DecoderContract):
    config = TINY
    vocabulary = VOCABULARY
    attention = SDPAAttentionConfig().build()
    max_examples = examples(8)


def test_positions_by_hand() -> None:
    """Two grids of one row and of two; the second starts after the longest side of the first."""
    rotary = GridsRotary([[1, 2], [2, 2]], [1, 1, 1], 8, 100.0)
    positions, cells = torch.arange(8)[None], torch.tensor([[-1, 0, 1, 2, 3, 4, 5, -1]])
    cosines, sines = rotary.of_tokens(positions, cells)
    parts = [(0, 0, 0), (1, 1, 1), (1, 1, 2), (3, 3, 3), (3, 3, 4), (3, 4, 3), (3, 4, 4), (7, 7, 7)]
    scales = torch.tensor([1.0, 100 ** (-1 / 3), 100 ** (-2 / 3)])
    angles = torch.cat([torch.tensor(parts) * scales, torch.zeros(8, 1)], dim=1).repeat(1, 2)
    assert torch.allclose(cosines[0, :, 0], angles.cos(), atol=1e-6)
    assert torch.allclose(sines[0, :, 0], angles.sin(), atol=1e-6)


def test_positions_of_a_decoder_built_without_weights() -> None:
    """As a large model is opened, and as `cm3 recipe check --data` builds one: on the device meta."""
    with torch.device("meta"):
        decoder = TINY.build(VOCABULARY, SDPAAttentionConfig().build(), (4, 4))
    assert all(parameter.is_meta for parameter in decoder.parameters())
    positions, cells = torch.arange(6)[None], torch.tensor([[-1, 0, 1, 2, 3, -1]])
    found = decoder.rotary.of_tokens(positions, cells)
    wanted = GridsRotary(TINY.grids, TINY.sections, 16, TINY.rope_theta).of_tokens(positions, cells)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grids": []}, "decoder.grids: is [], must be a list of [rows, columns], at least 1 each"),
        ({"grids": [[2, 0]]}, "decoder.grids: is [[2, 0]], must be a list"),
        ({"grids": [[2, 2], [3, 3]]}, "decoder.grids: have 13 codes together, but ... have 16"),
        ({"sections": [2, 7, 2]}, "decoder.sections: is [2, 7, 2], must be three numbers, together at most 8"),
        ({"head_ids": 60}, "decoder.head_ids: is 60, but image codes end at 16 of 60 ids"),
        ({"rope": "2d"}, "decoder.rope: is '2d', must be '1d' (GLM-Image)"),
        ({"tie_embeddings": True}, "decoder.tie_embeddings: is True, must be False (GLM-Image)"),
    ],
)  # fmt: skip  # a case per line
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        replace(TINY, **changes).build(VOCABULARY, SDPAAttentionConfig().build(), (4, 4))
    assert tells(str(raised.value), f"{message} ...")
