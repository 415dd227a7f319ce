"""`cm3 experiment retrieval`, end to end on a few pictures: stages run, leave files, are not done
twice; what is measured."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3lab.experiments.retrieval import ARMS
from cm3lab.experiments.retrieval.conditions import Condition, Measurement
from cm3lab.experiments.retrieval.experiment import curve
from cm3lab.experiments.retrieval.report import equal_time, gain, predicted
from cm3run.build import build
from cm3run.training.preparation import Preparation
from messages import tells

SMALL = [
    "decoder.num_layers=1",
    "decoder.d_model=32",
    "decoder.num_heads=1",
    "train.num_threads=1",
    "train.log_every_steps=1",
    "train.validation_documents=2",
    "train.validate_every_steps=1",
    "dataset.sets=[ph]",
    "dataset.things_share=0.012",
]


@pytest.fixture
def overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The experiment on a few icons, some held out entirely, with its own cache folder."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    return list(SMALL)


@pytest.mark.slow
def test_all_stages_and_again(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [
        "experiment",
        "retrieval",
        "--arms",
        "none",
        "dense-2",
        "--steps",
        "2",
        "--documents",
        "2",
        "--pictures",
        "2",
        "-o",
        str(out),
        *overrides,
    ]
    assert main(arguments) == 0
    results = json.loads((out / "results.json").read_text())
    none, dense = results["runs"]
    assert (none["arm"], dense["arm"], none["steps"], dense["steps"]) == ("none", "dense-2", 2, 2)
    assert none["tokens"] == pytest.approx(dense["tokens"], rel=0.2)
    assert set(none["losses"]) == set(dense["losses"])
    names = {
        "comp",
        "unseen",
        "comp/own/own/1",
        "comp/train/dense/1",
        "unseen/all/bm25/3",
        "comp/all/random/2",
    }
    assert names <= set(none["losses"])
    assert all(np.isfinite(list(run["losses"].values())).all() for run in (none, dense))
    assert all(
        point["tokens"] > 0 and "validation/comp/image_loss" in point for point in none["curve"][1:]
    )
    assert "validation/unseen/image_loss_retrieved" in dense["curve"][-1]
    assert set(dense["drawn"]["unseen"]) == {
        "kid",
        "real_kid",
        "floor",
        "floor_spread",
        "r5",
        "real_r5",
        "copy_r5",
        "finish",
        "real_finish",
        "copy_finish",
    }
    report = (out / "report.md").read_text()
    typed = [
        *("cm3", *arguments[:2], "--recipe", "retrieval-gain"),
        *(*arguments[2:5], "--seeds", "0", *arguments[5:]),
    ]
    assert f"`{shlex.join(typed)}`" in report, "who reads it can repeat it"
    assert set(dense["drawn"]) == {"comp", "unseen"}
    drawn = dense["drawn"]["unseen"]
    assert drawn["real_r5"] == 1.0, "codes keep what tells one picture from the others"
    assert 0 <= drawn["r5"] < 1, "two steps teach nothing"
    assert none["drawn"]["unseen"]["copy_r5"] is None
    for name in ("curves.png", "pictures-unseen.png"):
        assert (out / name).stat().st_size > 0
        assert f"({name})" in report
    assert "| dense, 2 documents | 2 |" in report
    with np.load(out / "dense-2-0" / "drawn.npz", allow_pickle=False) as file:
        assert file["unseen_drawn"].shape == (2, 64, 64, 3)
    kept = [out / "dense-2-0" / name for name in ("losses.json", "drawn.npz")]
    before = [path.stat().st_mtime_ns for path in kept]
    assert main(arguments) == 0, "the same command again only writes the report"
    assert before == [path.stat().st_mtime_ns for path in kept]
    assert f"done: open {out / 'report.md'}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_condition_measures_the_query_alone(overrides: list[str]) -> None:
    """The same tokens count whatever is prepended; a query's own picture never is; memories
    differ as documented."""
    registry = load_registry()
    recipe = compose("retrieval-gain", [*overrides, "retriever.num_retrieved=1"], registry=registry)
    assert recipe.retriever is not None
    preparation = Preparation(build(recipe, registry, stage="train"), progress=False)
    measurement = Measurement(preparation, {"dense": recipe.retriever}, ("comp", "unseen"), 8)
    own = measurement.sources["unseen"]
    counted = {}
    for memory, number in (("", 0), ("train", 3), ("all", 1)):
        condition = Condition("unseen", memory, "dense" if number else "", number)
        batches = measurement._batches(condition)
        counted[condition.name] = sum(
            int(((batch.weights_BT > 0) & (batch.modality_BT == 2)).sum()) for batch in batches
        )
        assert np.isfinite(measurement.loss(condition))
    assert set(counted.values()) == {64 * len(own)}, "64 codes of each query, and no others"
    memory = measurement.memories["all"]
    found = measurement.retriever("all", "dense").retrieve([own.document(0)], 3, [{own.id(0)}])[0]
    assert own.id(0) not in {memory.id(one.index) for one in found}
    trained = {
        measurement.memories["train"].id(index)
        for index in range(len(measurement.memories["train"]))
    }
    assert not trained & {own.id(index) for index in range(len(own))}


def test_the_gain_by_hand() -> None:
    """Differences are within a seed: those of two seeds are -0.1 and -0.3, whatever the seeds' own
    levels."""
    runs: list[dict[str, Any]] = []
    for seed, level in ((0, 2.0), (1, 3.0)):
        runs.append(
            {"arm": "none", "seed": seed, "losses": {"comp": level, "comp/all/dense/1": 9.0}}
        )
        better = 0.1 if seed == 0 else 0.3
        runs.append(
            {
                "arm": "dense-1",
                "seed": seed,
                "losses": {"comp": level + 0.05, "comp/all/dense/1": level - better},
            }
        )
    lines = gain(runs, ["comp"])
    assert (
        lines[6] == "| split | trained with | nothing prepended | memory all | the answer itself |"
    )
    assert lines[8] == "| comp | no documents | 2.500 ± 0.707 | – | – |"
    assert (
        lines[9]
        == "| comp | dense, 1 document | 2.550 ± 0.707 (+0.050 ± 0.000) | 2.300 ± 0.566 (-0.200 ± 0.141) | – |"
    )
    assert "(-" not in gain(runs[1:2], ["comp"])[8], "nothing to compare with"


def test_what_decoders_gain_stands_beside_what_counting_gains() -> None:
    """By hand: 2.0 - 1.5 and 2.2 - 1.5 of the two decoders trained with one such document, 0.6 on average."""
    told = {"comp/all/bm25": {"same": 0.5, "without": 2.0, "with_document": 1.0}}
    runs = [
        {"arm": arm, "losses": {"comp": own, "comp/all/bm25/1": 1.5}}
        for arm, own in (("bm25-1", 2.0), ("bm25-1", 2.2), ("none", 9.0), ("bm25-2", 9.0))
    ]
    assert predicted(told, runs)[-2].endswith("| +1.000 | 0.600 ± 0.141 |")


def test_equal_time_by_hand() -> None:
    """The fast arm ends after 60 s; the slow one is then half-way between 3.0 and 2.0 of its own documents."""

    def run(arm: str, suffix: str, *points: tuple[float, float]) -> dict[str, Any]:
        name = f"validation/comp/image_loss{suffix}"
        return {"arm": arm, "curve": [{"elapsed_s": at, name: loss} for at, loss in points]}

    fast = run("none", "", (30.0, 2.5), (60.0, 2.25))
    slow = run("bm25-1", "_retrieved", (40.0, 3.0), (80.0, 2.0))
    slow["curve"][0]["validation/comp/image_loss"] = 9.0
    lines = equal_time([fast, slow], ["comp", "unseen"])
    assert "after 1.0 minutes" in lines[2]
    assert lines[5:9] == [
        "| trained with | comp |",
        "| --- | --- |",
        "| no documents | 2.250 |",
        "| bm25, 1 document | 2.500 |",
    ]
    assert equal_time([fast], ["comp"]) == [], "nothing to compare with"


def test_arms_differ_in_the_retriever_alone() -> None:
    registry = load_registry()
    recipes = {
        name: compose("retrieval-gain", list(arm.overrides), registry=registry)
        for name, arm in ARMS.items()
    }
    assert recipes["dense-3"].component_names["retriever"].endswith("dense")
    for name, recipe in recipes.items():
        recipe.check()
        assert recipe.retriever is not None
        assert recipe.retriever.num_retrieved == ARMS[name].num_retrieved
        for kind in ("decoder", "train", "objective", "embedder", "dataset"):
            assert getattr(recipe, kind) == getattr(recipes["none"], kind)


def test_a_curve_knows_the_tokens_before_each_validation(tmp_path: Path) -> None:
    lines = [
        {"step": 20, "tokens": 100.0, "elapsed_s": 1.0},
        {"step": 25, "validation/comp/image_loss": 3.0},
        {"step": 40, "tokens": 200.0, "elapsed_s": 2.0, "train/image_loss": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert curve(tmp_path) == [
        {"step": 25, "tokens": 100.0, "elapsed_s": 1.0, "validation/comp/image_loss": 3.0}
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--arms", "dense-9"],
            "cm3 experiment retrieval: there is no ... 'dense-9'",
        ),
        (
            ["--pictures", "1"],
            "cm3 experiment retrieval: --pictures is 1 ... use 2",
        ),
        (
            ["--steps", "0"],
            "cm3 experiment retrieval: argument --steps: is '0'",
        ),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "retrieval", *arguments]) == 2
    assert tells(capsys.readouterr().err, f"... {message}")


def test_names_become_no_markup_in_the_report() -> None:
    told = {"<b>/[m](x)/dense": {"same": 0.5, "without": 2.0, "with_document": 1.0}}
    row = predicted(told)[-2]
    assert row.endswith("| dense | 0.500 | 2.000 | 1.000 | +1.000 | – |")
    assert not set("<>[]") & set(row)
