"""The bundled samplers: the conformance kit, plans by hand, and what their configs refuse."""

from __future__ import annotations

import math

import pytest
import torch

from cm3core.errors import RecipeError
from cm3core.interfaces.sampler import Filters, GuidanceStream, PromptVariant
from cm3core.plugins import load_registry
from cm3core.recipe import compose, recipe_from_yaml
from cm3core.testing.sampler import SamplerContract
from cm3plugins.samplers.config import CFGSamplerConfig, TopPSamplerConfig


class TestTopPSampler(SamplerContract):
    def make(self):
        return TopPSamplerConfig(top_p=0.7, top_k=5).build()


class TestCFGSampler(SamplerContract):
    def make(self):
        return CFGSamplerConfig(guidance_scale=3.0, text_guidance_scale=1.5, plausible_top_p=0.6).build()


class TestCFGSamplerWithCDKSet(SamplerContract):
    def make(self):
        return CFGSamplerConfig(guidance_scale=2.0, null_prompt="mask_no_retrieved", plausible_top_p=1.0, plausible_alpha=0.3,
                                plausible_k=2, plausible_top_k=4).build()


def test_plans_of_guidance_by_hand():
    config = CFGSamplerConfig(guidance_scale=3.0, null_prompt="mask_no_retrieved", plausible_top_p=0.9, temperature=0.8,
                              text_temperature=0)
    image, text = config.plan("image"), config.plan("text")
    null = PromptVariant(hide_text="all", drop_retrieved=True)
    assert image.streams == (GuidanceStream(PromptVariant(), 3.0), GuidanceStream(null, -2.0))
    assert image.filters == Filters(temperature=0.8, plausible_top_p=0.9)
    assert text.streams == (GuidanceStream(PromptVariant(), 1.0), GuidanceStream(null, 0.0))
    assert text.filters == Filters(temperature=0, top_p=0.9)  # no guidance, no plausibility set


def test_scale_one_everywhere_plans_one_stream():
    config = CFGSamplerConfig(guidance_scale=1.0)
    assert config.plan("image").streams == config.plan("text").streams == (GuidanceStream(PromptVariant(), 1.0),)


def test_guidance_and_plausibility_by_hand():
    """c = log(.6, .3, .1), u = log(.8, .1, .1): at s = 2 the mix c^2/u prefers id 1 (.9) to id 0 (.45) and id 2 (.1).

    With a set of probability .5 only id 0 is plausible, whatever the mix says."""
    logits_SR = torch.tensor([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1]]).log()

    def draw(**options: float) -> int:
        sampler = CFGSamplerConfig(guidance_scale=2.0, temperature=0.0, **options).build()
        zero = torch.zeros(1, dtype=torch.int64)
        return int(sampler.draw(logits_SR, torch.tensor([[0, 1]]), (sampler.plan("image"),), first_id=100, allowed_nR=None,
                                seed_n=zero, position_n=zero))

    assert draw(plausible_top_p=1.0) == 101
    assert draw(plausible_top_p=0.5) == 100
    assert draw(plausible_top_p=1.0, plausible_alpha=0.6) == 100
    assert draw(plausible_top_p=1.0, plausible_top_k=1) == 100


def test_draws_follow_the_distribution():
    """Chi-square of 4,000 draws from (.5, .3, .2) at temperature 1: below 13.8, the 0.1% point of two degrees of freedom."""
    sampler, n = TopPSamplerConfig(top_p=1.0).build(), 4000
    probability = torch.tensor([0.5, 0.3, 0.2])
    drawn = sampler.draw(probability.log()[None], torch.zeros(n, 1, dtype=torch.int64), (sampler.plan("image"),) * n, first_id=0,
                         allowed_nR=None, seed_n=torch.arange(n), position_n=torch.full((n,), 7))
    expected = probability * n
    assert float(((drawn.bincount(minlength=3) - expected) ** 2 / expected).sum()) < 13.8


@pytest.mark.parametrize(("options", "message"), [
    ({"temperature": -0.1}, "sampler.temperature: is -0.1\n  next: use 0 or more"),
    ({"top_p": 0.0}, "sampler.top_p: is 0.0\n  next: use more than 0 and at most 1 (1 is off)"),
    ({"text_top_p": 1.5}, "sampler.text_top_p: is 1.5\n  next: use more than 0 and at most 1 (1 is off)"),
    ({"guidance_scale": math.inf}, "sampler.guidance_scale: is inf\n  next: use 0 or more"),
    ({"plausible_k": 0}, "sampler.plausible_k: is 0\n  next: use 1 or more"),
    ({"plausible_alpha": 2.0}, "sampler.plausible_alpha: is 2.0\n  next: use 0 (off) to 1"),
])
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(RecipeError) as error:
        CFGSamplerConfig(**options).check()
    assert str(error.value) == message


def test_the_null_prompt_needs_no_quotes_and_its_old_name_is_unknown():
    registry = load_registry()
    plain = compose("quickstart", ["sampler.null_prompt=mask_no_retrieved"], registry=registry).to_yaml()
    assert "\n  null_prompt: mask_no_retrieved\n" in plain
    old = plain.replace("null_prompt", "'null'")
    with pytest.raises(RecipeError) as error:
        recipe_from_yaml(old, registry, label="old.yaml")
    assert str(error.value).startswith(
        "old.yaml: sampler.null: the sampler 'cfg' has no key 'null'\n  next: known: guidance_scale, null_prompt, ")
