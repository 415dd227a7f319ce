"""The experiment's stages. Each stores its result in the folder, and is not repeated.

parts/speed-<method>.json         cost of a step
parts/losses-<arm>-<seed>.json    nats of held-out responses; losses-before.json: the base model
parts/tasks-<arm>-<seed>.json     figures of tasks, as in `cm3 experiment tasks`; parts/*.npy: pictures
<arm>-<seed>/                     the trainings, as by `cm3 tune`; an interrupted one resumes
figures.json, report.md           everything together
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli.tune import tuning_recipe
from cm3apps.evaluation.results import ResultFolder
from cm3core.document import PixelArray
from cm3core.files import write_text
from cm3lab.experiments.options import Compared
from cm3lab.experiments.tasks.drawn import Setting
from cm3lab.experiments.tasks.experiment import MEASURES, NEEDS, icons_of, setting_of
from cm3lab.experiments.tuning import ARMS, BEFORE, REFERENCE, SHARED, TuningSettings, responses
from cm3lab.experiments.tuning.report import write_report
from cm3lab.experiments.tuning.speed import step_cost, steps_in
from cm3plugins.datasets.mixture import MixtureConfig
from cm3plugins.tasks.bundled import BundledTaskConfig
from cm3run.checkpoint import find_checkpoint, find_model
from cm3run.devices import choose_device
from cm3run.model import Model, load
from cm3run.training import train

if TYPE_CHECKING:
    from cm3core.plugins import Registry
    from cm3core.recipe import Recipe

#: Number of batches for measuring a step's cost.
_BATCHES = 4


class TuningExperiment:
    """One experiment in one folder.

    Args:
        registry: the plugins.
        out: the folder of all results.
        compared: the trainings to compare.
        settings: settings for training and measuring.
        device: device for training and running the decoders; None: the GPU if there is one.
    """

    def __init__(
        self,
        registry: Registry,
        out: Path,
        compared: Compared,
        settings: TuningSettings,
        *,
        device: str | None = None,
    ) -> None:
        self.registry, self.out, self.settings = registry, Path(out), settings
        self.compared, self.device = compared, device
        self._asked: dict[str, list[responses.Asked]] = {}
        self._shared: Setting | None = None

    def recipe(self, arm: str, seed: int = 0, steps: int = 1) -> Recipe:
        """Return the recipe of one arm: a schedule of `steps`, no validation during training, its own layout."""
        settings = self.settings
        fixed = [
            *SHARED,
            f"train.seed={seed}",
            f"train.steps={steps}",
            "train.minutes=null",
            "train.validation_splits=[]",
            *ARMS[arm].overrides,
            *settings.own.get(arm, []),
        ]
        last = {one.partition("=")[0]: one for one in fixed}
        overrides = [*settings.overrides, *last.values()]
        overrides += [f"{key}={ARMS[arm].layout}" for key in self._layout_keys]
        recipe = tuning_recipe(settings.base, self.compared.recipe, overrides, self.registry)
        warmup = min(recipe.train.warmup_steps, steps // 10)
        recipe = replace(recipe, train=replace(recipe.train, warmup_steps=warmup))
        recipe.check()
        return recipe

    def run(self) -> Path:
        """Run all stages; return the report's path."""
        plain = {
            arm: self.recipe(arm) for arm in [REFERENCE, *self.compared.arms]
        }  # checks all first
        results = ResultFolder(
            self.out,
            {"base": self.settings.base, "recipe": plain[REFERENCE].hash},
            self.settings,
        )
        methods = [arm for arm in plain if ARMS[arm].compares == "method"]
        costs = {}
        for arm in methods:
            print(f"cost of a step: {ARMS[arm].title}", file=sys.stderr)
            costs[arm] = results.figures(f"speed-{arm}", partial(self._cost, plain[arm]))
        print("held-out responses of the base model", file=sys.stderr)
        facts: dict[str, Any] = {
            "recipe": self.compared.recipe,
            **asdict(self.settings),
            "costs": costs,
            BEFORE: results.figures(f"losses-{BEFORE}", self._losses_before),
            "runs": [],
        }
        runs = [(arm, seed) for seed in self.compared.seeds for arm in self.compared.arms]
        for number, (arm, seed) in enumerate(runs, start=1):
            print(f"[{number}/{len(runs)}] {ARMS[arm].title}, seed {seed}", file=sys.stderr)
            like = arm if arm in costs else REFERENCE
            steps = steps_in(self.settings.minutes, costs[like]["seconds"])
            facts["runs"].append(
                {"arm": arm, "seed": seed, "steps": steps, **self._run(arm, seed, steps, results)}
            )
            write_text(self.out / "figures.json", json.dumps(facts, indent=1) + "\n")
            report = write_report(self.out, facts, self.compared.command)
        return report

    def _run(self, arm: str, seed: int, steps: int, results: ResultFolder) -> dict[str, Any]:
        """Train and measure one arm."""
        recipe, name = self.recipe(arm, seed, steps), f"{arm}-{seed}"
        folder = self.out / name

        def tuned() -> Model:
            result = train(
                recipe, folder, self.registry, command=self.compared.command, device=self.device
            )
            return load(
                result.checkpoint,
                registry=self.registry,
                device=self.device,
                num_threads=recipe.train.num_threads,
            )

        model = _Once(tuned)
        found = {
            "losses": results.figures(
                f"losses-{name}", lambda: self._losses(model(), ARMS[arm].layout)
            ),
            "tasks": {},
        }
        icons = icons_of(recipe)
        trained = {type(task) for _, task in responses.parts_of(recipe).values()}
        for task in () if icons is None or not self.settings.num else self.settings.tasks:
            if self.registry.config_class("task", NEEDS[task], place=task) not in trained:
                continue
            for split in self.settings.splits:
                measure = partial(self._task, task, split, name, model, results)
                found["tasks"].setdefault(task, {})[split] = results.figures(
                    f"{task}-{split}-{name}", measure
                )
        return found

    def _task(
        self, task: str, split: str, name: str, model: _Once, results: ResultFolder
    ) -> dict[str, Any]:
        """Return the figures of a task in a split."""

        def keep(what: str, draw: Callable[[], PixelArray]) -> PixelArray:
            return results.pictures(f"{what}-{name}", draw)

        setting = replace(self._setting(model()), model=model(), keep=keep)
        measured = MEASURES[task](setting, split)
        return {"num": measured.num, "figures": measured.figures}

    def _setting(self, model: Model) -> Setting:
        """Return pictures, judge and classifier, shared by all arms."""
        if self._shared is None:
            icons = icons_of(model.recipe)
            assert icons is not None, "only for icon models"
            self._shared = setting_of(model, icons, self.settings.num, 0, lambda _, draw: draw())
        return self._shared

    @cached_property
    def _layout_keys(self) -> list[str]:
        overrides = list(self.settings.overrides)
        return layout_keys(
            tuning_recipe(self.settings.base, self.compared.recipe, overrides, self.registry)
        )

    @cached_property
    def _base(self) -> Model:
        return load(
            self.settings.base,
            registry=self.registry,
            device=self.device,
            num_threads=self.recipe(REFERENCE).train.num_threads,
        )

    def _documents(self, layout: str) -> list[responses.Asked]:
        """Return the held-out documents in a layout."""
        if layout not in self._asked:
            arm = next(name for name, arm in ARMS.items() if arm.layout == layout)
            self._asked[layout] = responses.asked(
                self.recipe(arm), self._base, self.settings.splits, self.settings.documents
            )
        return self._asked[layout]

    def _losses(self, model: Model, layout: str) -> dict[str, dict[str, float]]:
        """Return nats of held-out responses, by split and part."""
        documents = self._documents(layout)
        rows = self.recipe(REFERENCE).train.batch_rows
        return responses.by_part(documents, responses.losses(documents, model, rows))

    def _losses_before(self) -> dict[str, dict[str, float]]:
        return self._losses(self._base, ARMS[REFERENCE].layout)

    def _cost(self, recipe: Recipe) -> dict[str, float]:
        rows = recipe.train.batch_rows
        found = list(responses.batches(self._documents(ARMS[REFERENCE].layout), self._base, rows))
        # the last one may have fewer rows
        whole = [batch for batch, _ in found if len(batch.tokens_BT) == rows] or [found[0][0]]
        # in training all tokens count, subject to the arm's objective
        whole = [replace(one, weights_BT=(one.modality_BT > 0).float()) for one in whole]
        base = find_checkpoint(find_model(self.settings.base, self.registry))
        device = choose_device(self.device)
        return step_cost(recipe, base, self.registry, whole[:_BATCHES], device)


class _Once:
    """A model created on first use, and cached."""

    def __init__(self, make: Callable[[], Model]) -> None:
        self._make = make
        self._model: Model | None = None

    def __call__(self) -> Model:
        if self._model is None:
            self._model = self._make()
        return self._model


def layout_keys(recipe: Recipe) -> list[str]:
    """Return the keys of the layouts of a recipe's tasks, for those that have layouts."""
    if isinstance(recipe.dataset, MixtureConfig):
        tasks = {f"dataset.tasks.{name}": task for name, task in recipe.dataset.tasks.items()}
    else:
        tasks = {} if recipe.task is None else {"task": recipe.task}
    return [f"{key}.layout" for key, task in tasks.items() if isinstance(task, BundledTaskConfig)]
