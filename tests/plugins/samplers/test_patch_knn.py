"""Sampler `patch_knn`: the conformance kit, a mixture by hand, equality with the inner sampler, the
engine in any batch, and what is refused.

Legend: n requests, M places, K codes around one, V codes.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cm3core.document import ImageHole, Text
from cm3core.errors import DataError, RecipeError
from cm3core.interfaces import DrawState, ModelParts
from cm3kits.sampler import SamplerContract
from cm3kits.samples import ListSource
from cm3kits.tiny import GreySquares, example_parts
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.samplers.cfg import CFGSamplerConfig, TopPSamplerConfig
from cm3plugins.samplers.contrastive import MixtureSamplerConfig
from cm3plugins.samplers.patch_knn import PatchKNNSamplerConfig
from cm3plugins.samplers.patch_knn.database import PlaceDatabase, database_for, in_memory
from cm3plugins.samplers.patch_knn.sampler import PatchKNNSampler, PatchKNNSettings
from cm3run.model import AsyncEngine
from engine_parts import GRID, REQUESTS, VOCABULARY, make_decoder, make_engine
from kit_variants import Variant
from messages import tells
from mirostat_plugin import MirostatConfig
from profiles import examples

FIRST = 50


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))


class AroundContract(SamplerContract):
    """Few examples: four classes have the same laws."""

    max_examples = examples(4)


class TestAroundCFG(AroundContract):
    config = PatchKNNSamplerConfig(share=0.5)


class TestAroundTopP(Variant, AroundContract):
    config = PatchKNNSamplerConfig(
        share=1.0, inner=TopPSamplerConfig(), combine="nearest", neighbours=5
    )


class TestAroundAMixture(Variant, AroundContract):
    config = PatchKNNSamplerConfig(share=0.3, inner=MixtureSamplerConfig())


class TestAroundAnotherThatRemembers(Variant, AroundContract):
    config = PatchKNNSamplerConfig(share=0.3, inner=MirostatConfig())


# ---- by hand


def hand_database() -> PlaceDatabase:
    """Five places of codes whose vectors are 0, 1, 2 and 10: zeros around code 1, three times; a 1
    on the left of code 2; ones around code 3. Their variance is 3 * 0.2 * 0.8 + 0.4 * 0.6 = 0.72."""
    places = np.array([[0, 0, 0, 0, 1], [0, 0, 0, 1, 2], [1, 1, 1, 1, 3]], np.int32)
    codebook = np.array([[0], [1], [2], [10]], np.float32)
    return in_memory(places, np.array([3, 1, 1]), codebook)


def hand_sampler(**keys) -> PatchKNNSampler:
    settings = {"share": 0.25, "neighbours": 9, "scale": 0.5, "combine": "sum"} | keys
    inner = TopPSamplerConfig(temperature=0.0).build()
    return PatchKNNSampler(inner, hand_database(), FIRST, PatchKNNSettings(**settings))


@pytest.mark.parametrize(
    ("keys", "weights"),
    [
        ({}, [0, 3, math.exp(-1 / 0.72), math.exp(-4 / 0.72)]),
        ({"scale": 1.0}, [0, 3, math.exp(-1 / 1.44), math.exp(-4 / 1.44)]),
        ({"combine": "nearest"}, [0, 1, math.exp(-1 / 0.72), math.exp(-4 / 0.72)]),
        ({"neighbours": 2}, [0, 3, math.exp(-1 / 0.72), 0]),
    ],
)
def test_the_memory_s_probabilities_by_hand(keys, weights):
    found = hand_sampler(**keys).log_probabilities(torch.tensor([[0, 0, 0, 0]])).exp()
    assert found.tolist()[0] == pytest.approx([weight / sum(weights) for weight in weights])


def draw(sampler, num_seeds, *, cell=5, allowed=(True,) * 4, first_id=FIRST):
    """Draws of one cell of a 2 x 4 picture whose codes are 0, for many seeds; the logits prefer
    code 0."""
    codes_nC = torch.zeros(num_seeds, 8, dtype=torch.int64)
    codes_nC[:, cell:] = -1
    plan = sampler.plan("image")
    return sampler.draw_with_state(
        torch.tensor([[3.0, 0.0, 0.0, 0.0]]),
        torch.zeros(num_seeds, 1, dtype=torch.int64),
        torch.ones(num_seeds, 1),
        (plan,) * num_seeds,
        first_id=first_id,
        allowed_nR=torch.tensor([allowed]).expand(num_seeds, -1),
        seed_n=torch.arange(num_seeds),
        position_n=torch.full((num_seeds,), cell),
        state=DrawState(
            {},
            grid=(2, 4),
            cell_n=torch.full((num_seeds,), cell),
            codes_nC=codes_nC,
            drawn_nT=codes_nC[:, :0],
        ),
    )


def shares_of(token_n):
    return (torch.bincount(token_n - FIRST, minlength=4) / len(token_n)).tolist()


def test_a_share_of_the_draws_is_the_memory_s():
    """p = 0.75 * (always code 0) + 0.25 * p_memory, within four standard errors."""
    token_n = draw(hand_sampler(), 20_000)
    weights = [3, math.exp(-1 / 0.72), math.exp(-4 / 0.72)]
    expected = [0.75, *(0.25 * weight / sum(weights) for weight in weights)]
    for share, right in zip(shares_of(token_n), expected, strict=True):
        assert share == pytest.approx(right, abs=4 * math.sqrt(right * (1 - right) / 20_000))


def test_only_legal_codes_are_drawn_and_the_rest_counts_as_all():
    """Without code 1, the memory's other codes share its part; without any of them, the inner
    sampler draws."""
    shares = shares_of(draw(hand_sampler(share=1.0), 4_000, allowed=(True, False, True, True)))
    odds = math.exp(-1 / 0.72) / (math.exp(-1 / 0.72) + math.exp(-4 / 0.72))
    assert shares[:2] == [0, 0]
    assert shares[2] == pytest.approx(odds, abs=0.01)
    assert shares_of(draw(hand_sampler(share=1.0), 50, allowed=(True, False, False, False))) == [
        *(1, 0, 0, 0)
    ]


@pytest.mark.parametrize("cell", [0, 3, 4, 7])
def test_codes_without_all_surroundings_are_the_inner_sampler_s(cell):
    """First row, first and last column."""
    assert shares_of(draw(hand_sampler(share=1.0), 50, cell=cell)) == [1, 0, 0, 0]


def test_ids_that_are_no_codes_are_never_drawn_from_the_memory():
    """A slice that begins before the codes, and one that begins after some."""
    token_n = draw(hand_sampler(share=1.0), 200, first_id=FIRST - 2)
    assert set(token_n.tolist()) == {FIRST + 1}
    token_n = draw(hand_sampler(share=1.0), 200, first_id=FIRST + 2)
    assert set(token_n.tolist()) <= {FIRST + 2, FIRST + 3}


# ---- the engine


@pytest.fixture(scope="module")
def decoder():
    return make_decoder()


def engine_parts_of_a_model() -> ModelParts:
    return example_parts(grid=GRID, num_codes=16, first_code=VOCABULARY.image.start)


def engine_for(decoder, config, **keys):
    return make_engine(decoder, config.build_for(engine_parts_of_a_model()), **keys)


ASKED = [replace(REQUESTS[place], seed=number) for number, place in enumerate([0, 1, 3, 5, 0, 2])]


@pytest.mark.parametrize(
    "inner",
    [CFGSamplerConfig(guidance_scale=2.0), TopPSamplerConfig(), MirostatConfig()],
    ids=["cfg", "top_p", "mirostat"],
)
def test_a_share_of_0_is_the_inner_sampler(decoder, inner):
    """With nothing read at all: the memory of these parts can't be opened."""

    def no_memory():
        raise AssertionError("opened")

    parts = ModelParts(GreySquares(GRID, 16), VOCABULARY, no_memory)
    off = PatchKNNSamplerConfig(share=0.0, inner=inner).build_for(parts)
    expected = make_engine(decoder, inner).complete(ASKED)
    for one, other in zip(make_engine(decoder, off).complete(ASKED), expected, strict=True):
        assert one.document == other.document
        assert one.log_probability == other.log_probability


