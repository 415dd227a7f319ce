"""The experiment's stages; each writes its result to the folder, see `ResultFolder`.

parts/<split>-nats.json, <split>-drawn-<condition>.npy, <split>-judged.json, <split>-by-set.json, <split>-nearness.json
parts/style.json, parts/tokenizer.json
figures.json, report.md, pictures-<split>.png     everything together
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.evaluation.icons.drawing import Asked, Samples, draw, nats_of_codes, reconstructed
from cm3apps.evaluation.icons.ranking import Judge, RealPictures, judges
from cm3apps.evaluation.icons.report import write_report, write_sheet
from cm3apps.evaluation.icons.settings import IconSettings
from cm3apps.evaluation.icons.style_classifier import StyleClassifier, style_classifier
from cm3apps.evaluation.icons.tokenizer_figures import tokenizer_figures
from cm3apps.evaluation.results import ResultFolder, identity
from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.files import write_text
from cm3plugins.datasets.icons import IconSourceConfig
from cm3plugins.datasets.icons.corpus import IconEntry
from cm3run.model import Model
from cm3run.nearness import NEARLY_A_COPY, nearness

KS = (1, 5)


class IconExperiment:
    """One measurement of one model, in one folder.

    Args:
        model: a model trained on the data set `icons`.
        out: the folder of all results.
        settings: the settings.
        command: the command, quoted in the report.

    Raises:
        DataError: the model was trained on other data.
    """

    def __init__(self, model: Model, out: Path, settings: IconSettings, command: str) -> None:
        self.model, self.settings, self.command = model, settings, command
        dataset = model.recipe.dataset and model.recipe.dataset.memory_config()
        if not isinstance(dataset, IconSourceConfig):
            name = model.recipe.component_names.get("dataset", "none")
            raise DataError(
                f"model {model.name!r}",
                f"its data set is {name!r}, and this experiment measures models of 'icons'",
                "name a model that was trained by the recipe icons, or by one whose data set (of a mixture, the memory) is icons",
            )
        model.sampler_config(**settings.sampling)  # report wrong values before anything runs
        self._dataset = dataset
        self._results = ResultFolder(Path(out), identity(model), settings)
        self.out = Path(out)

    def run(self) -> Path:
        """Run all stages; return the report's path."""
        num_stages = len(self.settings.splits) + 1 + self.settings.tokenizer
        stage = partial(_announce, num_stages)
        sampled = Samples(self.model)
        samples = {split: sampled.of(split, self.settings.num) for split in self.settings.splits}
        real = RealPictures(
            sampled.everything.corpus,
            self._dataset.image_size,
            self.model.image_size,
            self._dataset.cache_dir,
        )
        stage(1, "style classifier")
        found = judges(self.settings.judges, real)
        classifier, accuracy = style_classifier(real, self.model.image_size)
        figures: dict[str, Any] = {
            "model": {**identity(self.model), "step": self.model.step},
            "num": self.settings.num,
            "style_classifier": accuracy,
            "splits": {},
        }
        for number, (split, asked) in enumerate(samples.items(), start=2):
            stage(number, split)
            figures["splits"][split] = self._measure(split, asked, found, classifier)
        if self.settings.tokenizer:
            stage(num_stages, "image tokenizer")
            figures["tokenizer"] = self._results.figures(
                "tokenizer", lambda: tokenizer_figures(self.model, real)
            )
        write_text(self.out / "figures.json", json.dumps(figures, indent=1) + "\n")
        return write_report(self.out, figures, self.command)

    def _measure(
        self, split: str, asked: Sequence[Asked], found: dict[str, Judge], style: StyleClassifier
    ) -> dict[str, Any]:
        """All figures of a split; its sheet is written."""
        nats = self._results.figures(
            f"{split}-nats",
            lambda: {
                condition: nats_of_codes(self.model, asked, condition)
                for condition in asked[0].prepended
            },
        )
        drawn = {
            condition: self._results.pictures(
                f"{split}-drawn-{condition}", partial(self._draw, asked, condition)
            )
            for condition in self.settings.drawn
            if condition in asked[0].prepended
        }
        judged = self._results.figures(
            f"{split}-judged", lambda: self._judged(asked, drawn, found, style)
        )
        write_sheet(self.out / f"pictures-{split}.png", self.model, asked, drawn)
        return {
            "num": len(asked),
            "nats": {name: mean_and_error(values) for name, values in nats.items()},
            "gain": {
                name: mean_and_error(np.subtract(values, nats["none"]).tolist())
                for name, values in nats.items()
                if name != "none"
            },
            "found": {condition: _found(asked, condition) for condition in nats},
            "pictures": judged,
            "by_set": self._results.figures(
                f"{split}-by-set", lambda: self._by_set(asked, drawn, found)
            ),
            "nearness": self._results.figures(
                f"{split}-nearness", lambda: self._nearness(asked, drawn)
            ),
        }

    def _draw(self, asked: Sequence[Asked], condition: str) -> PixelArray:
        return draw(self.model, asked, condition, self.settings.seed, self.settings.sampling)

    def _judged(
        self,
        asked: Sequence[Asked],
        drawn: dict[str, PixelArray],
        found: dict[str, Judge],
        style: StyleClassifier,
    ) -> dict[str, dict[str, Any]]:
        """R@k and style of the drawn pictures, and of pictures for comparison."""
        entries = [one.entry for one in asked]
        true = [one.pixels(self.model.image_size) for one in asked]
        white = np.full_like(true[0], 255)
        versions = [one.front_pixels("version", self.model) for one in asked]
        pictures: dict[str, Sequence[PixelArray] | PixelArray] = {
            "real": true,
            "reconstructed": reconstructed(self.model, true),
            "version": [white if one is None else one for one in versions],
            **{
                f"copy-{condition}": [
                    white if (front := one.front_pixels(condition, self.model)) is None else front
                    for one in asked
                ]
                for condition in drawn
                if condition.startswith("retrieved")
            },
            **{f"drawn-{condition}": own for condition, own in drawn.items()},
        }
        return {
            name: {**chances_by(found, made, entries), **style.accuracy(made, entries)}
            for name, made in pictures.items()
        }

    def _by_set(
        self, asked: Sequence[Asked], drawn: dict[str, PixelArray], found: dict[str, Judge]
    ) -> dict[str, dict[str, Any]]:
        """R@k of pictures drawn after the version and of copies of it, separately for versions from the same set and from
        others."""
        figures: dict[str, dict[str, Any]] = {}
        for name, same in (("same set", True), ("another set", False)):
            places = [place for place, one in enumerate(asked) if one.same_set is same]
            if "version" not in drawn or not places:
                continue
            entries = [asked[place].entry for place in places]
            # there is always a version, because the sample has only objects with one
            copies = [asked[place].front_pixels("version", self.model) for place in places]
            pictures: dict[str, Sequence[PixelArray] | PixelArray] = {
                "version": [one for one in copies if one is not None],
                "drawn-version": drawn["version"][places],
            }
            figures[name] = {
                "num": len(places),
                **{kind: chances_by(found, made, entries) for kind, made in pictures.items()},
            }
        return figures

    def _nearness(
        self, asked: Sequence[Asked], drawn: dict[str, PixelArray]
    ) -> dict[str, dict[str, Any]]:
        """Nearness of the drawn and of the real picture to the first prepended document."""
        figures = {}
        for condition, own in drawn.items():
            near: dict[str, list[float]] = {"drawn": [], "real": []}
            for one, pixels in zip(asked, own, strict=True):
                front = one.front_pixels(condition, self.model)
                if front is not None:
                    near["drawn"].append(nearness(pixels, front))
                    near["real"].append(nearness(one.pixels(self.model.image_size), front))
            if near["drawn"]:
                figures[condition] = {name: nearness_figures(ones) for name, ones in near.items()}
        return figures


def nearness_figures(values: Sequence[float]) -> dict[str, Any]:
    """The number of nearnesses, their median, and the number of near copies (`NEARLY_A_COPY`)."""
    copies = sum(value >= NEARLY_A_COPY for value in values)
    return {"num": len(values), "median": float(np.median(values)), "copies": copies}


def chances_by(
    found: dict[str, Judge], made: Sequence[PixelArray] | PixelArray, entries: Sequence[IconEntry]
) -> dict[str, dict[str, float]]:
    """R@k of pictures by each judge: judge -> ``r1``, ``r5``."""
    return {
        judge: {f"r{k}": value for k, value in own.chances(made, entries, KS).items()}
        for judge, own in found.items()
    }


def _found(asked: Sequence[Asked], condition: str) -> dict[str, float]:
    """Shares of the prompts for which a document, and one of the same object, was retrieved."""
    return {
        "any": float(np.mean([bool(one.prepended[condition]) for one in asked])),
        "same_thing": float(np.mean([one.shown[condition] == one.entry.words for one in asked])),
    }


def mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """The mean and its standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "error": float(error)}


def _announce(total: int, number: int, what: str) -> None:
    print(f"[{number}/{total}] {what}", file=sys.stderr)
