"""`cm3 experiment scaling` and `settings`: arms, tables by hand, and both end to end on a few icons."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from cm3apps.cli.main import main
from cm3core.errors import CM3Error
from cm3core.plugins import load_registry
from cm3lab.experiments.judged import DRAWINGS, TRAININGS, ScalingSettings
from cm3lab.experiments.judged.drawing import options_of
from cm3lab.experiments.judged.report import judged_tables, losses, mean
from cm3lab.experiments.judged.scaling import ScalingExperiment
from cm3lab.experiments.options import Compared
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3run.model import load
from messages import tells

REGISTRY = load_registry()
CORPUS = ["dataset.sets=[ph]", "dataset.things_share=0.05"]
SMALL = [
    *("train.num_threads=1", "train.validation_documents=2", "train.log_every_steps=1"),
    *CORPUS,
]


def experiment(out: Path) -> ScalingExperiment:
    compared = Compared("quickstart", tuple(TRAININGS), (0,), "cm3 ...")
    settings = ScalingSettings(("restyle",), 2, steps=600)
    return ScalingExperiment(REGISTRY, out, compared, settings)


@pytest.mark.parametrize("arm", TRAININGS)
def test_trainings_are_of_the_stated_size(arm: str, tmp_path: Path) -> None:
    """Parameters, and tokens of all steps, which are the same for every number of documents."""
    recipe = experiment(tmp_path).recipe(arm, 7)
    assert recipe.decoder is not None
    vocabulary = CM3LeonVocabulary(1024, 768, 32, 0, 8)
    number = recipe.decoder.num_parameters(vocabulary, (8, 8))
    assert number is not None
    stated = int(arm.split("m")[0]) if arm[0].isdigit() else 3
    assert 0.8 * stated <= number / 1e6 <= 1.2 * stated
    assert (recipe.train.seed, recipe.train.minutes) == (7, None)
    assert recipe.train.steps == (150 if arm.endswith("quarter") else 600)
    assert recipe.retriever is not None
    wanted = int(arm[-1]) if arm.startswith("documents") else 2
    assert recipe.retriever.num_retrieved == wanted
    tokens = recipe.train.batch_rows * recipe.decoder.context_length
    assert tokens == (3888 if arm.startswith("documents") else 4032)


def run(arm: str, seed: int, usable: float, loss: float) -> dict[str, Any]:
    names = ("usable", "thing", "thing_top5", "in_hand", "copied")
    values = {name: [usable, 4.0] for name in names}
    beside = dict.fromkeys(("real", "thing copied", "hand copied"), values)
    curve = [{"step": 1, "tokens": 5e5, "validation/restyle/image_loss": loss}]
    return {
        **{"arm": arm, "seed": seed, "curve": curve, "parameters": 1_070_000, "tokens": 2_000_000},
        **{"seconds": 90.0, "judged": {"restyle": {"scores": values, "beside": beside}}},
    }


def test_tables_by_hand() -> None:
    runs = [run("1m", 0, 10, 1.25), run("1m", 1, 14, 1.75), run("3m", 0, 20, 1.0)]
    titles = {name: arm.title for name, arm in TRAININGS.items()}
    assert losses(runs, titles)[4:7] == [
        "| trained | parameters | million tokens | minutes | restyle |",
        "| --- | --- | --- | --- | --- |",
        "| 1M parameters | 1.1M | 2.00 | 2 ± 0 | 1.500 ± 0.354 |",
    ]
    table = judged_tables(runs, titles)
    assert table[4] == "| 1M parameters | 12 ± 3 | 12 ± 3 | 12 ± 3 | 12 ± 3 | 12 ± 3 |"
    assert table[5] == "| 3M parameters | 20 ± 4 | 20 ± 4 | 20 ± 4 | 20 ± 4 | 20 ± 4 |"
    assert table[6].startswith("| *real* | 10 ± 4 |")
    assert mean([[5.0, None]], 1) == "5.0"


@pytest.mark.parametrize("arm", DRAWINGS)
def test_settings_are_those_of_a_call(arm: str) -> None:
    """Each is valid for the recipe's model; and one of four is told from one."""
    options = dict(DRAWINGS[arm].options)
    own = None if arm == "recipe" else 4 if arm.endswith("-of-4") else 1
    assert options.pop("num_candidates", None) == own
    assert options.pop("num_retrieved", None) == (
        int(arm[-1]) if arm.startswith("documents") else None
    )
    sampler = options.pop("sampler", None)
    assert sampler is None or sampler in REGISTRY.names("sampler")
    assert options in ({}, {"guidance_scale": float(arm.split("-")[1]) if options else 0})


