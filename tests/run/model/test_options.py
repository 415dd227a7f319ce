"""Keyword arguments of a call: known options and sampler keys, alone or together."""

from __future__ import annotations

import asyncio

import pytest

from cm3core.document import ImageHole, Text
from cm3core.errors import GenerationError
from cm3run.model import AsyncModel
from cm3run.model.candidates import GenerationOptions
from messages import tells
from toy_model import picture

KEYS = {"temperature": 0.5, "text_temperature": 0.5, "guidance_scale": 3.0}


def test_options_and_keys_of_the_sampler_are_separated():
    given = GenerationOptions.of({"seed": 3, "reranker": "clip", "top_k": 2, "num_retrieved": None})
    assert given == GenerationOptions(seed=3, reranker="clip", sampling={"top_k": 2})
    both = GenerationOptions.of({"top_k": 2, "sampling": {"top_p": 0.5}})
    assert both.sampling == {"top_k": 2, "top_p": 0.5}
    assert GenerationOptions.of({"sampling": None}) == GenerationOptions()


@pytest.mark.parametrize(
    "call",
    [
        lambda model, **options: model.generate("red", 1, **options)[0].codes,
        lambda model, **options: model.infill(picture(), (2, 2, 6, 6), "red", **options).codes,
        lambda model, **options: model.caption(picture(), **options).text,
        lambda model, **options: (
            model.ask(picture(), "a?", template="{question}{answer}", **options).log_probability
        ),
        lambda model, **options: model.complete([(Text("a"), ImageHole())], **options)[0].document,
    ],
)
def test_keys_of_the_sampler_may_be_given_together(model, call):
    alone = call(model, **KEYS)
    assert call(model, sampling=KEYS) == alone
    assert call(model, sampling={"temperature": 0.5}, guidance_scale=3.0, text_temperature=0.5) == (
        alone
    )
    assert call(model) != alone


def test_coroutines_take_them_too(model):
    async def main():
        async with AsyncModel(model) as shared:
            return await shared.generate("red", 1, sampling=KEYS)

    assert asyncio.run(main())[0].codes == model.generate("red", 1, **KEYS)[0].codes


def test_a_key_that_is_given_twice(model):
    with pytest.raises(GenerationError) as error:
        model.generate("red", 1, sampling={"top_k": 3}, top_k=2)
    assert tells(error.value, "sampling['top_k']: is also given ... top_k")
    with pytest.raises(GenerationError, match=r"sampler\.temprature: is not a key of this model's"):
        model.generate("red", 1, sampling={"temprature": 2})
