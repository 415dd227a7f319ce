"""Values that can't be a run's are refused with a message, wherever in a checkpoint they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cm3core.errors import CheckpointError, CM3Error
from cm3core.plugins import Registry
from cm3core.recipe import Recipe
from cm3run.checkpoint import (
    OPTIMIZER,
    RECIPE,
    STATE,
    WEIGHTS,
    open_checkpoint,
    read_state,
    read_tensors,
)
from cm3run.training import train
from messages import tells


def set_state(checkpoint: Path, **values: Any) -> None:
    """Replace values of `state.json`; hashes are left out."""
    state = json.loads((checkpoint / STATE).read_text()) | {"files": {}} | values
    (checkpoint / STATE).write_text(json.dumps(state))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_another_type(
    small_registry: Registry, spoiled: Path, dtype: torch.dtype
) -> None:
    set_state(spoiled)
    tensors = read_tensors(spoiled / WEIGHTS)
    name = min(tensors)
    save_file({**tensors, name: tensors[name].to(dtype)}, spoiled / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(spoiled, small_registry)
    word = str(dtype).removeprefix("torch.")
    assert tells(caught.value, f"{spoiled / WEIGHTS}, tensor {name}: is {word}, but this")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_weights_load(
    small_registry: Registry, spoiled: Path, dtype: torch.dtype
) -> None:
    set_state(spoiled)
    tensors = read_tensors(spoiled / WEIGHTS)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, spoiled / WEIGHTS)
    opened = open_checkpoint(spoiled, small_registry)
    assert all(p.dtype == torch.float32 for p in opened.components.decoder.parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", -5),
        ("step", True),
        ("step", 10**400),
        ("step", 2**63),
        ("tokens", -1),
        ("tokens", False),
        ("elapsed_s", -0.5),
        ("elapsed_s", float("nan")),
        ("elapsed_s", float("inf")),
        ("elapsed_s", 10**400),
        ("format", 0),
        ("format", True),
    ],
)
def test_counters_that_can_not_be(spoiled: Path, name: str, value: Any) -> None:
    set_state(spoiled, **{name: value})
    with pytest.raises(CheckpointError) as caught:
        read_state(spoiled)
    assert caught.value.place == str(spoiled / STATE)
    shown = "a number of very many digits" if value == 10**400 else str(value)
    assert caught.value.cause.startswith(f"is not a checkpoint's state ({name} is {shown}")


def train_on(run: Path, registry: Registry, recipe: Recipe) -> str:
    """The message of a run that can't be resumed."""
    with pytest.raises(CheckpointError) as caught:
        train(recipe, run, registry, progress=False)
    return str(caught.value)


