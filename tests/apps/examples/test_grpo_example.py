"""examples/grpo: rewards by hand, an update by hand, a toy that gets brighter, documents before prompts, and the whole
script on the recipe `tiny`, also stopped and resumed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

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
    before = trainer.sample(asked, 32, seed=999)[1]["reward"].mean()
    for step in range(30):
        trainer.step(asked, seed=step)
    after = trainer.sample(asked, 32, seed=999)[1]["reward"].mean()
    assert after > before + 30, (before, after)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A run of one step of the recipe `tiny`, on six pictures."""
    return tiny_run(tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def retrieving(tmp_path_factory) -> Path:
    """The same with two documents before each prompt."""
    own = ["retriever=bm25", "retriever.num_retrieved=2", "decoder.context_length=1024"]
    return tiny_run(tmp_path_factory.mktemp("retrieving"), *own)


def tiny_run(folder: Path, *overrides: str) -> Path:
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
            *overrides,
        ],
        registry=registry,
    )
    train(recipe, folder / "run", registry=registry)
    return folder / "run"


@pytest.mark.slow
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
        "state.safetensors",
        "model",
    }
    before, after = (
        dict(cm3core.load(path).components.decoder.module.named_parameters())
        for path in (tiny, out / "model")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


SMALL = [
    "--prompts",
    "1",
    "--group",
    "2",
    "--part",
    "1",
    "--updates",
    "1",
    "--validation-prompts",
    "1",
]


@pytest.mark.slow
def test_a_stopped_run_ends_like_one_in_one_go(grpo, tiny, tmp_path, capsys, monkeypatch):
    def run(out: Path) -> list[dict[str, float]]:
        arguments = ["--model", str(tiny), "--out", str(out), "--steps", "2", *SMALL]
        return grpo.run(grpo.parse([*arguments, "--learning-rate", "0.01"]))

    whole = run(tmp_path / "whole")
    step, calls = grpo.GRPO.step, []

    def stopped(self, asked, seed):
        calls.append(seed)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(self, asked, seed)

    with monkeypatch.context() as patch:
        patch.setattr(grpo.GRPO, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts")
    parts = run(tmp_path / "parts")
    assert "resumes after step 1" in capsys.readouterr().err
    for one in (*whole, *parts):
        del one["cpu_seconds"]
    assert parts == whole
    first, second = (
        dict(cm3core.load(tmp_path / name / "model").components.decoder.module.named_parameters())
        for name in ("whole", "parts")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_run_is_not_resumed_with_other_options(grpo, tiny, tmp_path):
    arguments = ["--model", str(tiny), "--out", str(tmp_path / "out"), "--steps", "1", *SMALL]
    grpo.run(grpo.parse(arguments))
    with pytest.raises(RecipeError) as error:
        grpo.run(grpo.parse([*arguments, "--learning-rate", "0.5"]))
    assert tells(error.value, "...out: is a run with other options ... (--out)")


@pytest.mark.slow
def test_documents_are_no_other_versions_of_what_is_asked_for(grpo, retrieving, monkeypatch):
    """With pictures of the same group and collection left out; the documents are coded, and their pictures told."""
    model = cm3core.load(retrieving)
    source = model.components.source
    monkeypatch.setattr(type(source), "group", lambda self, index: str(index // 3))
    prompts = grpo.Prompts(model, 2)
    retrieved = []
    for index in range(len(prompts)):
        asked = prompts.asked(index)
        assert asked.id == source.id(index)
        assert len(asked.shown) == len(asked.documents) == 2
        assert asked.shown[0].shape == (*model.image_size, 3)
        retrieved.append({grpo.text_of(one) for one in asked.documents})
    for index, texts in enumerate(retrieved):
        own = {
            grpo.text_of(source.document(other)) for other in range(6) if other // 3 == index // 3
        }
        assert not texts & own
    trainer = grpo.GRPO(model, grpo.redness, grpo.parse(["--kl", "0"]))
    rollouts, _ = trainer.sample([prompts.asked(0)], 2, seed=1)
    assert [len(one.request.retrieved) for one in rollouts] == [2, 2]


def test_other_values_of_a_reward_are_told(grpo):
    model = toy_model(max_text_tokens=12)

    def reward(pictures, asked):
        return {"reward": np.arange(len(pictures)), "copy": np.ones(len(pictures))}

    trainer = grpo.GRPO(
        model, reward, grpo.parse([*PLAIN, "--kl", "0", "--group", "2", "--updates", "1"])
    )
    told = trainer.step([grpo.Asked("red", one_colour(255, 0, 0))], seed=3)
    assert (told["reward"], told["copy"], told["kl"]) == (0.5, 1.0, 0.0)


def test_the_reward_of_icons_by_hand(grpo, monkeypatch):
    """Of four drawings in turn: all right; another thing, in the hand; the thing, halfway to the hand; a document again."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import icon_reward

    class Stub:
        def things(self, pictures, asked):
            return [(1, ""), (10, ""), (1, ""), (1, "")]

        def hand_margins(self, pictures, asked):
            return [0.1, 0.0, -icon_reward.FAR / 2, 0.1]

    monkeypatch.setattr(icon_reward, "icon_judge", Stub)
    monkeypatch.setattr(icon_reward, "icon_of", lambda judge, id: id)
    dot, dash = one_colour(255, 255, 255), one_colour(255, 255, 255)
    dot[20:40, 20:40] = dash[30:34, 4:60] = 0
    asked = [grpo.Asked("a dot", dot, "a/dot", (), [dot])] * 4
    found = icon_reward.usable([dash, dash, dash, dot], asked)
    assert found["reward"].tolist() == pytest.approx([1.0, 0.5, 0.5, 0.0])  # log 10 / log 100 = 1/2
    assert found["thing"].tolist() == pytest.approx([1.0, 0.5, 1.0, 1.0])
    assert found["hand"].tolist() == pytest.approx([1.0, 1.0, 0.5, 1.0])
    assert found["copy"].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert found["usable"].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    steps = [{"step": 0, "validation_reward": 0.1}, {"step": 1, "reward": 0.2, "copy": 0.0}]
    curve = tmp_path / "curve.jsonl"
    curve.write_text("".join(json.dumps(one) + "\n" for one in steps))
    command = [sys.executable, str(SCRIPT.with_name("curves.py")), str(curve), "-o"]
    subprocess.run([*command, str(tmp_path / "curves.png")], check=True)
    assert Image.open(tmp_path / "curves.png").size[0] > 300


@pytest.mark.extended
def test_real_drawings_of_icons_are_rewarded(monkeypatch):
    """Real ones in their own hand, more than the same in another one's place, and copies not at all."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import icon_reward
    from grpo import Asked

    judge = icon_reward.icon_judge()
    rows = judge.real.of_split("near").nonzero()[0][::200][:24]
    pictures = [judge.real.picture(row) for row in rows]
    ids = [judge.real.corpus.entries.ids[judge.real.indices[row]] for row in rows]
    asked = [Asked("", one, id) for one, id in zip(pictures, ids, strict=True)]
    own = icon_reward.usable(pictures, asked)
    assert own["usable"].mean() > 0.2  # of real ones a third
    others = icon_reward.usable(pictures[1:] + pictures[:1], asked)
    assert own["reward"].mean() > 3 * others["reward"].mean()
    copied = [Asked("", one.picture, one.id, (), [one.picture]) for one in asked]
    assert icon_reward.usable(pictures, copied)["reward"].max() < 0.01


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
