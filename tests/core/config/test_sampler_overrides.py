"""Keys of a wrapped sampler changed for one call, and the sampler that is wrapped."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cm3core.config.overrides import in_place_of, with_options
from cm3core.errors import CM3Error
from cm3core.interfaces import SamplerConfig
from cm3core.interfaces.component import choose, chosen_name
from cm3plugins.samplers.cfg import CFGSamplerConfig, TopPSamplerConfig
from cm3plugins.samplers.contrastive import CDKSamplerConfig
from cm3plugins.samplers.patch_knn import PatchKNNSamplerConfig
from messages import tells


def test_a_sampler_that_wraps_another_wraps_the_recipe_s():
    own = CFGSamplerConfig(temperature=0.5, guidance_scale=3.0)
    wrapper = in_place_of(own, PatchKNNSamplerConfig, "cfg")
    assert wrapper == PatchKNNSamplerConfig(inner=own)
    assert chosen_name(wrapper.inner) == "cfg"
    assert chosen_name(own) == ""
    assert in_place_of(None, PatchKNNSamplerConfig) == PatchKNNSamplerConfig()
    assert in_place_of(own, CDKSamplerConfig) == CDKSamplerConfig(temperature=0.5)


def test_keys_of_a_wrapped_sampler_are_changed():
    inner = TopPSamplerConfig(top_k=5)
    choose(inner, "top_p")
    config = PatchKNNSamplerConfig(inner=PatchKNNSamplerConfig(inner=inner))
    changes = {"inner.inner.temperature": 0.5, "inner.share": 0.1, "share": 0.3}
    changed = with_options(config, changes)
    assert changed == PatchKNNSamplerConfig(
        share=0.3,
        inner=PatchKNNSamplerConfig(share=0.1, inner=TopPSamplerConfig(top_k=5, temperature=0.5)),
    )
    assert chosen_name(changed.inner.inner) == "top_p"
    assert config.inner.inner.temperature == 1.0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "inner.tempe",
            1.0,
            "sampler.inner.tempe: is not a key of this ... 'temperature'",
        ),
        (
            "inner.temperature",
            "x",
            "sampler.inner.temperature: is 'x', must be a number\n  next: write sampler.inner.temperature=1.0",
        ),
        (
            "inner.temperature",
            -1.0,
            "sampler.inner.temperature: is -1.0, must ... least 0",
        ),
        (
            "share.x",
            1.0,
            "sampler.share.x: is not a key of this ... 'share'",
        ),
    ],
)
def test_wrong_keys_of_a_wrapped_sampler_are_refused(key, value, message):
    with pytest.raises(CM3Error) as caught:
        with_options(PatchKNNSamplerConfig(), {key: value})
    assert tells(caught.value, message)


@dataclass(kw_only=True)
class NeedyConfig(SamplerConfig):
    """A sampler with a key that has no default, and another one that it may wrap."""

    heat: float
    around: SamplerConfig | None = None


def find(kind: str, name: str, place: str) -> type[SamplerConfig]:
    assert kind == "sampler"
    assert place.startswith("sampler.")
    known = {"top_p": TopPSamplerConfig, "cd_k": CDKSamplerConfig, "needy": NeedyConfig}
    return {"patch_knn": PatchKNNSamplerConfig, **known}[name]


def test_a_wrapped_sampler_is_chosen_by_name():
    """As `--sampler` does: filters are kept, and a wrapper wraps what was there."""
    inner = CFGSamplerConfig(temperature=0.5, guidance_scale=3.0)
    choose(inner, "cfg")
    config = PatchKNNSamplerConfig(share=0.3, inner=inner)
    changed = with_options(config, {"inner.k": 4, "inner": "cd_k", "share": 0.1}, find=find)
    assert changed == PatchKNNSamplerConfig(share=0.1, inner=CDKSamplerConfig(temperature=0.5, k=4))
    assert chosen_name(changed.inner) == "cd_k"
    twice = with_options(config, {"inner": "patch_knn", "inner.inner": "top_p"}, find=find)
    assert twice.inner.inner == TopPSamplerConfig(temperature=0.5, top_p=1.0)
    assert chosen_name(twice.inner.inner) == "top_p"
    empty = NeedyConfig(heat=1.0)
    assert with_options(empty, {"around": "top_p"}, find=find).around == TopPSamplerConfig()
    assert with_options(config, {"inner": "patch_knn"}, find=find).inner.inner == inner


def test_a_key_without_default_is_given_with_the_name():
    own = CFGSamplerConfig()
    assert in_place_of(own, NeedyConfig, given={"heat": 2.0, "other": 1}).heat == 2.0
    with pytest.raises(CM3Error) as caught:
        in_place_of(own, NeedyConfig)
    assert tells(caught.value, "sampler.heat: is not given ... NeedyConfig")
    changed = with_options(PatchKNNSamplerConfig(), {"inner": "needy", "inner.heat": 2}, find=find)
    assert changed.inner == NeedyConfig(heat=2.0, around=CFGSamplerConfig())
    with pytest.raises(CM3Error) as caught:
        with_options(PatchKNNSamplerConfig(), {"inner": "needy"}, find=find)
    assert str(caught.value).startswith("sampler.inner.heat: is not given")
