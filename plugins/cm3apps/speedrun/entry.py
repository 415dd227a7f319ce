"""One entry of a speedrun: its trainings, what is judged, and its record. The same command resumes.

seed-N/run/          a training, with its log of losses
seed-N/judged/       what the judge says of what it draws, a folder of `cm3 eval`
record.json, .md     everything together: rules, machine, recipe, losses, scores
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from cm3apps.evaluation.results import ResultFolder
from cm3apps.quickstart.judged import evaluated, judged_split, protocol_of
from cm3apps.speedrun.rules import JUDGED, Track, Verdict, check_entry, spread, verdict
from cm3core.errors import CM3Error
from cm3core.files import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cm3core.plugins import Registry
    from cm3core.recipe import Recipe
    from cm3run.model import Model
    from cm3run.training.state import TrainState


class _Spent:
    """The processor time of a training, until its last step: a callback of it."""

    def __init__(self) -> None:
        self._start, self._first, self._last = time.process_time(), 0, 0.0

    def __call__(self, state: TrainState) -> None:
        self._first = self._first or state.step
        self._last = time.process_time()

    @property
    def minutes(self) -> float | None:
        """None: it was resumed, and the rest was spent by another process."""
        return (self._last - self._start) / 60 if self._first == 1 else None


#: Steps after which nothing is validated: the loss counts at the end alone.
_NEVER = 10**9


@dataclass(frozen=True)
class _Settings:
    recipe: str
    overrides: tuple[str, ...]
    track: dict[str, Any]


class Entry:
    """An entry in its folder.

    Args:
        registry: the plugins.
        out: the folder of all results.
        track: the rules.
        recipe_name: name or path of the recipe.
        overrides: `section.key=value`.
        command: the command that resumes.
    """

    def __init__(
        self,
        registry: Registry,
        out: Path,
        track: Track,
        recipe_name: str,
        overrides: tuple[str, ...] = (),
        command: str = "cm3 speedrun",
    ) -> None:
        self.registry, self.out, self.track, self.command = registry, out, track, command
        self.recipe_name, self.overrides = recipe_name, overrides

    def recipe(self, seed: int) -> Recipe:
        """The recipe of one training: held-out documents are read once, at its end."""
        from cm3core.recipe import compose

        own = [
            f"train.seed={seed}",
            f"train.validation_splits=[{', '.join(self.track.splits)}]",
            f"train.validation_documents={self.track.documents}",
            f"train.validate_every_steps={_NEVER}",
            "train.validate_every_minutes=null",
        ]
        recipe = compose(self.recipe_name, [*self.overrides, *own], registry=self.registry)
        if recipe.train.num_threads is None:
            recipe.train.num_threads = self.track.threads
        recipe.check()
        return recipe

    def check(self, seed: int) -> None:
        """Raise `RecipeError` if the recipe breaks a rule."""
        check_entry(self.recipe(seed), self.track, self.registry)

    def run(self, seeds: Sequence[int]) -> Verdict:
        """Train and judge with every seed; return the verdict, and write the record."""
        self.check(seeds[0])
        own = _Settings(self.recipe_name, self.overrides, asdict(self.track))
        results = ResultFolder(self.out, {"recipe": self.recipe(0).hash}, own)
        runs = []
        for place, seed in enumerate(seeds, 1):
            print(f"[{place}/{len(seeds)}] seed {seed}", file=sys.stderr)
            folder = self.out / f"seed-{seed}"
            found = results.figures(f"seed-{seed}", partial(self._run, seed, folder))
            runs.append({"seed": seed, **found})
            told = verdict(runs, self.track)
            self._write(runs, told)
        return told

    def _run(self, seed: int, folder: Path) -> dict[str, Any]:
        from cm3run.build import build
        from cm3run.model import load
        from cm3run.training import train
        from cm3run.training.preparation import Preparation

        recipe, load_before = self.recipe(seed), _load()
        Preparation(
            build(recipe, self.registry, stage="train")
        )  # the training reads it from the cache
        spent = _Spent()
        result = train(
            recipe,
            folder / "run",
            self.registry,
            device="cpu",
            command=self.command,
            callbacks=[spent],
        )
        model = load(result.checkpoint, registry=self.registry, device="cpu")
        tokenizer = model.components.image_tokenizer.fingerprint[:16]
        if tokenizer != self.track.codes:
            raise CM3Error(
                "image_tokenizer",
                f"has the fingerprint {tokenizer}, and that of the speedrun {self.track.codes}",
                "install the version of cm3leon that the entries were made with",
            )
        return {
            "minutes": result.elapsed_s / 60,
            "core_minutes": spent.minutes,
            "load_before": load_before,
            "steps": result.step,
            "tokens": result.tokens,
            "parameters": sum(one.numel() for one in model.components.decoder.module.parameters()),
            "nats": self._nats(recipe, result.metrics),
            "scores": self._judged(model, folder),
        }

    def _nats(self, recipe: Recipe, metrics: Mapping[str, float]) -> float:
        """Mean loss of the held-out documents' codes, with what is retrieved before them."""
        end = "" if recipe.retriever is None else "_retrieved"
        return mean(metrics[f"validation/{split}/image_loss{end}"] for split in self.track.splits)

    def _judged(self, model: Model, folder: Path) -> dict[str, float]:
        config, split = model.recipe.dataset, self.track.splits[0]
        assert config is not None
        known = judged_split(config, split)
        scores = [one for one in known.scores if one["metric"]["name"] != "nats"]
        judged = replace(known, name="judged", scores=scores)
        protocol = protocol_of(model, judged, self.track.drawings)
        if protocol is None:
            raise CM3Error(f"split {split!r}", "has no icon", "use the data of the speedrun")
        rows = {row["name"]: row for row in evaluated(model, protocol, folder, judged)["scores"]}
        return {name: float(rows[name]["value"]) for name in JUDGED}

    # ---- the record

    def _write(self, runs: list[dict[str, Any]], told: Verdict) -> None:
        facts = {
            "command": self.command,
            "goal": {"nats": self.track.nats, "scores": dict(self.track.scores)},
            "reached": told.reached,
            "missed": list(told.missed),
            "core_minutes": told.core_minutes,
            "machine": _machine(),
            "runs": runs,
            "recipe": self.recipe(runs[0]["seed"]).to_dict(),
        }
        write_text(self.out / "record.json", json.dumps(facts, indent=1, default=str) + "\n")
        write_text(self.out / "record.md", "\n".join(self._page(runs, told)))

    def _page(self, runs: list[dict[str, Any]], told: Verdict) -> list[str]:
        nats, track = list(told.nats), self.track
        result = "reached" if told.reached else "missed: " + "; ".join(told.missed)
        goal = ", ".join(f"{name} >= {least:g}%" for name, least in track.scores.items())
        return [
            f"# Speedrun: {_told(told.core_minutes)} core minutes",
            "",
            f"`{self.command}`",
            "",
            f"Goal: {track.nats:g} nats a code of {track.documents} documents each of {_named(track.splits)}, {goal}, over "
            f"{track.seeds} seeds: **{result}**.",
            "",
            f"Loss {mean(nats):.3f}, deviation over seeds {spread(nats):.3f}. Machine: {_machine()}.",
            "",
            "| seed | core minutes | minutes | million tokens | parameters | nats | "
            + " | ".join(JUDGED)
            + " |",
            "| --- |" + " --- |" * (5 + len(JUDGED)),
            *(_row(run) for run in runs),
            "",
            "Core minutes: the process's, until the last step. `seed-N/run/metrics.jsonl` has the losses, "
            "`seed-N/judged/verdicts.png` every drawing.",
            "",
        ]


def _named(splits: Sequence[str]) -> str:
    return " and ".join(f"`{split}`" for split in splits)


def _row(run: Mapping[str, Any]) -> str:
    own = [
        str(run["seed"]),
        _told(run["core_minutes"]),
        f"{run['minutes']:.1f}",
        f"{run['tokens'] / 1e6:.2f}",
        f"{run['parameters'] / 1e6:.2f}M",
        f"{run['nats']:.3f}",
        *(f"{run['scores'][name]:.0f}" for name in JUDGED),
    ]
    return f"| {' | '.join(own)} |"


def _told(minutes: float | None) -> str:
    return "–" if minutes is None else f"{minutes:.1f}"


def _machine() -> str:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()}, {cores} cores, torch {torch.__version__}, Python {platform.python_version()}"


def _load() -> float | None:
    """Mean number of running processes in the last minute, before the training."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
