"""`cm3 experiment tuning`: end to end with a tiny model, its pieces by hand, and what it refuses."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm3apps.cli.main import main
from cm3apps.cli.tune import tuning_recipe
from cm3apps.evaluation.icons import style_classifier
from cm3core.errors import CM3Error
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3lab.experiments.options import Compared
from cm3lab.experiments.tasks import told
from cm3lab.experiments.tuning import ARMS, TuningSettings, experiment, responses, speed
from cm3lab.experiments.tuning import command as command_line
from cm3lab.experiments.tuning.experiment import TuningExperiment
from cm3lab.experiments.tuning.report import mean_losses
from cm3run.model import load
from cm3run.training import train
from messages import tells

TINY = """
extends: [icons]
text_tokenizer: {vocab_size: 300}
image_tokenizer: patches
embedder: null
retriever: null
reranker: null
upscaler: null
decoder: {num_layers: 1, d_model: 32, num_heads: 1, context_length: 300}
dataset: {name: icons, things_share: 0.003, image_size: 32}
data: {max_text_tokens: 100}
generate: {num_candidates: 1}
train: {steps: 1, batch_rows: 2, num_threads: 1, validation_splits: [], validate_every_steps: 1000}
"""
MIXED = """
dataset:
  name: mixture
  parts:
    draw: {name: icons, things_share: 0.01, image_size: 32}
    edit: {name: icon_tasks, form: edit, things_share: 0.01, image_size: 32}
    answer: {name: icon_tasks, form: question, things_share: 0.01, num_scenes: 20, image_size: 32}
  tasks: {edit: edit, answer: vqa}
  memory: draw
