"""Judging one model's icons under one setting, by `cm3 eval`: the folder is that of an evaluation, so an interrupted one
resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cm3apps.evaluation.evaluating import Evaluation
from cm3apps.evaluation.tasks import open_task
from cm3apps.quickstart.judged import declared, judged_split, protocol_of, remembering
from cm3core.errors import CM3Error
from cm3lab.experiments.judged import JudgedSettings
from cm3run.model import Model

#: Score of the metric `usable` -> its title in tables.
SCORES: Mapping[str, str] = {
    "usable": "usable",
    "thing": "thing",
    "thing_top5": "first five",
    "in_hand": "hand",
    "copied": "copy",
}
#: What icons are compared with, in the table.
BESIDE = ("real", "thing copied", "hand copied")


def check_judged(model: Model, place: str) -> None:
    """Raise `CM3Error` if the judge does not know the model's data set."""
    config = model.recipe.dataset
    scores = [] if config is None else [score for one in declared(config) for score in one.scores]
    if not any(one["metric"]["name"] == "usable" for one in scores):
        raise CM3Error(
            place,
            "the model's data set is not icons without colour, held out by closed splits, which the judge knows",
            "use a model of recipe quickstart, icons-ink or icons-svg, or `cm3 eval MODEL FOLDER` for other pictures",
        )


def judged(
    model: Model, settings: JudgedSettings, options: Mapping[str, Any], out: Path
) -> dict[str, dict[str, Any]]:
    """Split -> {"scores": name -> [percent, standard error], "beside": row -> name -> [percent, standard error]}.

    Args:
        model: the model, whose data set the judge knows.
        settings: what is drawn.
        options: keyword arguments of the model's methods.
        out: gets a folder of `cm3 eval` for each split.
    """
    found = {}
    config = model.recipe.dataset
    assert config is not None
    for split in settings.splits:
        known = judged_split(config, split)
        protocol = protocol_of(model, known, settings.num)
        if protocol is None:
            raise CM3Error(
                f"split {split!r}", "has no icon in this model's data set", "leave it out"
            )
        only = [one for one in protocol.scores if one["metric"]["name"] == "usable"]
        protocol = replace(protocol, name=f"judged-{split}", scores=only, seed=settings.seed)
        asked, registry = remembering(model, known), model.components.registry
        task = open_task(
            protocol.task, size=protocol.size, data=None, model=asked, registry=registry
        )
        evaluation = Evaluation(
            protocol,
            task,
            registry,
            out / split,
            model=asked,
            options=dict(options),
            label="model",
        )
        rows = {row["name"]: row for row in evaluation.run()["scores"]}
        found[split] = {
            "scores": {name: [rows[name]["value"], rows[name]["spread"]] for name in SCORES},
            "beside": {
                row: {
                    name: [rows[name]["beside"][row], rows[name]["beside_spread"][row]]
                    for name in SCORES
                }
                for row in BESIDE
            },
        }
    return found
