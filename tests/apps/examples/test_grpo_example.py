"""examples/grpo: rewards by hand, an update by hand, a toy that gets brighter, the whole script on the
recipe `tiny`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import cm3core
from cm3core.errors import CheckpointError, RecipeError
from cm3core.images import save_png
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3run.checkpoint import export_model
from cm3run.training import train
from messages import tells
from toy_model import toy_model

SCRIPT = Path(__file__).parents[3] / "examples" / "grpo" / "grpo.py"
#: One stream without filters, by the toy's only sampler.
PLAIN = ["--sampler", "cfg", "--guidance-scale", "1"]


@pytest.fixture(scope="module")
def grpo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["grpo_example"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["grpo_example"]


def one_colour(*colour: int) -> np.ndarray:
    return np.full((64, 64, 3), colour, np.uint8)


def test_rewards_by_hand(grpo):
    red, black = one_colour(255, 0, 0), one_colour(0, 0, 0)
    asked = [grpo.Asked("red", red)] * 2
    assert grpo.redness([red, black], asked).tolist() == [1.0, 0.0]
    # blurred pictures are 32 x 32, in 0..1, and black outside: of 9 ninths, an edge has 6, the next 8
    side = 28 + 2 * ((6 / 9) ** 2 + (8 / 9) ** 2)
    assert grpo.likeness([red, black], asked).tolist() == pytest.approx([0.0, -side], abs=1e-3)


def test_rewards_are_found(grpo):
    assert grpo.find_reward("redness") is grpo.redness
    assert grpo.find_reward("grpo_example:likeness") is grpo.likeness
    with pytest.raises(RecipeError) as error:
        grpo.find_reward("nowhere:reward")
    assert tells(error.value, "--reward nowhere:reward: can't be imported ... 'nowhere'")


def test_the_loss_by_hand(grpo):
    """Ratios of 1: the loss is minus the mean advantage, nothing is clipped, and the model is where it
    started. Of ratios of 2, a gain counts at most 1.2 times, a loss in full."""
    model = toy_model(max_text_tokens=12)
    trainer = grpo.GRPO(model, lambda pictures, asked: [0.0] * len(pictures), grpo.parse(PLAIN))
    rollouts, _ = trainer.sample([grpo.Asked("red", one_colour(255, 0, 0))], 2, seed=3)
    advantage_B1 = torch.tensor([[1.0], [-3.0]])
    start_BP = trainer.start.score(rollouts).raw_BP.detach()
    loss, measured = trainer.loss(rollouts, advantage_B1, start_BP)
    assert loss.item() == pytest.approx(1.0, abs=1e-3)
    assert measured["clipped"].item() == 0
    assert measured["kl"].item() == pytest.approx(0, abs=1e-6)
    for one in rollouts:
        one.policy[:] -= np.float32(np.log(2))
    loss, measured = trainer.loss(rollouts, advantage_B1, start_BP)
    assert loss.item() == pytest.approx((-1.2 + 6.0) / 2, abs=1e-2)
    assert measured["clipped"].item() == 1


@pytest.mark.slow
def test_a_toy_gets_brighter(grpo):
    """Thirty updates: the mean grey level of pictures of 16 codes rises, of other seeds, too."""
    model = toy_model(max_text_tokens=12)
    options = grpo.parse(
        [*PLAIN, "--learning-rate", "0.01", "--group", "16", "--updates", "1", "--kl", "0"]
    )
    trainer = grpo.GRPO(
        model, lambda pictures, asked: [float(one.mean()) for one in pictures], options
    )
    asked = [grpo.Asked("red", one_colour(255, 0, 0)), grpo.Asked("blue", one_colour(0, 0, 255))]
    before = trainer.sample(asked, 32, seed=999)[1].mean()
    for step in range(30):
        trainer.step(asked, seed=step)
    after = trainer.sample(asked, 32, seed=999)[1].mean()
    assert after > before + 30, (before, after)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A run of one step of the recipe `tiny`, on six pictures."""
    folder = tmp_path_factory.mktemp("grpo")
    pictures = folder / "pictures"
    pictures.mkdir()
    for index in range(6):
        save_png(pictures / f"{index}.png", one_colour(40 * index, 255 - 40 * index, 0))
        (pictures / f"{index}.txt").write_text(f"square {index}")
    registry = load_registry()
    recipe = compose(
        "tiny",
        [
            "dataset=folder",
            f"dataset.path={pictures}",
            "train.steps=1",
            "train.validation_documents=1",
            "train.batch_rows=1",
        ],
        registry=registry,
    )
    train(recipe, folder / "run", registry=registry)
    return folder / "run"


def test_the_script_runs_on_a_tiny_model(grpo, tiny, tmp_path):
    out = tmp_path / "out"
    arguments = ["--model", str(tiny), "--out", str(out), "--steps", "1", "--prompts", "1"]
    arguments += ["--group", "2", "--part", "1", "--updates", "1", "--validation-prompts", "1"]
    curve = grpo.run(grpo.parse(arguments))
    assert [one["step"] for one in curve] == [0, 1, 1]
    assert {"reward", "group_std", "kl", "clipped", "cpu_seconds"} <= set(curve[1])
    assert [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()] == curve
    assert {path.name for path in out.iterdir()} == {
        "before.png",
        "after.png",
        "curve.jsonl",
        "model",
    }
    before, after = (
        dict(cm3core.load(path).components.decoder.module.named_parameters())
        for path in (tiny, out / "model")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_an_unknown_prompt_is_refused(grpo, tiny, tmp_path):
    with pytest.raises(RecipeError) as error:
        grpo.run(grpo.parse(["--model", str(tiny), "--out", str(tmp_path), "--only", "a cat"]))
    assert tells(error.value, "--only: names no prompt of the data ... `cm3 data show`")


def test_another_models_decoder_is_not_exported(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="has weights of other names or shapes than") as error:
        export_model(tiny, tmp_path / "model", decoder=torch.nn.Linear(2, 2))
    assert tells(error.value, "...   next: export the decoder with the checkpoint")
    assert not (tmp_path / "model").exists()


def test_a_group_of_one_is_refused(grpo, capsys):
    with pytest.raises(SystemExit):
        grpo.parse(["--group", "1"])
    assert "--group takes 2 or more" in capsys.readouterr().err
