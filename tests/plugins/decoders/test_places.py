"""The decoder that predicts the codes of a place together: folded by hand, the kit's laws, and through the engine.

Legend: B rows, T tokens, P folded positions, k codes of a place.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cm3core.document import ImageHole, Text
from cm3core.errors import RecipeError
from cm3core.picture_form import CodeRules, PictureForm
from cm3core.sequence.serialize import Serializer
from cm3kits.decoder import DecoderContract
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.decoders.places import PlacesConfig
from cm3plugins.decoders.places.model import NOTHING, PlacesInference, folded
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3run.generation.engine import Engine, EngineOptions, Request
from engine_parts import LETTERS, LetterTokenizer
from messages import tells

SIZES = {"num_layers": 2, "d_model": 32, "num_heads": 2, "context_length": 64}


class TestPlaces(DecoderContract):
    config = PlacesConfig(**{**SIZES, "context_length": 32}, codes_per_place=2, grid_positions=True)


class TestPlacesOfShiftedTokens(DecoderContract):
    config = PlacesConfig(**{**SIZES, "context_length": 32}, codes_per_place=2, token_shift=True)


class TestPlacesWhoseCodesSeeEachOther(DecoderContract):
    config = PlacesConfig(
        **{**SIZES, "context_length": 32}, codes_per_place=2, place_units=24, grid_positions=True
    )


class TestPlacesWithALossByTheSlot(DecoderContract):
    config = PlacesConfig(
        **{**SIZES, "context_length": 32}, codes_per_place=2, place_units=24, slot_codes=[6, 10]
    )


def test_folding_by_hand():
    # text, text, a place of 3 codes, one that is cut after its first code, text, the rest of that place
    tokens = torch.tensor([[1, 2, 10, 20, 30, 11, 3, 21, 31]])
    cells = torch.tensor([[-1, -1, 0, 1, 2, 3, -1, 4, 5]])
    fold = folded(tokens, cells, 3)
    assert fold.tokens_BPk[0].tolist() == [
        [1, NOTHING, NOTHING],
        [2, NOTHING, NOTHING],
        [10, 20, 30],
        [11, NOTHING, NOTHING],
        [3, NOTHING, NOTHING],
        [NOTHING, 21, 31],
    ]
    assert fold.cells_BP[0].tolist() == [-1, -1, 0, 1, -1, 1]
    # the codes of a place are predicted by the position before it
    assert fold.predicts_BT[0].tolist() == [0, 1, 1, 1, 2, 2, 4, 4, 5]


def test_one_code_a_place_is_cm3leon():
    vocabulary = CM3LeonVocabulary(num_text=20, num_image=9, num_sentinels=4)
    attention = SDPAAttentionConfig().build()
    torch.manual_seed(0)
    plain = CM3LeonConfig(**SIZES).build(vocabulary, attention, (2, 2))
    torch.manual_seed(0)
    places = PlacesConfig(**SIZES, codes_per_place=1).build(vocabulary, attention, (2, 2))
    tokens = torch.randint(0, vocabulary.size, (2, 9))
    assert torch.equal(plain.hidden_states(tokens), places.hidden_states(tokens))


FORM = PictureForm.of_grid(2, 2, 3, CodeRules.by_slot([2, 3, 4]))
VOCABULARY = CM3LeonVocabulary(num_text=4 + len(LETTERS), num_image=9, num_sentinels=8)


def parts(config: CM3LeonConfig) -> Engine:
    torch.manual_seed(3)
    decoder = config.build(VOCABULARY, SDPAAttentionConfig().build(), FORM.grid).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.35)
    sampler = CFGSamplerConfig(guidance_scale=2.0).build()
    serializer = Serializer(VOCABULARY, LetterTokenizer(), FORM)
    return Engine(decoder, serializer, sampler, VOCABULARY, EngineOptions())


@pytest.mark.parametrize("own", [{}, {"place_units": 24, "slot_codes": [2, 3, 4]}])
def test_a_place_is_one_forward_and_its_codes_are_those_of_teacher_forcing(own):
    engine = parts(PlacesConfig(**SIZES, codes_per_place=3, grid_positions=True, **own))
    inference = engine.preparer.inference
    assert isinstance(inference, PlacesInference)
    forwards = []
    read = inference.inner.hidden_states
    inference.inner.hidden_states = lambda tokens, **given: (
        forwards.append(tokens.shape) or read(tokens, **given)
    )
    greedy = CFGSamplerConfig(guidance_scale=1.0, temperature=0.0).build()
    request = Request((Text("a bad cab"), ImageHole()), sampler=greedy)
    [found] = engine.complete([request])
    assert len(forwards) == 1 + 3  # the prompt, and each place but the last
    codes = found.document[1].codes
    assert FORM.strange_place(codes[None]) is None
    serializer = engine.preparer.serializer
    sequence = serializer.sequence(found.document)
    tokens = torch.from_numpy(sequence.tokens.astype(np.int64))[None]
    cells = torch.from_numpy(sequence.cells.astype(np.int64))[None]
    decoder = engine.preparer.decoder
    with torch.inference_mode():
        hidden = decoder.hidden_states(tokens, cells_BT=cells)
        logits = decoder.logits(hidden, VOCABULARY.image)[0]
    first = int(np.flatnonzero(sequence.cells == 0)[0])
    for cell, code in enumerate(codes.tolist()):
        own = FORM.rules.class_of == cell % 3
        row = logits[first + cell - 1].masked_fill(torch.from_numpy(~own), float("-inf"))
        assert int(row.argmax()) == code


@pytest.mark.parametrize("place_units", [0, 24])
def test_requests_together_are_those_alone(place_units):
    engine = parts(PlacesConfig(**SIZES, codes_per_place=3, place_units=place_units))
    asked = [
        Request((Text(text), ImageHole()), seed=seed)
        for seed, text in enumerate(("a", "bad", "a bad cab", "dig a"))
    ]
    together = engine.complete(asked)
    for request, found in zip(asked, together, strict=True):
        [alone] = engine.complete([request])
        assert alone.document == found.document


def test_another_number_of_codes_is_refused():
    with pytest.raises(RecipeError) as info:
        parts(PlacesConfig(**SIZES, codes_per_place=4))
    assert tells(info.value, "decoder.codes_per_place: is 4 ... 6 codes per row")


def test_slots_that_are_not_those_of_the_codes_are_refused():
    with pytest.raises(RecipeError) as info:
        parts(PlacesConfig(**SIZES, codes_per_place=3, slot_codes=[2, 3, 5]))
    assert tells(info.value, "decoder.slot_codes: are [2, 3, 5], 10 in all ... 9 codes")
    with pytest.raises(RecipeError) as short:
        PlacesConfig(**SIZES, codes_per_place=3, slot_codes=[9]).check()
    assert tells(short.value, "decoder.slot_codes: is [9] ... 3 numbers")


def test_a_code_sees_those_before_it_in_its_place():
    """Another first code changes what is predicted for the second one, and not what the first was predicted from."""
    config = PlacesConfig(**SIZES, codes_per_place=3, place_units=24)
    decoder = parts(config).preparer.decoder
    codes = torch.from_numpy(VOCABULARY.of_codes(np.array([[0, 2, 5], [1, 2, 5]])))
    tokens = torch.cat([torch.full((2, 1), 5), codes], dim=1)
    with torch.inference_mode():
        states = decoder.hidden_states(tokens, cells_BT=torch.tensor([[-1, 0, 1, 2]] * 2))
    assert torch.equal(states[0, 0], states[1, 0])
    assert not torch.allclose(states[0, 1], states[1, 1])
    assert not torch.allclose(states[0, 2], states[1, 2])


def test_the_loss_of_a_code_covers_its_slot_by_hand():
    """Two slots of two codes, states that are the logits: log(1 + e^-1) of 1 against 0, whatever the other slot's are."""
    config = PlacesConfig(
        **{**SIZES, "d_model": 4, "num_heads": 2}, codes_per_place=2, slot_codes=[2, 2]
    )
    vocabulary = CM3LeonVocabulary(num_text=8, num_image=4, num_sentinels=2)
    decoder = config.build(vocabulary, SDPAAttentionConfig().build(), (1, 2))
    start = vocabulary.image.start
    with torch.no_grad():
        decoder.head_weight().zero_()
        decoder.head_weight()[start : start + 4] = torch.eye(4)
    hidden = torch.tensor([[1.0, 0.0, 9.0, 9.0], [9.0, 9.0, 0.0, 1.0]])
    ones, groups = torch.ones(2), torch.tensor([0, 1])
    loss, sums = decoder.loss_sums(
        hidden, torch.tensor([start, start + 3]), ones, groups, num_groups=2
    )
    assert loss.item() == pytest.approx(2 * np.log(1 + np.exp(-1)), rel=1e-6)
    assert sums[:, 1].tolist() == [1.0, 1.0]


def test_parameters_are_counted_without_building():
    config = PlacesConfig(**SIZES, codes_per_place=3, grid_positions=True, place_units=24)
    decoder = config.build(VOCABULARY, SDPAAttentionConfig().build(), FORM.grid)
    assert config.num_parameters(VOCABULARY, FORM.grid) == sum(
        parameter.numel() for parameter in decoder.parameters()
    )


def test_states_stay_as_they_are_while_the_cache_goes_on():
    inference = parts(PlacesConfig(**SIZES, codes_per_place=3)).preparer.inference
    cache = inference.allocate_cache(1, 8)
    tokens = torch.tensor([[5, *VOCABULARY.of_codes(np.array([0, 2, 5])).tolist()]])
    cells = torch.tensor([[-1, 0, 1, 2]])
    kept = []
    with torch.inference_mode():
        for place in range(4):
            own = slice(place, place + 1)
            states = inference.hidden_states(tokens[:, own], cells_BT=cells[:, own], cache=cache)
            kept.append((states, states.clone()))
            cache.advance([1])
    for states, before in kept:
        assert torch.equal(states, before)