def test_an_unknown_arm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "scaling", "--arms", "2m", "-o", "x"]) == 2
    tells(capsys.readouterr().err, "error: cm3 experiment scaling: there is no arm '2m'")


@pytest.mark.slow
def test_all_stages_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training is judged; its model is drawn with under other settings; nothing is done twice."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "scaling"
    arguments = [
        *("experiment", "scaling", "--arms", "1m-quarter", "--steps", "8", "--num", "2"),
        *("--splits", "restyle", "-o", str(out), *SMALL),
    ]
    assert main(arguments) == 0
    [found] = json.loads((out / "results.json").read_text())["runs"]
    assert (found["arm"], found["seed"], found["steps"]) == ("1m-quarter", 0, 2)
    assert set(found["judged"]) == {"restyle"}
    report = (out / "report.md").read_text()
    typed = [
        *("cm3", "experiment", "scaling", "--recipe", "quickstart", *arguments[2:4]),
        *("--seeds", "0", *arguments[4:]),
    ]
    assert f"`{shlex.join(typed)}`" in report, "who reads it can repeat it"
    assert (out / "loss.png").stat().st_size > 0
    folder = out / "1m-quarter-0"
    assert (folder / "judged" / "restyle" / "verdicts.png").stat().st_size > 0
    before = (out / "parts" / "1m-quarter-0.json").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (out / "parts" / "1m-quarter-0.json").stat().st_mtime_ns == before

    capsys.readouterr()
    drawn, arms = tmp_path / "settings", ("unguided", "cd-k", "both-3-of-4", "documents-3")
    settings = [
        *("experiment", "settings", str(folder / "run"), "--num", "2", "--splits", "restyle"),
        *("--arms", *arms, "-o", str(drawn)),
    ]
    assert main(settings) == 0
    runs = json.loads((drawn / "results.json").read_text())["runs"]
    assert [one["arm"] for one in runs] == list(arms)
    asked = json.loads((drawn / "cd-k-1" / "restyle" / "protocol.json").read_text())["model"]
    assert asked["sampler"]["name"] == "cd_k"
    assert "| contrastive, CD-K |" in (drawn / "report.md").read_text()


@pytest.mark.parametrize("arm", [arm for arm, one in DRAWINGS.items() if "sampler" in one.options])
def test_second_streams_hide_the_same_as_the_recipes(arm: str) -> None:
    model = load("bundled:icons64-hands")
    options = options_of(model, arm)
    del options["num_candidates"]  # of the call
    config = model.sampler_config(options.pop("sampler"), **options)
    has_one_stream = arm.startswith("unguided")
    hidden = getattr(config, "null_prompt", None)
    assert hidden == (None if has_one_stream else "mask_no_retrieved")


@pytest.mark.slow
def test_a_model_of_other_pictures_is_refused() -> None:
    from cm3lab.experiments.judged.judging import check_judged

    model = load("bundled:emoji64", device="cpu", num_threads=1)
    with pytest.raises(CM3Error) as caught:
        check_judged(model, "cm3 experiment settings")
    tells(
        caught.value,
        "cm3 experiment settings: the model's data set is not icons without colour, held out by closed splits ... "
        "next: use a model of recipe quickstart",
    )
