"""The experiment's stages; each stores its result in the folder, see `ResultFolder`.

parts/<task>-<split>.json, parts/*.npy
figures.json, report.md, <task>-<split>.png     everything together
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cm3apps.evaluation.icons.ranking import RealPictures, judges
from cm3apps.evaluation.icons.style_classifier import style_classifier
from cm3apps.evaluation.results import ResultFolder, identity
from cm3apps.evaluation.task_report import write_report
from cm3apps.quickstart.pictures import write_table
from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.files import write_text
from cm3core.recipe import Recipe
from cm3lab.experiments.tasks import TASKS, TaskSettings, drawn, told
from cm3lab.experiments.tasks.drawn import Measured, Setting
from cm3plugins.datasets.icons import IconSourceConfig
from cm3run.model import Model

MEASURES: Mapping[str, Callable[[Setting, str], Measured]] = {
    "edit": drawn.edit,
    "edges": drawn.edges,
    "boxes": drawn.boxes,
    "place": drawn.place,
    "find": told.find,
    "answer": told.answer,
    "chat": told.chat,
    "caption": told.caption,
    "enlarge": drawn.enlarge,
}
#: Tasks that a model must have been tuned for.
NEEDS = {
    "edit": "edit",
    "edges": "structure",
    "boxes": "structure",
    "place": "object_to_image",
    "find": "grounding",
    "answer": "vqa",
    "chat": "chat",
    "caption": "caption",
    "enlarge": "super_resolution",
}
#: Columns of pictures on a sheet; a task's rows are split over them.
_BLOCKS = 4


def tasks_of(model: Model) -> tuple[str, ...]:
    """Return the tasks that a model was tuned for, in the order of the report.

    Raises:
        DataError: it was not tuned for any of them.
    """
    found = tuple(task for task in TASKS if NEEDS[task] in model.tasks.names)
    if not found:
        raise DataError(
            f"model {model.name!r}",
            "was not tuned for any task measured here; it was tuned for "
            f"{', '.join(model.tasks.names) or 'no task'}",
            f"tune it for one of {', '.join(dict.fromkeys(NEEDS.values()))} (docs/tuning.md)",
        )
    return found


def icons_of(recipe: Recipe) -> IconSourceConfig | None:
    """Return the icons that a recipe trains on; None for another data set."""
    config = recipe.dataset and recipe.dataset.memory_config()
    return config if isinstance(config, IconSourceConfig) else None


def setting_of(
    model: Model,
    icons: IconSourceConfig,
    num: int,
    seed: int,
    keep: Callable[[str, Callable[[], PixelArray]], PixelArray],
) -> Setting:
    """Return the settings shared by a model's measurements; trains the style classifier unless cached.

    Args:
        model: the model.
        icons: its training data, see `icons_of`.
        num, seed: see `TaskSettings`.
        keep: see `Setting`.
    """
    corpus = model.components.memory_of_split("all").corpus  # type: ignore[attr-defined]  # of icons
    real = RealPictures(corpus, icons.image_size, model.image_size, icons.cache_dir)
    classifier, _ = style_classifier(real, model.image_size)
    judge = judges(["pixels"], real)["pixels"]
    return Setting(model, icons, real, judge, classifier, num, seed, keep)


class TaskExperiment:
    """One measurement of one model, in one folder.

    Args:
        model: model tuned on icon tasks.
        out: the folder of all results.
        settings: settings of the measurement.
        command: quoted in the report.

    Raises:
        DataError: the model was trained on something else, or not tuned for one of the tasks.
    """

    def __init__(self, model: Model, out: Path, settings: TaskSettings, command: str) -> None:
        self.model, self.settings, self.command, self.out = model, settings, command, Path(out)
        icons = icons_of(model.recipe)
        if icons is None:
            name = model.recipe.component_names.get("dataset", "none")
            raise DataError(
                f"model {model.name!r}",
                f"its data set is {name!r}, but this experiment measures icon models",
                "use a model tuned with the recipe icons-tuned, or with a mixture whose memory is icons",
            )
        lacking = [task for task in settings.tasks if NEEDS[task] not in model.tasks.names]
        if lacking:
            raise DataError(
                f"model {model.name!r}",
                f"was not tuned for {NEEDS[lacking[0]]!r}, which {lacking[0]!r} needs; it was tuned for "
                f"{', '.join(model.tasks.names) or 'no task'}",
                f"tune it (docs/tuning.md), or leave --tasks {lacking[0]} out",
            )
        self._icons = icons
        self._results = ResultFolder(self.out, identity(model), settings)

    def run(self) -> Path:
        """Run all stages; return the report's path."""
        total = len(self.settings.tasks) * len(self.settings.splits) + 1
        print(f"[1/{total}] style classifier", file=sys.stderr)
        setting = setting_of(
            self.model,
            self._icons,
            self.settings.num,
            self.settings.seed,
            self._results.pictures,
        )
        figures: dict[str, Any] = {
            "model": {**identity(self.model), "step": self.model.step},
            **asdict(self.settings),
            "found": {},
        }
        number = 1
        for task in self.settings.tasks:
            for split in self.settings.splits:
                number += 1
                print(f"[{number}/{total}] {task}, {split}", file=sys.stderr)
                measure = partial(self._measure, setting, task, split)
                figures["found"].setdefault(task, {})[split] = self._results.figures(
                    f"{task}-{split}", measure
                )
        write_text(self.out / "figures.json", json.dumps(figures, indent=1) + "\n")
        return write_report(self.out, figures, self.command)

    def _measure(self, setting: Setting, task: str, split: str) -> dict[str, Any]:
        """Return the figures of a task in a split; writes its sheet."""
        measured = MEASURES[task](setting, split)
        write_table(
            self.out / f"{task}-{split}.png", measured.header, measured.rows, num_blocks=_BLOCKS
        )
        return {"num": measured.num, "figures": measured.figures}
