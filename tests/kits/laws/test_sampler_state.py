"""Right samplers with state pass the kit: wrapped or not, whatever they look at."""

from __future__ import annotations

from cm3core.interfaces import Sampler
from cm3kits.sampler import SamplerContract
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3plugins.samplers.contrastive import MixtureSamplerConfig
from mirostat_plugin import MirostatConfig
from profiles import examples
from sampler_state_mutants import Adding
from stateful_samplers import NextToNeighbours, Wrapper


class TestMirostat(SamplerContract):
    config = MirostatConfig(target=1.5, rate=0.5)
    max_examples = examples(3)

    def companions(self) -> list[Sampler]:
        return [MirostatConfig(target=3.0, guidance_scale=1.0).build()]


class TestAdding(SamplerContract):
    max_examples = examples(3)

    def make(self) -> Sampler:
        return Adding()


class TestWrappedMirostat(SamplerContract):
    max_examples = examples(3)

    def make(self) -> Sampler:
        return Wrapper(Wrapper(MirostatConfig(target=1.5, rate=0.5).build()))


class TestWrappedMixture(SamplerContract):
    max_examples = examples(3)

    def make(self) -> Sampler:
        return Wrapper(MixtureSamplerConfig(cd_k_share=0.3).build())


class TestNextToNeighbours(SamplerContract):
    max_examples = examples(3)

    def make(self) -> Sampler:
        return NextToNeighbours(CFGSamplerConfig(guidance_scale=2.0).build())
