"""`cm3 experiment settings`: trained models under several settings of generation. Nothing is trained.

<arm>-<number>/<split>/  evaluations of model `number` (from 1)
results.json, report.md  everything together
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cm3apps.evaluation.made import model_keys
from cm3apps.evaluation.results import ResultFolder
from cm3core.files import write_text
from cm3lab.experiments.judged import DRAWINGS, JudgedSettings
from cm3lab.experiments.judged.judging import check_judged, judged
from cm3lab.experiments.judged.report import judged_tables, write_report
from cm3run.model import Model

TITLES = {name: arm.title for name, arm in DRAWINGS.items()}


def draw(
    models: Sequence[Model],
    arms: Sequence[str],
    settings: JudgedSettings,
    out: Path,
    command: str,
) -> Path:
    """Draw and judge; return the report's path.

    Args:
        models: alike, of trainings with other seeds.
        arms: names of `DRAWINGS`.
        settings: what is drawn.
        out: the folder of all results.
        command: quoted in the report.
    """
    for model in models:
        check_judged(model, "cm3 experiment settings")
    keys = [model_keys(model, {})["weights_sha256"] for model in models]
    results = ResultFolder(out, {"weights": keys}, settings)
    runs: list[dict[str, Any]] = []
    for number, model in enumerate(models, start=1):
        for arm in arms:
            print(f"model {number} of {len(models)}: {TITLES[arm]}", file=sys.stderr)
            name = f"{arm}-{number}"
            measure = partial(judged, model, settings, options_of(model, arm), out / name)
            own = results.figures(name, measure)
            runs.append({"arm": arm, "seed": number, "judged": own})
            facts = {"weights": keys, "settings": asdict(settings), "runs": runs}
            write_text(out / "results.json", json.dumps(facts, indent=1) + "\n")
            report = write_report(
                out, "Settings of generation", command, judged_tables(runs, TITLES), number
            )
    return report


def options_of(model: Model, arm: str) -> dict[str, Any]:
    """An arm's options. All samplers hide the same from their second stream as the recipe's, or the arms would differ in
    that, too."""
    options = dict(DRAWINGS[arm].options)
    hidden = getattr(model.recipe.sampler, "null_prompt", None)
    named = options.get("sampler")
    if hidden is not None and named and hasattr(model.sampler_config(named), "null_prompt"):
        options.setdefault("null_prompt", hidden)
    return options
