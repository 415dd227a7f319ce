"""The experiment's stages. Each stores its result in the folder, and is skipped if that exists.

<arm>-<seed>/run/            the training: checkpoints, metrics, TensorBoard
<arm>-<seed>/losses.json     held-out losses under every condition
<arm>-<seed>/drawn.npz       generated pictures; drawn.json: their scores
told.json                    how well the documents predict held-out pictures, by counting
results.json, report.md      everything together, with plots and pictures next to them
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.errors import CM3Error
from cm3core.files import make_folder, write_text
from cm3core.outputs import OutputFolder
from cm3lab.experiments.retrieval import ARMS, RetrievalSettings
from cm3run.progress import make_bar

if TYPE_CHECKING:
    from cm3core.plugins import Registry
    from cm3core.recipe import Recipe
    from cm3lab.experiments.options import Compared
    from cm3run.build import Components

#: Held-out splits: drawings held out, and names held out in all versions.
SPLITS = ("comp", "unseen")
#: Retrievers with which every decoder is measured, whatever it was trained with.
MEASURED_WITH = ("dense", "bm25", "random")
#: Stored with measured losses; raise it when the conditions change.
_CONDITIONS = 2
#: Stored with scores of pictures; raise it when the scores change.
_SCORES = 2


class RetrievalExperiment:
    """One experiment in one folder.

    Args:
        registry: the plugins.
        out: the folder of all results.
        compared: the trainings to compare.
        settings: settings for training and measuring.
    """

    def __init__(
        self,
        registry: Registry,
        out: Path,
        compared: Compared,
        settings: RetrievalSettings,
    ) -> None:
        self.registry, self.out, self.compared, self.settings = (
            registry,
            Path(out),
            compared,
            settings,
        )
        self.overrides = list(settings.overrides)

    def recipe(self, arm: str, seed: int) -> Recipe:
        """Return the recipe of one arm."""
        from cm3core.recipe import compose

        steps = self.settings.steps
        own = [
            f"train.seed={seed}",
            *([] if steps is None else [f"train.steps={steps}"]),
            *ARMS[arm].overrides,
        ]
        recipe = compose(self.compared.recipe, [*self.overrides, *own], registry=self.registry)
        recipe.check()
        return recipe

    def run(self) -> Path:
        """Run all stages; return the report's path."""
        # All recipes first: a wrong override is reported before anything runs.
        recipes = {
            (arm, seed): self.recipe(arm, seed)
            for seed in self.compared.seeds
            for arm in self.compared.arms
        }
        from cm3lab.experiments.retrieval.report import write_report

        runs = [f"{arm}-{seed}" for arm, seed in recipes]
        names = [
            f"{run}/{name}" for run in runs for name in ("losses.json", "drawn.json", "drawn.npz")
        ]
        names += ["results.json", "told.json", "report.md", "*.png"]
        OutputFolder(self.out, *([] if self._resumes() else names), resumes=True)
        make_folder(self.out)
        told = self._told(next(iter(recipes.values())))
        results = []
        for number, ((arm, seed), recipe) in enumerate(recipes.items(), start=1):
            print(f"[{number}/{len(recipes)}] {ARMS[arm].title}, seed {seed}", file=sys.stderr)
            results.append(
                {"arm": arm, "seed": seed, **self._run_arm(recipe, arm, self.out / f"{arm}-{seed}")}
            )
            facts = {
                "recipe": self.compared.recipe,
                "overrides": self.overrides,
                "steps": recipe.train.steps,
                "told": told,
                "runs": results,
            }
            write_text(self.out / "results.json", json.dumps(facts, indent=1))
            report = write_report(self.out, results, self.compared.command, told)
        return report

    def _resumes(self) -> bool:
        """Whether the folder has results of this experiment, perhaps of another machine."""
        key = {"recipe": self.compared.recipe, "overrides": self.overrides}
        return _kept(self.out / "told.json", key) is not None

    def _told(self, recipe: Recipe) -> dict[str, Any]:
        """Count once for all arms, which share data, tokenizer and retrievers."""
        from cm3lab.experiments.retrieval.conditions import Measurement
        from cm3run.build import build
        from cm3run.training.preparation import Preparation

        key = {"recipe": self.compared.recipe, "overrides": self.overrides}
        kept = _kept(self.out / "told.json", key)
        if kept is None:
            print("counting how well the documents predict pictures", file=sys.stderr)
            preparation = Preparation(build(recipe, self.registry, stage="train"))
            measurement = Measurement(
                preparation, self._retrievers(recipe), SPLITS, self.settings.num_documents
            )
            kept = {
                **key,
                "told": {name: asdict(told) for name, told in measurement.told().items()},
            }
            write_text(self.out / "told.json", json.dumps(kept, indent=1))
        found: dict[str, Any] = kept["told"]
        return found

    def _run_arm(self, recipe: Recipe, arm: str, folder: Path) -> dict[str, Any]:
        """Train, measure and generate."""
        from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
        from cm3run.build import Stored, build
        from cm3run.checkpoint import TOKENIZER, load_weights
        from cm3run.training import train

        result = train(recipe, folder / "run", self.registry, command=self.compared.command)
        components = build(
            recipe,
            self.registry,
            stage="train",
            stored=Stored(
                text_tokenizer=result.checkpoint / TOKENIZER,
                image_tokenizer=result.checkpoint / IMAGE_TOKENIZER,
            ),
        )
        load_weights(components.decoder, result.checkpoint)  # type: ignore[arg-type]  # a module, which the interface can't say
        components.decoder.module.eval()
        key = {
            "recipe_hash": recipe.hash,
            "step": result.step,
            "documents": self.settings.num_documents,
        }
        measured = key | {"conditions": _CONDITIONS}
        losses = _kept(folder / "losses.json", measured) or self._measure(
            components, folder, measured
        )
        drawn = self._draw(
            components, recipe, arm, folder, key | {"pictures": self.settings.num_pictures}
        )
        return {
            "steps": result.step,
            "tokens": result.tokens,
            "seconds": result.elapsed_s,
            "curve": curve(folder / "run"),
            "losses": losses["losses"],
            "drawn": drawn,
        }

    def _measure(self, components: Components, folder: Path, key: dict[str, Any]) -> dict[str, Any]:
        from cm3lab.experiments.retrieval.conditions import Measurement
        from cm3run.training.preparation import Preparation

        measurement = Measurement(
            Preparation(components),
            self._retrievers(components.recipe),
            SPLITS,
            self.settings.num_documents,
        )
        losses = {
            condition.name: measurement.loss(condition)
            for condition in make_bar(
                list(measurement.conditions()), desc="held-out losses", unit="condition"
            )
        }
        stored = {**key, "losses": losses}
        write_text(folder / "losses.json", json.dumps(stored, indent=1))
        return stored

    def _retrievers(self, recipe: Recipe) -> dict[str, Any]:
        """Return a config of each retriever, with the recipe's settings for its own one."""
        from cm3core.recipe import compose

        found = {}
        for name in MEASURED_WITH:
            try:
                own = compose(
                    self.compared.recipe,
                    [*self.overrides, f"retriever.name={name}", "retriever.num_retrieved=1"],
                    registry=self.registry,
                )
            except CM3Error as error:
                print(f"note: skipping {name}: {error}", file=sys.stderr)
                continue
            found[name] = own.retriever
        return found

    def _draw(
        self, components: Components, recipe: Recipe, arm: str, folder: Path, key: dict[str, Any]
    ) -> dict[str, Any]:
        from cm3lab.experiments.retrieval.drawing import draw, score

        if self.settings.num_pictures == 0:
            return {}
        path, pictures = folder / "drawn.json", folder / "drawn.npz"
        kept = _kept(path, key | {"scores_of": _SCORES})
        if kept is None:
            number = ARMS[arm].num_retrieved
            if _kept(path, key) is None or not pictures.exists():
                name = arm.rpartition("-")[0]
                retriever = self._retrievers(recipe).get(name or "bm25")
                draw(components, retriever, number, SPLITS, self.settings.num_pictures, pictures)
            scores = score(components, SPLITS, pictures, prepended=number > 0)
            kept = {
                **key,
                "scores_of": _SCORES,
                "scores": {split: asdict(one) for split, one in scores.items()},
            }
            write_text(path, json.dumps(kept, indent=1))
        scores_found: dict[str, Any] = kept["scores"]
        return scores_found


def _kept(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of an earlier call with the same settings, or None."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        stored
        if isinstance(stored, dict)
        and all(stored.get(name) == value for name, value in key.items())
        else None
    )


def curve(run: Path) -> list[dict[str, float]]:
    """Return a run's validation losses, with the tokens and seconds of the last metrics line before each."""
    from cm3run.training.metrics import read_metrics

    found: list[dict[str, float]] = []
    seen: dict[str, float] = {"tokens": 0.0, "elapsed_s": 0.0}
    for line in read_metrics(run):
        seen |= {name: line[name] for name in seen if name in line}
        losses = {name: value for name, value in line.items() if name.startswith("validation/")}
        if losses:
            found.append({"step": line["step"], **seen, **losses})
    return found
