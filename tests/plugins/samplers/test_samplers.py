"""The bundled samplers: the conformance kit, draws of filters by hand, recipes, wrong values."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from cm3core.errors import RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose, recipe_from_yaml
from cm3kits.sampler import SamplerContract
from cm3plugins.samplers.cfg import CFGSamplerConfig, EditCFGSamplerConfig, TopPSamplerConfig
from cm3plugins.samplers.contrastive import (
    CDKSamplerConfig,
    ContrastiveSamplerConfig,
    MixtureSamplerConfig,
)
from kit_variants import Variant
from messages import tells
from profiles import examples
from sampler_draws import draw


class BundledContract(SamplerContract):
    """All bundled samplers share calls, so each is tried beside requests with one, two and three
    streams. Few examples: eight classes have the same laws."""

    max_examples = examples(4)

    def companions(self):
        configs = (
            TopPSamplerConfig(top_k=3, text_typical_p=0.5),
            CFGSamplerConfig(guidance_scale=4.0),
            EditCFGSamplerConfig(text_guidance_scale=2.0, min_p=0.2),
            CDKSamplerConfig(k=2),
        )
        return [config.build() for config in configs]


class TestTopPSampler(BundledContract):
    config = TopPSamplerConfig(top_p=0.7, top_k=5)


class TestTypicalSampler(Variant, BundledContract):
    config = TopPSamplerConfig(top_p=1.0, typical_p=0.4, text_top_p=0.8, text_min_p=0.1)


class TestCFGSampler(BundledContract):
    config = CFGSamplerConfig(
        guidance_scale=3.0,
        text_guidance_scale=1.5,
        plausible_top_p=0.6,
        negative_prompt="grey",
        guidance_stop=0.5,
        guidance_ramp="down",
    )


class TestCFGSamplerWithCDKSet(Variant, BundledContract):
    config = CFGSamplerConfig(
        guidance_scale=2.0,
        null_prompt="mask_no_retrieved",
        plausible_top_p=1.0,
        plausible_alpha=0.3,
        plausible_k=2,
        plausible_top_k=4,
    )


class TestEditCFGSampler(BundledContract):
    config = EditCFGSamplerConfig(guidance_start=0.1, guidance_ramp="up")


class TestContrastiveSampler(BundledContract):
    config = ContrastiveSamplerConfig(temperature=0.0)


class TestCDKSampler(BundledContract):
    config = CDKSamplerConfig(
        alpha=0.7, k=3, expert_temperature=0.8, amateur_temperature=2.0, expert_top_p=1.0
    )


class TestMixtureSampler(BundledContract):
    config = MixtureSamplerConfig(guidance_scale=2.0, cd_k_share=0.4, k=2)


# ---- drawing from streams that are given as probabilities or logits


def test_draws_follow_the_distribution():
    """Chi-square of 4,000 draws from (.5, .3, .2) at temperature 1: below 13.8, the 0.1% point of
    two degrees of freedom."""
    drawn = torch.tensor(
        draw(TopPSamplerConfig(top_p=1.0), [0.5, 0.3, 0.2], seeds=4000, position=7)
    )
    expected = torch.tensor([0.5, 0.3, 0.2]) * 4000
    assert float(((drawn.bincount(minlength=3) - expected) ** 2 / expected).sum()) < 13.8


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.8}, {0, 1}),
        ({"min_p": 0.25}, {0, 1}),  # .48 * .25 = .12
        ({"min_p": 0.2}, {0, 1, 2}),  # .48 * .2 = .096
        # Entropy 1.17 nats, surprises .73, 1.05, 2.30, 2.81: the nearest is id 1, then id 0, which
        # makes .83.
        ({"typical_p": 0.3}, {1}),
        ({"typical_p": 0.4}, {0, 1}),
        ({"typical_p": 0.9}, {0, 1, 2}),
        ({"typical_p": 0.3, "temperature": 0.0}, {0}),
    ],
)
def test_filters_by_hand(options, kept):
    probability = [0.48, 0.35, 0.1, 0.07]
    assert set(draw(TopPSamplerConfig(**{"top_p": 1.0} | options), probability, seeds=300)) == kept
    text = {
        f"text_{key}": value
        for key, value in ({"temperature": 1.0, "top_p": 1.0} | options).items()
    }
    assert set(draw(TopPSamplerConfig(**text), probability, seeds=300, modality="text")) == kept


# ---- recipes


@pytest.mark.parametrize("name", load_registry().names("sampler"))
def test_every_key_is_documented(name):
    config_class = load_registry().config_class("sampler", name)
    text = "".join(base.__doc__ or "" for base in config_class.__mro__)
    assert [
        item.name for item in fields(config_class) if f"\n        {item.name}: " not in text
    ] == []


ZERO, ONE_TO_ZERO = "use 0 or more", "use more than 0 and at most 1 (1 is off)"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            TopPSamplerConfig(temperature=-0.1),
            "temperature: is -0.1, must be at least 0\n  next: write sampler.temperature=0",
        ),
        (
            TopPSamplerConfig(text_temperature=math.inf),
            "text_temperature: is inf, must be finite\n  next: write sampler.text_temperature=VALUE, which must be finite",
        ),
        (
            TopPSamplerConfig(top_k=-1),
            "top_k: is -1, must be at least 0\n  next: write sampler.top_k=0",
        ),
        (
            TopPSamplerConfig(text_top_k=-2),
            "text_top_k: is -2, must be at least 0\n  next: write sampler.text_top_k=0",
        ),
        (TopPSamplerConfig(top_p=0.0), f"top_p: is 0.0\n  next: {ONE_TO_ZERO}"),
        (TopPSamplerConfig(text_top_p=1.5), f"text_top_p: is 1.5\n  next: {ONE_TO_ZERO}"),
        (TopPSamplerConfig(min_p=1.1), "min_p: is 1.1\n  next: use 0 (off) to 1"),
        (
            TopPSamplerConfig(text_min_p=math.nan),
            "text_min_p: is nan, must be finite\n  next: write sampler.text_min_p=VALUE, which must be finite",
        ),
        (TopPSamplerConfig(typical_p=0.0), f"typical_p: is 0.0\n  next: {ONE_TO_ZERO}"),
        (TopPSamplerConfig(text_typical_p=-1.0), f"text_typical_p: is -1.0\n  next: {ONE_TO_ZERO}"),
        (
            CFGSamplerConfig(guidance_scale=math.inf),
            "guidance_scale: is inf, must be finite\n  next: write sampler.guidance_scale=VALUE, which must be finite",
        ),
        (
            CFGSamplerConfig(text_guidance_scale=-1.0),
            "text_guidance_scale: is -1.0, must be at least 0\n  next: write sampler.text_guidance_scale=0",
        ),
        (
            CFGSamplerConfig(plausible_top_p=math.nan),
            "plausible_top_p: is nan, must be finite\n  next: write sampler.plausible_top_p=VALUE, which must be finite",
        ),
        (
            CFGSamplerConfig(plausible_top_k=-1),
            "plausible_top_k: is -1, must be at least 0\n  next: write sampler.plausible_top_k=0",
        ),
        (
            CFGSamplerConfig(plausible_k=0),
            "plausible_k: is 0, must be at least 1\n  next: write sampler.plausible_k=1",
        ),
        (
            CFGSamplerConfig(plausible_alpha=2.0),
            "plausible_alpha: is 2.0\n  next: use 0 (off) to 1",
        ),
        (
            CFGSamplerConfig(negative_prompt=""),
            "negative_prompt: is an empty text\n  next: describe what the picture should not show, or "
            "use null",
        ),
        (CFGSamplerConfig(guidance_stop=1.2), "guidance_stop: is 1.2\n  next: use 0 to 1"),
        (
            CFGSamplerConfig(guidance_start=0.6, guidance_stop=0.5),
            "guidance_start: is 0.6\n  next: use 0 to sampler.guidance_stop (0.5)",
        ),
        (
            EditCFGSamplerConfig(picture_guidance_scale=-1.0),
            "picture_guidance_scale: is -1.0, must be at least 0\n  next: write sampler.picture_guidance_scale=0",
        ),
        (
            ContrastiveSamplerConfig(alpha=0.0),
            "alpha: is 0.0\n  next: use more than 0 and at most 1",
        ),
        (
            ContrastiveSamplerConfig(expert_top_p=0.0),
            f"expert_top_p: is 0.0\n  next: {ONE_TO_ZERO}",
        ),
        (CDKSamplerConfig(k=0), "k: is 0, must be at least 1\n  next: write sampler.k=1"),
        (
            CDKSamplerConfig(expert_temperature=0.0),
            "expert_temperature: is 0.0\n  next: use more than 0",
        ),
        (
            CDKSamplerConfig(amateur_temperature=math.nan),
            "amateur_temperature: is nan, must be finite\n  next: write sampler.amateur_temperature=VALUE, which must be finite",
        ),
        (MixtureSamplerConfig(cd_k_share=1.5), "cd_k_share: is 1.5\n  next: use 0 to 1"),
        (MixtureSamplerConfig(alpha=1.5), "alpha: is 1.5\n  next: use more than 0 and at most 1"),
        (MixtureSamplerConfig(k=0), "k: is 0, must be at least 1\n  next: write sampler.k=1"),
    ],
)
def test_values_out_of_range_are_named(config, message):
    with pytest.raises(RecipeError) as error:
        config.check()
    assert str(error.value) == "sampler." + message


def test_another_samplers_keys_and_unknown_choices_are_refused():
    for override, message in [
        (
            "sampler.cd_k_share=0.5",
            "command line: sampler.cd_k_share: the sampler 'cfg'",
        ),
        (
            "sampler.guidance_ramp=sideways",
            "command line: sampler.guidance_ramp: is 'sideways'",
        ),
    ]:
        with pytest.raises(RecipeError) as error:
            compose("quickstart", [override], registry=load_registry())
        assert tells(error.value, message)


@pytest.mark.parametrize("name", load_registry().names("sampler"))
def test_every_sampler_stands_in_a_recipe_and_comes_back(name):
    registry = load_registry()
    recipe = compose("tiny", [f"sampler={name}"], registry=registry)
    assert (
        recipe_from_yaml(recipe.to_yaml(), registry, label="again.yaml").sampler == recipe.sampler
    )
    assert type(recipe.sampler) is registry.config_class("sampler", name)


def test_the_null_prompt_needs_no_quotes_and_its_old_name_is_unknown():
    registry = load_registry()
    plain = compose(
        "quickstart", ["sampler.null_prompt=mask_no_retrieved"], registry=registry
    ).to_yaml()
    assert "\n  null_prompt: mask_no_retrieved\n" in plain
    old = plain.replace("null_prompt", "'null'")
    with pytest.raises(RecipeError) as error:
        recipe_from_yaml(old, registry, label="old.yaml")
    assert tells(error.value, "old.yaml: sampler.null: the sampler 'cfg' ... 'null'")
