"""Which parameters each method trains, and what is refused, with its words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cm3core.errors import RecipeError
from cm3core.interfaces.decoder import Decoder
from cm3core.recipe import TrainSection, TuneSection
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3run.training.optim import OptimizerGroup
from cm3run.tuning import select_parameters
from messages import tells
from profiles import examples

VOCABULARY = CM3LeonVocabulary(num_text=10, num_image=4, num_sentinels=2)
IMAGE = slice(VOCABULARY.image.start, VOCABULARY.image.stop)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 4, bias=False), nn.Linear(4, 6, bias=False)
        self.norm = nn.LayerNorm(6)


class Small(nn.Module, Decoder):
    """A decoder of two blocks without attention, with a head of its own."""

    context_length, vocab_size = 16, VOCABULARY.size

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(VOCABULARY.size, 6)
        self.embed_positions = nn.Embedding(16, 6)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.embed_output = nn.Embedding(VOCABULARY.size, 6)

    def hidden_states(self, tokens_BT, **_):
        x = self.embed_tokens(tokens_BT) + self.embed_positions.weight[: tokens_BT.shape[1]]
        for block in self.layers:
            x = x + block.fc2(block.fc1(block.norm(x)).relu())
        return x

    def head_weight(self):
        return self.embed_output.weight


def trained(**values) -> tuple[set[str], dict[str, range]]:
    decoder = Small()
    rows = select_parameters(decoder, TuneSection(**values), VOCABULARY)
    return {name for name, p in decoder.named_parameters() if p.requires_grad}, rows


def test_what_each_method_trains() -> None:
    everything = {name for name, _ in Small().named_parameters()}
    assert trained() == (everything, {})
    image = VOCABULARY.image
    assert trained(method="head") == (
        {"embed_output.weight"},
        {"embed_output.weight": range(image.start, image.stop)},
    )
    assert trained(method="embeddings") == ({"embed_tokens.weight", "embed_output.weight"}, {})
    assert trained(method="layers", parameters=["layers.1", "*.fc2", "embed_output.weight"]) == (
        {
            "layers.0.fc2.weight",
            "layers.1.fc1.weight",
            "layers.1.fc2.weight",
            "layers.1.norm.weight",
            "layers.1.norm.bias",
            "embed_output.weight",
        },
        {},
    )


def adapters(**values) -> set[str]:
    return {name.partition(".lora_")[0] for name in trained(method="lora", rank=2, **values)[0]}


def test_which_layers_get_adapters() -> None:
    every = {f"layers.{block}.{name}" for block in (0, 1) for name in ("fc1", "fc2")}
    assert adapters() == every
    assert adapters(targets=["fc1"]) == {"layers.0.fc1", "layers.1.fc1"}
    assert adapters(targets=["fc1"], blocks=[1]) == {"layers.1.fc1"}
    assert adapters(targets=["layers.0.fc2"]) == {"layers.0.fc2"}
    whole = {"embed_output.weight", "layers.1.norm.weight", "layers.1.norm.bias"}
    assert adapters(parameters=["embed_output", "*.1.norm"]) == every | whole
    assert adapters(parameters=["layers.1"]) == {
        "layers.0.fc1",
        "layers.0.fc2",
        "layers.1.fc1.weight",
        "layers.1.fc2.weight",
        "layers.1.norm.weight",
        "layers.1.norm.bias",
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"method": "lora", "targets": ["fc11"]},
            "tune.targets: 'fc11' is no ... 'fc1'",
        ),
        (
            {"method": "lora", "targets": ["zzz"]},
            "tune.targets: 'zzz' is no",
        ),
        (
            {"method": "dora", "targets": ["embed_tokens"]},
            "tune.targets: 'embed_tokens' is a",
        ),
        (
            {"method": "lora", "blocks": [2], "rank": 2},
            "tune.blocks: there is no block 2 ... from 0 to 1",
        ),
        (
            {"method": "lora", "rank": 5},
            "tune.rank: is 5, but layers.0.fc1 has 6 ... and 4 ... most 4",
        ),
        (
            {"method": "lora", "rank": 2, "parameters": ["layers"]},
            "tune.method: is 'lora', but ... tune.method",
        ),
        (
            {"method": "layers", "parameters": ["layer.0"]},
            "tune.parameters: 'layer.0' matches no ... 'layers.0'",
        ),
    ],
)
def test_what_is_not_there(values: dict, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        trained(**values)
    assert tells(error.value, message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "tune.rank: is 0, must ... least 1"),
        ({"rank": 5000}, "tune.rank: is 5000, must ... most 4,096"),
        ({"dropout": 1.0}, "tune.dropout: is 1.0, must ... than 1"),
        (
            {"method": "layers"},
            "tune.parameters: is empty, but ... 'layers' ... e.g",
        ),
        (
            {"method": "embeddings", "parameters": ["fc1"]},
            "tune.parameters: is given, but ... 'embeddings'",
        ),
        (
            {"method": "head", "targets": ["fc1"]},
            "tune.targets: is given, but ... 'head' ... tune.method",
        ),
    ],
)
def test_values_that_say_nothing(values: dict, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        TuneSection(**values).check()
    assert tells(error.value, message)


class WithoutHead(Small):
    def head_weight(self):
        return 2 * self.embed_output.weight


def test_a_head_of_codes_apart() -> None:
    decoder = Small()
    decoder.own_head = VOCABULARY.image
    with pytest.raises(RecipeError) as error:
        select_parameters(decoder, TuneSection(method="head"), VOCABULARY)
    assert tells(error.value, "tune.method: is 'head', but ... tune.method")


def test_a_head_that_is_no_parameter() -> None:
    with pytest.raises(RecipeError, match="WithoutHead has no separate parameter for its head"):
        select_parameters(WithoutHead(), TuneSection(method="head"), VOCABULARY)


def step(decoder: Small, optimizer: OptimizerGroup, seed: int, clip: float, passes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        tokens = torch.randint(0, VOCABULARY.size, (2, 8), generator=generator)
        logits = decoder.logits(decoder.hidden_states(tokens[:, :-1]))
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    nn.utils.clip_grad_norm_(optimizer.parameters, clip)
    optimizer.step(1.0)


@settings(deadline=None, max_examples=examples(20))
@given(st.integers(0, 1000), st.sampled_from([0.01, 100.0]), st.integers(1, 3))
def test_rows_are_trained_as_if_the_rest_had_no_gradient(
    seed: int, clip: float, passes: int
) -> None:
    """The oracle: the whole table under the same optimiser, its other rows' gradients set to zero."""
    section = TrainSection(steps=3, learning_rate=0.05)
    rows, whole = Small(), Small()
    first = rows.embed_output.weight.detach().clone()
    names = select_parameters(rows, TuneSection(method="head"), VOCABULARY)
    select_parameters(whole, TuneSection(method="layers", parameters=["embed_output"]), VOCABULARY)
    mask = torch.zeros(VOCABULARY.size, 1)
    mask[IMAGE] = 1
    whole.embed_output.weight.register_hook(lambda gradient: gradient * mask)
    pairs = (
        (rows, OptimizerGroup(rows, section, rows=names)),
        (whole, OptimizerGroup(whole, section)),
    )
    for number in range(3):
        for decoder, optimizer in pairs:
            step(decoder, optimizer, seed + number, clip, passes)
    torch.testing.assert_close(rows.embed_output.weight, whole.embed_output.weight)
    changed = (rows.embed_output.weight != first).any(1)
    assert changed[IMAGE].all()
    assert changed.sum() == 4
    state = pairs[0][1].state_tensors()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "embed_output.weight::step": (),
        "embed_output.weight::exp_avg": (4, 6),
        "embed_output.weight::exp_avg_sq": (4, 6),
    }
