"""`cm3 experiment scaling`: training by size, tokens and documents. Each stage stores its result, and is not repeated.

<arm>-<seed>/run/        the training: checkpoints, metrics, TensorBoard
<arm>-<seed>/judged/     evaluations, by split
results.json, report.md  everything together, and loss.png
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.evaluation.results import ResultFolder
from cm3core.files import write_text
from cm3lab.experiments.judged import TRAININGS, ScalingSettings
from cm3lab.experiments.judged.judging import check_judged, judged
from cm3lab.experiments.judged.report import judged_tables, losses, plot_curves, write_report
from cm3lab.experiments.retrieval.experiment import curve
from cm3run.model import load
from cm3run.training import train

if TYPE_CHECKING:
    from cm3core.plugins import Registry
    from cm3core.recipe import Recipe
    from cm3lab.experiments.options import Compared

#: Number of validations in a training.
_VALIDATIONS = 8
TITLES = {name: arm.title for name, arm in TRAININGS.items()}


class ScalingExperiment:
    """One experiment in one folder.

    Args:
        registry: the plugins.
        out: the folder of all results.
        compared: the trainings to compare.
        settings: how long is trained, and what is judged.
        device: for training and drawing; None: the GPU if there is one.
    """

    def __init__(
        self,
        registry: Registry,
        out: Path,
        compared: Compared,
        settings: ScalingSettings,
        *,
        device: str | None = None,
    ) -> None:
        self.registry, self.out, self.compared = registry, out, compared
        self.settings, self.device = settings, device

    def recipe(self, arm: str, seed: int) -> Recipe:
        """The recipe of one training."""
        from cm3core.recipe import compose

        steps = max(1, round(self.settings.steps * TRAININGS[arm].share))
        own = [
            f"train.seed={seed}",
            "train.minutes=null",
            f"train.steps={steps}",
            f"train.validate_every_steps={max(1, steps // _VALIDATIONS)}",
            *TRAININGS[arm].overrides,
        ]
        recipe = compose(
            self.compared.recipe, [*own, *self.settings.overrides], registry=self.registry
        )
        recipe.check()
        return recipe

    def run(self) -> Path:
        """Run all stages; return the report's path."""
        runs = [(arm, seed) for seed in self.compared.seeds for arm in self.compared.arms]
        recipes = {one: self.recipe(*one) for one in runs}  # checks all first
        facts: dict[str, Any] = {"recipe": self.compared.recipe}
        results = ResultFolder(self.out, facts, self.settings)
        facts |= {"settings": asdict(self.settings), "runs": []}
        for number, (arm, seed) in enumerate(runs, start=1):
            print(f"[{number}/{len(runs)}] {TITLES[arm]}, seed {seed}", file=sys.stderr)
            name = f"{arm}-{seed}"
            own = results.figures(name, partial(self._run, recipes[arm, seed], self.out / name))
            facts["runs"].append({"arm": arm, "seed": seed, **own})
            write_text(self.out / "results.json", json.dumps(facts, indent=1) + "\n")
            report = self._report(facts["runs"])
        return report

    def _run(self, recipe: Recipe, folder: Path) -> dict[str, Any]:
        result = train(
            recipe,
            folder / "run",
            self.registry,
            command=self.compared.command,
            device=self.device,
        )
        model = load(
            result.checkpoint,
            registry=self.registry,
            device=self.device,
            num_threads=recipe.train.num_threads,
        )
        found: dict[str, Any] = {}
        if self.settings.num:
            check_judged(model, "cm3 experiment scaling")
            found = judged(model, self.settings, {}, folder / "judged")
        return {
            "steps": result.step,
            "tokens": result.tokens,
            "seconds": result.elapsed_s,
            "parameters": sum(one.numel() for one in model.components.decoder.module.parameters()),
            "curve": curve(folder / "run"),
            "judged": found,
        }

    def _report(self, runs: list[dict[str, Any]]) -> Path:
        sections = [*losses(runs, TITLES), "![loss over tokens](loss.png)", ""]
        validated = [name for name in runs[0]["curve"][-1] if "/image_loss" in name]
        plot_curves(self.out / "loss.png", runs, TITLES, validated[0].split("/")[1])
        sections += judged_tables(runs, TITLES) if self.settings.num else []
        seeds = max(len([run for run in runs if run["arm"] == arm]) for arm in TITLES)
        return write_report(
            self.out, "Size, tokens and documents", self.compared.command, sections, seeds
        )