@pytest.mark.parametrize("inner", [CFGSamplerConfig(guidance_scale=2.0), MirostatConfig()])
def test_a_request_draws_the_same_alone_in_a_batch_and_by_coroutines(decoder, inner):
    config = PatchKNNSamplerConfig(share=0.6, inner=inner)
    engine = engine_for(decoder, config)
    together = [one.document for one in engine.complete(ASKED)]
    assert [engine.complete([request])[0].document for request in ASKED] == together
    assert [one.document for one in engine.complete(ASKED[::-1])] == together[::-1]

    async def main():
        async with AsyncEngine(engine_for(decoder, config, max_rows=5)) as coroutines:
            return await asyncio.gather(*map(coroutines.complete, ASKED))

    assert [one.document for one in asyncio.run(main())] == together
    alone = [one.document for one in make_engine(decoder, inner).complete(ASKED)]
    assert together != alone


def test_a_whole_share_draws_what_followed_the_surroundings(decoder):
    """All places of the memory hold code 7: so do all places of a picture with surroundings."""
    memory = ListSource([(Text("seven"), codes(np.full(6, 7)))])
    parts = ModelParts(GreySquares(GRID, 16), VOCABULARY, lambda: memory)
    sampler = PatchKNNSamplerConfig(share=1.0).build_for(parts)
    asked = [replace(REQUESTS[0], seed=seed) for seed in range(12)]
    drawn = [one.document[1].codes for one in make_engine(decoder, sampler).complete(asked)]
    assert {int(one[4]) for one in drawn} == {7}
    assert len({int(one[0]) for one in drawn}) > 1