train: {steps: 1, batch_rows: 2, learning_rate: 1.0e-2, validation_splits: []}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, and the recipe that tunes it."""
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "mixed.yaml").write_text(MIXED)
    registry = load_registry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CM3_CACHE", str(folder / "cache"))
        train(compose(str(folder / "tiny.yaml"), [], registry=registry), folder / "base", registry)
    return folder


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("CM3_CACHE", str(folder / "cache"))
    for name, value in {"NUM_TRAINED": 64, "NUM_HELD_OUT": 8, "EPOCHS": 1}.items():
        monkeypatch.setattr(style_classifier, name, value)
    monkeypatch.setattr(told, "_COUNTED", 20)
    own = ["--base", str(folder / "base"), "--recipe", str(folder / "mixed.yaml")]
    more = ["--documents", "3", "--num", "2", "--splits", "unseen", "--minutes", "0.0001"]
    return ["experiment", "tuning", *own, *more]


@pytest.mark.slow
def test_all_stages_and_again(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = ["-o", str(tmp_path / "out")]
    short = [*command, "--arms", "full", "lora"]
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "train", stopped)
        assert main([*short, *out]) == 130
    assert "resume with: cm3 experiment tuning --recipe" in capsys.readouterr().err
    assert main([*short, *out]) == 0
    first = json.loads((tmp_path / "out" / "figures.json").read_text())
    with monkeypatch.context() as patch:  # nothing of it is done again
        patch.setattr(experiment, "step_cost", stopped)
        patch.setattr(responses, "losses", stopped)
        assert main([*short, *out]) == 0
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == first
    assert main([*command, "--arms", "full", "paper-layout", *out]) == 0  # more arms
    full, paper = json.loads((tmp_path / "out" / "figures.json").read_text())["runs"]
    assert full == first["runs"][0]
    assert set(first["costs"]) == {"full", "lora"}
    lora = first["costs"]["lora"]
    assert (
        lora["trained"] < first["costs"]["full"]["trained"] == lora["parameters"] - lora["trained"]
    )
    parts = {f"unseen/{part}" for part in ("draw", "edit", "answer")}
    assert set(first["before"]) == set(full["losses"]) == set(paper["losses"]) == parts
    for part in parts:
        assert list(full["losses"][part]) == list(paper["losses"][part]), "the same documents"
    assert full["losses"]["unseen/edit"] != first["before"]["unseen/edit"]
    assert full["tasks"]["answer"]["unseen"]["num"] == 2
    assert set(full["tasks"]) == {"edit", "answer"}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| unseen | answer | 3 |" in report
    assert f"| `full`: all parameters | {first['costs']['full']['trained']:,.0f} |" in report
    assert main([*command, "--seeds", "1", "--minutes", "2", *out]) == 2
    assert tells(
        capsys.readouterr().err,
        "... has the results of another measurement (different: settings minutes)",
    )


def stopped(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.usefixtures("command")
def test_what_arms_change(folder: Path, tmp_path: Path) -> None:
    settings = TuningSettings(
        str(folder / "base"),
        1.0,
        2,
        0,
        ("unseen",),
        (),
        ("train.warmup_steps=7",),
        {"lora": ["tune.rank=3", "tune.method=dora"]},
    )
    one = TuningExperiment(
        load_registry(),
        tmp_path,
        Compared(str(folder / "mixed.yaml"), tuple(ARMS), (0,), "cm3"),
        settings,
    )
    found = {arm: one.recipe(arm, 3, 50) for arm in ARMS}
    assert {arm: own.tune.method for arm, own in found.items()} == {
        **dict.fromkeys(ARMS, "full"),
        "lora": "dora",
        "dora": "dora",
        "head": "head",
    }
    assert found["lora"].tune.rank == 3
    assert [arm for arm, own in found.items() if own.objective.response_only] == ["response-only"]
    layouts = {arm: own.dataset.tasks["answer"].layout for arm, own in found.items()}
    assert layouts == {**dict.fromkeys(ARMS, "answer_last"), "paper-layout": "paper"}
    assert {
        (own.train.seed, own.train.steps, own.train.warmup_steps) for own in found.values()
    } == {(3, 50, 5)}
    assert one.recipe("full", 3, 500).train.warmup_steps == 7


@pytest.mark.slow
@pytest.mark.usefixtures("command")
def test_losses_are_those_of_prompts(folder: Path) -> None:
    """Sums of log-probabilities that the framework's own likelihood of filled prompts gives, in both layouts;
    alone and packed."""
    model = load(folder / "base", num_threads=1)
    registry = load_registry()
    for layout in ("answer_last", "paper"):
        overrides = [f"dataset.tasks.{name}.layout={layout}" for name in ("edit", "answer")]
        recipe = tuning_recipe(
            str(folder / "base"), str(folder / "mixed.yaml"), overrides, registry
        )
        found = responses.asked(recipe, model, ["unseen"], 3)
        assert [one.part for one in found] == ["draw"] * 3 + ["edit"] * 3 + ["answer"] * 3
        packed = responses.losses(found, model, 2)
        assert packed == pytest.approx(responses.losses(found[::-1], model, 1)[::-1], rel=1e-4)
        for one, nats in list(zip(found, packed, strict=True))[3:]:
            weights = one.sequence.weights
            tokens = torch.from_numpy(one.sequence.tokens.astype(np.int64))[None]
            decoder = model.components.decoder
            with torch.inference_mode():
                hidden = decoder.hidden_states(
                    tokens[:, :-1],
                    positions_BT=torch.arange(tokens.shape[1] - 1)[None],
                    cells_BT=torch.from_numpy(one.sequence.cells[:-1].astype(np.int64))[None],
                    kv_start_BT=torch.zeros(1, tokens.shape[1] - 1, dtype=torch.int64),
                )
                log_p = decoder.logits(hidden[0]).float().log_softmax(1)
            right = log_p.gather(1, tokens[0, 1:, None])[:, 0].numpy()
            assert nats == pytest.approx(-(right * weights[1:]).sum(), rel=1e-4)
            counted = one.sequence.tokens[weights > 0]
            vocabulary = model.components.vocabulary
            if one.part == "edit":  # the target's codes alone
                assert len(counted) == model.components.serializer.num_codes
                assert vocabulary.is_image(counted).all()
            else:  # the answer and its end, nothing of the question
                assert vocabulary.is_text(counted[:-1]).all()
                end = vocabulary.eos if layout == "answer_last" else vocabulary.end_of_infill
                assert counted[-1] == end


def test_differences_by_hand() -> None:
    assert responses.difference({"a": 3.0, "b": 1.0}, {"a": 2.0, "b": 2.0, "c": 0.0}) == (
        0.0,
        1.0,
        2,
    )
    assert np.isnan(responses.difference({"a": 1.0}, {"b": 1.0})[0])
    runs = [{"losses": {"s/p": {"a": 1.0}}}, {"losses": {"s/p": {"a": 4.0}}}]
    assert mean_losses(runs) == {"s/p": {"a": 2.5}}


def test_kept_bytes_by_hand() -> None:
    """tanh keeps its result, a product both factors but no parameter; a view costs nothing more."""
    weight = torch.ones(4, 4, requires_grad=True)
    given = torch.ones(2, 4)
    with speed.KeptBytes([weight]) as kept:
        product = given @ weight  # keeps `given`: 32 bytes
        result = product.tanh()  # keeps the result: 32 bytes
        loss = (result.view(8) ** 2).sum()  # keeps a view of it
    assert kept.peak == 64
    loss.backward()
    wanted = given.T @ (2 * result * (1 - result**2))
    assert torch.allclose(weight.grad, wanted, rtol=1e-3)
    assert kept._bytes == 0


def test_unknown_arms() -> None:
    with pytest.raises(CM3Error) as error:
        command_line.run(Namespace(arms=["full", "lorra"], own=[]))
    assert tells(error.value, "cm3 experiment tuning: there is no ... 'lorra' ... 'lora'")
