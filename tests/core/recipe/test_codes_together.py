"""What the form of pictures asks of a recipe's other parts: a decoder that predicts the codes of a place together needs
as many as a place has, and a layout must be able to write sequences."""

from __future__ import annotations

import pytest

from cm3core.errors import RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from messages import tells

REGISTRY = load_registry()


def test_pictures_of_one_code_a_place_are_refused() -> None:
    with pytest.raises(RecipeError) as info:
        compose("tiny", ["decoder=places"], registry=REGISTRY).check()
    assert tells(
        info.value, "decoder: 'places' predicts 4 codes of a place together ... 16 x 16 places"
    )


def test_one_code_at_a_time_serves_every_form() -> None:
    recipe = compose("tiny", ["decoder=places", "decoder.codes_per_place=1"], registry=REGISTRY)
    assert recipe.decoder is not None
    assert recipe.decoder.codes_together == 1


def test_a_layout_of_pictures_of_one_length_refuses_sequences() -> None:
    given = ["layout=janus", "objective=causal", "decoder.context_length=1024"]
    with pytest.raises(RecipeError) as info:
        compose("ordered-tiny", given, registry=REGISTRY).check()
    assert tells(
        info.value, "layout: 'janus' writes pictures of one length ... 'ordered' are a sequence"
    )
    compose("ordered-tiny", registry=REGISTRY).check()
    compose("residual-tiny", given, registry=REGISTRY).check()