def codes(values, grid=GRID):
    from cm3core.document import Codes

    return Codes(np.asarray(values, np.int32), grid)


# ---- refused


def parts_with(tokenizer=None, documents=None) -> ModelParts:
    memory = ListSource([(Text("only text"),)] if documents is None else documents)
    return ModelParts(tokenizer or GreySquares(GRID, 16), CM3LeonVocabulary(20, 16), lambda: memory)


def refusal(config, parts):
    with pytest.raises((DataError, RecipeError)) as caught:
        config.build_for(parts)
    return str(caught.value)


def test_a_tokenizer_without_code_vectors_is_refused():
    class NoVectors(GreySquares):
        def codebook(self):
            return None

    message = refusal(PatchKNNSamplerConfig(), parts_with(NoVectors(GRID, 16)))
    assert tells(message, "sampler: patch_knn compares code")


def test_a_memory_without_pictures_is_refused():
    assert tells(
        refusal(PatchKNNSamplerConfig(), parts_with()),
        "the memory of sampler patch_knn: has no picture ... 1 ... 2",
    )


def test_pictures_too_small_for_surroundings_are_refused():
    flat = parts_with(GreySquares((1, 6), 16), [(codes(np.arange(6), (1, 6)),)])
    assert "has no picture to search in (1 documents, 1 x 6 codes" in refusal(
        PatchKNNSamplerConfig(), flat
    )


def test_no_bank_there_is_refused(tmp_path):
    message = refusal(PatchKNNSamplerConfig(bank=str(tmp_path / "none")), parts_with())
    assert tells(message, f"{tmp_path / 'none'}: does not exist ... 'cm3 memory build'")


def test_it_needs_a_model():
    with pytest.raises(RecipeError) as caught:
        PatchKNNSamplerConfig().build()
    assert tells(caught.value, "sampler: patch_knn searches by ... build_for")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"share": 1.5}, "sampler.share: is 1.5\n  next: use 0 (off) to 1"),
        ({"share": math.nan}, "sampler.share: is nan"),
        ({"scale": 0.0}, "sampler.scale: is 0.0\n  next: use 0.000001 to 1000000"),
        ({"neighbours": 0}, "sampler.neighbours: is 0, must be at least 1"),
        ({"max_places": 0}, "sampler.max_places: is 0, must be at least 1"),
    ],
)
def test_wrong_values_are_refused(keys, message):
    with pytest.raises(RecipeError) as caught:
        PatchKNNSamplerConfig(**keys).check()
    assert message in str(caught.value)


def test_requests_of_other_settings_are_drawn_apart():
    parts = engine_parts_of_a_model()
    one, same, other, inner = (
        PatchKNNSamplerConfig(**keys).build_for(parts)
        for keys in (
            {},
            {"inner": CFGSamplerConfig(guidance_scale=4.0)},
            {"share": 0.3},
            {"inner": MirostatConfig()},
        )
    )
    assert one.draws_with(same)
    assert not one.draws_with(other)
    assert not one.draws_with(inner)
    assert not one.draws_with(CFGSamplerConfig().build())
    assert one.database is other.database is database_for(parts, None, 2_000_000)


def test_pictures_to_be_drawn_are_not_read_from_the_memory():
    """A memory's unfinished pictures have no codes to search."""
    held = [(ImageHole(),), (codes(np.arange(6)),)]
    assert len(database_for(parts_with(documents=held), None, 100)) == 1