def set_optimizer(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors beside the weights; hashes are left out."""
    set_state(checkpoint)
    tensors = read_tensors(checkpoint / OPTIMIZER)
    change(tensors)
    save_file(tensors, checkpoint / OPTIMIZER)


def keep_generators(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if not name.startswith("generator")]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda t: t.pop(first(t, "exp_avg")), "lacks .*::exp_avg"),
        (lambda t: t.pop(first(t, "step")), "lacks .*::step"),
        (keep_generators, "contains no optimiser state, after 4 steps"),
        (
            lambda t: t.update({first(t, "exp_avg") + "_max": torch.ones(1)}),
            "is not state that AdamW",
        ),
        (lambda t: t.update({first(t, "exp_avg"): torch.ones(())}), "must be torch.float32"),
        (lambda t: t.update({first(t, "step"): torch.ones(3)}), r"float32 \[3\], but must be"),
        (lambda t: t.update({first(t, "step"): torch.tensor(4)}), "is torch.int64"),
        (lambda t: t.update({first(t, "exp_avg"): t[first(t, "exp_avg")].int()}), "torch.int32"),
        (
            lambda t: t.update({"generator::cpu": torch.ones(3)}),
            "is not a state of a random generator",
        ),
        (
            lambda t: t.update({"generator::cpu": torch.ones(9, dtype=torch.uint8)}),
            "is not a state of a random generator",
        ),
        (lambda t: t.pop("generator::cpu"), "contains no state of the random generator"),
    ],
)
def test_optimiser_that_can_not_be_resumed(
    small_registry: Registry,
    small_recipe: Recipe,
    spoiled_run: Path,
    spoiled: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    cause: str,
) -> None:
    set_optimizer(spoiled, change)
    message = train_on(spoiled_run, small_registry, small_recipe)
    assert OPTIMIZER in message
    assert re.search(cause, message), message


def first(tensors: dict[str, torch.Tensor], key: str) -> str:
    """The first name of this key, of a parameter with a shape."""
    return min(
        name
        for name in tensors
        if name.endswith(f"::{key}") and tensors[name.rpartition("::")[0] + "::exp_avg"].ndim
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", "1"),
        ("epoch", -1),
        ("epoch", 2**70),
        ("position", -1),
        ("position", 10**6),
        ("position", [0]),
        ("position", 1.0),
        ("waiting", 3),
        ("waiting", [[0, 0]] * 10_000),
        ("waiting", [1]),
        ("waiting", [[0, -1]]),
        ("waiting", [[0, 10**6]]),
        ("waiting", [["0", 0]]),
        ("waiting", [[0, 0, 0]]),
        ("setting", []),
    ],
)
def test_place_in_the_data_that_can_not_be(
    small_registry: Registry,
    small_recipe: Recipe,
    spoiled_run: Path,
    spoiled: Path,
    key: str,
    value: Any,
) -> None:
    loader = json.loads((spoiled / STATE).read_text())["loader"]
    set_state(spoiled, loader={**loader, key: value})
    message = train_on(spoiled_run, small_registry, small_recipe)
    assert f"state.json has an impossible value of {key!r}: " in message


@pytest.mark.parametrize("sums", [[{}] * 4, [[10**400, 0]] * 4, [[None, 1]] * 4])
def test_loss_sums_that_are_no_numbers(
    small_registry: Registry, small_recipe: Recipe, spoiled_run: Path, spoiled: Path, sums: Any
) -> None:
    set_state(spoiled, loss_sums=sums)
    assert re.search(
        r"loss_sums(\[0\]\S*)? is ", train_on(spoiled_run, small_registry, small_recipe)
    )


@pytest.mark.parametrize("depth", [65, 900, 100_000])
def test_state_that_is_nested_deeply(spoiled: Path, depth: int) -> None:
    text = (spoiled / STATE).read_text()
    nested = f'{{"deep": {"[" * depth}{"]" * depth}, '
    (spoiled / STATE).write_text(text.replace("{", nested, 1))
    with pytest.raises(CheckpointError, match="is nested deeper than 64 levels"):
        read_state(spoiled)


@pytest.mark.parametrize("content", ["", "\n \n", "# name: tiny\n"])
def test_recipe_that_was_emptied(
    small_registry: Registry,
    small_recipe: Recipe,
    spoiled_run: Path,
    spoiled: Path,
    content: str,
) -> None:
    """By a disk that was full, or a copy that was interrupted: it says so, not that the recipe has changed."""
    (spoiled / RECIPE).write_text(content)
    message = train_on(spoiled_run, small_registry, small_recipe)
    assert message == (
        f"{spoiled / RECIPE}: is empty: its content was lost after it was written\n"
        f"  next: delete {spoiled} to use the previous checkpoint, or copy it again from its source"
    )
    with pytest.raises(CheckpointError, match="is empty"):
        open_checkpoint(spoiled, small_registry)


def test_recipe_that_is_nested_deeply(small_registry: Registry, spoiled: Path) -> None:
    (spoiled / RECIPE).write_text(f"name: {'[' * 5000}{']' * 5000}\n")
    with pytest.raises(CM3Error, match=RECIPE):
        open_checkpoint(spoiled, small_registry)
