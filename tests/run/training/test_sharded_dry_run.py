"""The 7B recipe divided among 8 processes that are not there: what one of them holds, beside
`cm3 recipe memory`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from cm3core.errors import RecipeError
from cm3core.interfaces.decoder import Decoder
from cm3core.plugins import Registry, load_registry
from cm3core.recipe import Recipe, compose
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3run.processes import Processes, is_divided, own_part
from cm3run.training.memory import training_memory
from cm3run.training.optim import Muon, OptimizerGroup
from cm3run.training.packing import micro_batches
from cm3run.training.parallel import Sharded
from messages import tells

NUMBER = 8


class OneOfEight(Processes):
    """The first of them."""

    world_size = NUMBER


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(autouse=True)
def fake_group() -> Iterator[None]:
    """Collectives that do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=NUMBER)
    yield
    dist.destroy_process_group()


def sharded_7b(recipe: Recipe, num_shards: int) -> Decoder:
    """On "meta": nothing of it is allocated."""
    vocabulary = CM3LeonVocabulary(56320, recipe.image_tokenizer.codebook_size, 512, 1024, 8)
    with torch.device("meta"):
        decoder: Decoder = recipe.decoder.build(
            vocabulary, recipe.attention.build(), recipe.image_tokenizer.grid
        )
    Sharded(OneOfEight(), num_shards, torch.device("cpu"), torch.bfloat16).shard(decoder)
    return decoder


@pytest.mark.parametrize("num_shards", [8, 4])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_process_holds_its_part_of_the_weights_and_of_the_state(
    registry: Registry, num_shards: int, optimizer: str
) -> None:
    """With 8 shards 3.36 GB of weights, as much of gradients, 6.73 GB of AdamW's state, 3.51 of Muon's."""
    recipe = compose(
        "cm3leon-7b",
        [
            f"train.optimizer={optimizer}",
            "vocabulary.num_text=56320",
            # otherwise the estimate has what Muon's step needs, which is more than the activations then
            "decoder.activation_checkpointing=false",
        ],
        registry=registry,
    )
    decoder = sharded_7b(recipe, num_shards)
    group = OptimizerGroup(decoder, recipe.train)
    assert all(is_divided(parameter) for parameter in group.parameters)
    weights = 4 * sum(own_part(parameter).numel() for parameter in group.parameters)
    state = sum(
        4 * own_part(parameter).numel() * (1 if isinstance(one, Muon) else 2)
        for one in group.optimizers
        for parameters in one.param_groups
        for parameter in parameters["params"]
    )
    estimate = training_memory(recipe, bf16=True, on_cpu=False, devices=num_shards)
    assert estimate is not None
    assert weights == pytest.approx(estimate.weights, rel=1e-3)
    assert weights == pytest.approx(estimate.gradients, rel=1e-3)
    assert state == pytest.approx(estimate.optimizer, rel=1e-3)
    if (num_shards, optimizer) == (8, "adamw"):
        assert (round(weights / 1e9, 2), round(state / 1e9, 2)) == (3.36, 6.73)


def test_the_batch_of_the_paper(registry: Registry) -> None:
    """8M tokens a step (CM3leon, table 3) whatever the number of processes is."""
    recipe = compose("cm3leon-7b", registry=registry)
    section = recipe.train
    for number in (1, 8, 64, 256, 512, 2048):
        rows = micro_batches(section.batch_rows, section.accumulate, number)
        assert number * sum(rows) * recipe.decoder.context_length == 8 * 2**20
        assert max(rows) <= section.batch_rows
    assert micro_batches(section.batch_rows, section.accumulate, 512) == [4]
    with pytest.raises(RecipeError) as caught:
        micro_batches(section.batch_rows, section.accumulate, 768)
    assert tells(caught.value, "train.batch_rows, train.accumulate: 4 x 512 ... among 768")
