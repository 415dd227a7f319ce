"""The plan of a sweep: which cells share a training, what is refused, and the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cm3apps.cli.main import main
from cm3apps.sweep.grid import Grid
from cm3apps.sweep.plan import Plan, check_claim, claim_folder, claim_of, plan_of
from cm3apps.sweep.protocols import protocol_for
from cm3core.errors import CM3Error, DataError, RecipeError
from cm3core.plugins.discovery import load_registry
from cm3run.evaluation.protocol import Protocol
from tests.fixtures.messages import tells

REGISTRY = load_registry()


def planned(*overrides: str, seeds: int = 1, subject: str = "tiny") -> Plan:
    return plan_of(subject, Grid.of(overrides), seeds, REGISTRY, is_model=False)


def test_cells_that_differ_only_in_generation_share_a_training() -> None:
    """Two learning rates, each drawn with two samplers, with two seeds: four trainings, and eight evaluations."""
    plan = planned("train.learning_rate=1e-3,2e-3", "sampler=top_p,cfg", seeds=2)
    shared = [[run.cell.label for run in runs] for runs in plan.trainings()]
    assert shared == [
        ["train.learning_rate=1e-3 sampler=top_p", "train.learning_rate=1e-3 sampler=cfg"],
        ["train.learning_rate=1e-3 sampler=top_p", "train.learning_rate=1e-3 sampler=cfg"],
        ["train.learning_rate=2e-3 sampler=top_p", "train.learning_rate=2e-3 sampler=cfg"],
        ["train.learning_rate=2e-3 sampler=top_p", "train.learning_rate=2e-3 sampler=cfg"],
    ]
    assert [run.seed for run in plan.runs] == [0, 1] * 4
    assert len({run.name for run in plan.runs}) == 8
    assert plan.drawn_differently() is not None
    assert not plan.only_draws_differently()


@pytest.mark.parametrize(
    "override",
    ["generate.max_text_tokens=8,9", "reranker=likelihood,pmi", "sampler.top_p=0.5,0.9"],
)
def test_what_training_does_not_use(override: str) -> None:
    plan = planned(override)
    assert len(list(plan.trainings())) == 1
    assert plan.shares_weights()


def test_training_and_what_is_retrieved_in_it_are_used() -> None:
    room = "decoder.context_length=768"
    for override in ("retriever=none,bm25", "train.steps=1,2", "dataset.concepts=quickstart,all"):
        assert len(list(planned(override, room).trainings())) == 2, override


def test_the_seed_is_the_only_difference_between_the_runs_of_a_cell() -> None:
    """So the order of the data is the same in all cells of a seed: it follows from train.seed."""
    plan = planned("train.learning_rate=1e-3,2e-3", "train.seed=5", seeds=3)
    assert plan.seeds == [5, 6, 7]
    for run in plan.runs:
        assert run.recipe.train.seed == run.seed
        assert run.overrides[-1] == f"train.seed={run.seed}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.steps=20", "decoder.num_heads=2,7"],
            "cell decoder.num_heads=7: decoder.num_heads: 7 heads don't divide",
        ),
        (["sampler=top_p,nonsense"], "cell sampler=nonsense: ... 'nonsense' ..."),
        (
            ["objective=cm3,causal", "reranker=likelihood", "generate.num_candidates=2"],
            "cell objective=causal: ...",
        ),
        (["objective=cm3,null"], "cell objective=null: objective: is not in the recipe"),
        (["train.seed=1,2"], "train.seed: is varied, but seeds are no cells ... --seeds N"),
        (
            ["train.learning_rate=1e-3,0.001"],
            "cell train.learning_rate=0.001: is the same recipe as 'train.learning_rate=1e-3'",
        ),
    ],
)
def test_a_wrong_cell_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(CM3Error) as error:
        planned(*overrides)
    assert tells(error.value, message)


def test_a_wrong_cell_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["sweep", "tiny", "retriever=none,bm25", "-o", str(out)]) == 2
    assert tells(
        capsys.readouterr().err.removeprefix("error: "),
        "cell retriever=bm25: decoder.context_length: is 384",
    )
    assert not out.exists()


def test_a_protocol_that_can_not_tell_cells_apart(tmp_path: Path) -> None:
    plan = planned("sampler.top_p=0.5,0.9")
    own = Protocol(
        "mine",
        "only likelihoods",
        {"name": "documents", "split": "comp"},
        [{"metric": {"name": "nats"}}],
        size=64,
    )
    path = tmp_path / "mine.json"
    path.write_text(own.text())
    with pytest.raises(DataError) as error:
        protocol_for(plan, str(path), None, REGISTRY)
    assert tells(error.value, "protocol mine: draws nothing ... differ only in how pictures")
    assert protocol_for(planned("train.steps=1,2"), str(path), None, REGISTRY) == own


@pytest.mark.slow
def test_the_default_measures_what_can_differ() -> None:
    def metrics(plan: Plan) -> list[str]:
        found = protocol_for(plan, None, 4, REGISTRY)
        assert found.task["split"] == "comp"
        assert found.task["num"] == 4
        return [score["metric"]["name"] for score in found.scores]

    assert metrics(planned("train.steps=1,2")) == ["held_out_loss"]
    drawn = metrics(planned("sampler.top_p=0.5,0.9"))
    assert "held_out_loss" not in drawn
    assert "judge" in drawn
    assert metrics(planned("train.steps=1,2", "sampler.top_p=0.5,0.9")) == ["held_out_loss", *drawn]


def test_data_that_hold_nothing_out() -> None:
    with pytest.raises(DataError) as error:
        protocol_for(planned("train.steps=1,2", "dataset.split=all"), None, None, REGISTRY)
    assert tells(error.value, "the recipe's data set: holds out no documents ... --protocol")


def claimed(folder: Path, *overrides: str, seeds: int = 1, protocol: str = "p") -> None:
    plan = planned(*overrides, seeds=seeds)
    own = Protocol(protocol, "t", {"name": "documents"}, [])
    claim_folder(folder, claim_of(plan, own), own)


def test_more_values_and_seeds_may_be_added(tmp_path: Path) -> None:
    claimed(tmp_path, "train.steps=1,2")
    claimed(tmp_path, "train.steps=1,2,3", seeds=2)
    assert len(json.loads((tmp_path / "sweep.json").read_text())["runs"]) == 6


@pytest.mark.parametrize(
    ("overrides", "protocol", "message"),
    [
        (["train.steps=1"], "p", "has a sweep with the cell ... which this one lacks"),
        (
            ["train.steps=1,2", "train.batch_rows=2"],
            "p",
            "has a sweep whose cell ... has another recipe",
        ),
        (["train.steps=1,2"], "other", "has a sweep that is measured by another protocol"),
    ],
)
def test_another_sweep_is_refused(
    overrides: list[str], protocol: str, message: str, tmp_path: Path
) -> None:
    claimed(tmp_path, "train.steps=1,2")
    before = (tmp_path / "sweep.json").read_text()
    with pytest.raises(CM3Error) as error:
        claimed(tmp_path, *overrides, protocol=protocol)
    assert tells(error.value, f"...{message}")
    assert (tmp_path / "sweep.json").read_text() == before


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(CM3Error) as error:
        check_claim(tmp_path, {})
    assert tells(error.value, "... is not empty, but has no sweep ... name another folder")


def test_seeds_of_a_trained_model() -> None:
    with pytest.raises(RecipeError) as error:
        plan_of("bundled:emoji64", Grid.of([]), 2, REGISTRY, is_model=True)
    assert tells(error.value, "--seeds: is 2, but bundled:emoji64 is a trained model")


def test_a_trained_model_is_not_trained_again() -> None:
    plan = plan_of(
        "bundled:emoji64", Grid.of(["sampler.temperature=0.5,1"]), 1, REGISTRY, is_model=True
    )
    assert plan.only_draws_differently()
    assert [run.training for run in plan.runs] == ["", ""]
    with pytest.raises(RecipeError) as error:
        plan_of("bundled:emoji64", Grid.of(["decoder.num_layers=2,3"]), 1, REGISTRY, is_model=True)
    assert tells(error.value, "cell decoder.num_layers=2: changes what is trained")
