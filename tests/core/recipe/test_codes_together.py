"""What the form of pictures asks of a recipe's other parts: a decoder that predicts the codes of a place together needs
as many as a place has, one that takes positions needs an image tokenizer with them, and a layout must be able to write
sequences."""

from __future__ import annotations

import pytest

from cm3core.errors import RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose, recipe_from_yaml
from messages import tells

REGISTRY = load_registry()
#: Axes of 9, 34 and 34 positions.
OUTLINES = ["image_tokenizer.cells=32", "image_tokenizer.resolution=64"]


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
    tokens = ["text_tokenizer=hf", "text_tokenizer.path=tokenizer.json"]
    given = [*tokens, "layout=janus", "objective=causal", "decoder.context_length=1024"]
    with pytest.raises(RecipeError) as info:
        compose("ordered-tiny", given, registry=REGISTRY).check()
    assert tells(
        info.value, "layout: 'janus' writes pictures of one length ... 'ordered' are a sequence"
    )
    compose("ordered-tiny", registry=REGISTRY).check()
    compose("residual-tiny", given, registry=REGISTRY).check()


def test_positions_that_codes_do_not_have_are_refused() -> None:
    for name, axes, words in (
        (
            "outlines-tiny",
            "{slot: 9, z: 34}",
            "decoder: a decoder takes the axes {'slot': 9, 'z': 34} ... {'slot': 9, 'x': 34, 'y': 34}",
        ),
        ("outlines-tiny", "{x: 33}", "decoder: a decoder takes the axes {'x': 33} ... 'x': 34"),
        ("ordered-tiny", "{row: 16}", "decoder: ... codes here have no positions ... or none"),
        ("outlines-tiny", "{x: 0}", "decoder.code_axes.x: has the size 0 ... 1 to 1,048,576"),
        ("outlines-tiny", "{a b: 3}", "decoder.code_axes.a b: has the size 3; names are letters"),
    ):
        sizes = OUTLINES if name == "outlines-tiny" else []
        with pytest.raises(RecipeError) as info:
            compose(name, [*sizes, f"decoder.code_axes={axes}"], registry=REGISTRY).check()
        assert tells(info.value, words)
    chosen = [*OUTLINES, "decoder.code_axes={y: 34, slot: 9}"]
    compose("outlines-tiny", chosen, registry=REGISTRY).check()
    compose("tiny", ["decoder.code_axes={column: 16, row: 16}"], registry=REGISTRY).check()
    with pytest.raises(RecipeError) as info:
        compose("bitwise-tiny", ["decoder.code_axes={slot: 16}"], registry=REGISTRY).check()
    assert tells(info.value, "decoder.code_axes: ... must be empty")


def test_positions_that_32_bits_cannot_number_are_refused() -> None:
    given = ["image_tokenizer.cells=1024", "image_tokenizer.resolution=2048"]
    given += ["image_tokenizer.most_codes=256", "decoder.code_axes={x: 1026, y: 1026, slot: 9}"]
    with pytest.raises(RecipeError) as info:
        compose("outlines-tiny", given, registry=REGISTRY).check()
    assert tells(
        info.value, "decoder: 256 codes at any position ... 2,425,365,504 cells ... fewer axes"
    )


def test_later_keys_are_written_where_they_are_given() -> None:
    """A hash from before the keys stays; one with them is another, and is read again."""
    plain = compose("tiny", registry=REGISTRY)
    assert plain.hash == compose("tiny", ["decoder.token_shift=false"], registry=REGISTRY).hash
    assert not {"code_axes", "token_shift"} & plain.to_dict()["decoder"].keys()
    axes = compose("residual-tiny", ["decoder.code_axes={slot: 4}"], registry=REGISTRY)
    again = recipe_from_yaml(axes.to_yaml(), REGISTRY)
    assert again.decoder == axes.decoder
    assert again.hash == axes.hash != compose("residual-tiny", registry=REGISTRY).hash


@pytest.mark.parametrize("name", ["ordered-tiny", "outlines-tiny", "residual-tiny", "icons-svg"])
def test_a_sampler_that_compares_vectors_of_codes_refuses_codes_without(name: str) -> None:
    with pytest.raises(RecipeError) as info:
        compose(name, ["sampler=patch_knn"], registry=REGISTRY).check()
    assert tells(
        info.value,
        "sampler: 'patch_knn' needs ... one image code with a vector at each place ... has no vectors",
    )
    compose("quickstart", ["sampler=patch_knn"], registry=REGISTRY).check()
