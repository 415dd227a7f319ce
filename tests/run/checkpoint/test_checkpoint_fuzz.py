"""A damaged checkpoint opens with the weights that were written, or is refused with a message."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cm3core.errors import CM3Error
from cm3core.plugins import Registry
from cm3core.recipe import Recipe
from cm3run.checkpoint import OPTIMIZER, STATE, WEIGHTS, open_checkpoint
from cm3run.training.start import RunOptions, start
from fuzzing.checkpoint_cases import changed_json, changed_tensors

#: Ways to spoil a file, of each kind; the slow tests try these and many more.
CASES, MANY_CASES = 4, 40


def flip_bits(path: Path, rng: random.Random) -> None:
    """Flip a bit in up to three bytes; half of the time within the header or the first lines."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(min(2000, len(data)) if rng.random() < 0.5 else len(data))] ^= (
            1 << rng.randrange(8)
        )
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    """Keep the beginning."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def change_values(path: Path, rng: random.Random) -> None:
    """Change values anywhere in the JSON."""
    path.write_bytes(changed_json(path.read_bytes(), rng))


def change_header(path: Path, rng: random.Random) -> None:
    """Change what the file says about its tensors."""
    path.write_bytes(changed_tensors(path.read_bytes(), rng))


@pytest.mark.parametrize("cases", [CASES, pytest.param(MANY_CASES, marks=pytest.mark.extended)])
@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        (WEIGHTS, flip_bits),
        (OPTIMIZER, flip_bits),
        (STATE, flip_bits),
        (STATE, change_values),
        (WEIGHTS, change_header),
        (OPTIMIZER, change_header),
        (WEIGHTS, cut),
        (OPTIMIZER, cut),
        (STATE, cut),
    ],
)
def test_opens_equal_or_is_refused(
    small_registry: Registry,
    small_recipe: Recipe,
    spoiled_run: Path,
    spoiled: Path,
    name: str,
    spoil: Callable[[Path, random.Random], None],
    hashed: bool,
    cases: int,
) -> None:
    """Without hashes, a flipped bit may change a weight, and nothing worse."""
    rng = random.Random(f"{name} {spoil.__name__} {hashed}")
    if not hashed:
        state = json.loads((spoiled / STATE).read_text())
        del state["files"]
        (spoiled / STATE).write_text(json.dumps(state))
    written = (spoiled / name).read_bytes()
    want = open_checkpoint(spoiled, small_registry).components.decoder.module.state_dict()
    num_refused = 0
    for _ in range(cases):
        (spoiled / name).write_bytes(written)
        spoil(spoiled / name, rng)
        try:
            opened = open_checkpoint(spoiled, small_registry).components.decoder.module.state_dict()
            if hashed or name != WEIGHTS:
                assert all(torch.equal(opened[key], want[key]) for key in want)
            start(small_recipe, spoiled_run, small_registry, RunOptions(progress=False)).log.close()
        except CM3Error:
            num_refused += 1
    if hashed and name != STATE:
        assert num_refused == cases
