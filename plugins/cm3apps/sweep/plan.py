"""The plan of a sweep: every cell with every seed, composed and checked before anything is trained; and the claim of its
folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cm3apps.sweep.grid import Cell, Grid
from cm3core.errors import CM3Error, RecipeError
from cm3core.files import make_folder, remove_unfinished, write_text
from cm3core.outputs import OutputFolder
from cm3core.recipe import compose, diff
from cm3run.checkpoint import find_checkpoint, find_model, read_recipe, trains_the_same
from cm3run.life import life_of

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.evaluation.protocol import Protocol

T = TypeVar("T")
FORMAT = "cm3 sweep 1"
CLAIM, PROTOCOL, RESULTS = "sweep.json", "protocol.json", "results.jsonl"
RUNS, CELLS, LOGS, RESULT = "runs", "cells", "logs", "result.json"
#: Longest part of a folder's name that is made of a cell's label.
_LONGEST = 60
_SEED_KEY = "train.seed"
#: Sections that change drawings and no likelihood.
_DRAWS = ("sampler", "reranker", "upscaler", "finisher")


@dataclass(frozen=True)
class Run:
    """A cell with a seed.

    Args:
        cell: the cell.
        seed: `train.seed`.
        recipe: composed and checked.
        overrides: all that differ from the recipe's file.
        name: of its folder in `cells`.
        training: of the training's folder in `runs`; "": a trained model is evaluated.
    """

    cell: Cell
    seed: int
    recipe: Recipe
    overrides: tuple[str, ...]
    name: str
    training: str

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.cell.label}, seed {self.seed}" if self.training else self.cell.label


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Args:
        subject: name of the recipe, or of the trained model.
        runs: every seed of the first cell, then of the second, ...
        model: the trained model's folder; None: each cell is trained.
    """

    subject: str
    runs: tuple[Run, ...]
    model: Path | None = None

    @property
    def cells(self) -> list[Cell]:
        """The cells; the first is what the others are compared with."""
        return list(dict.fromkeys(run.cell for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return list(dict.fromkeys(run.seed for run in self.runs))

    def trainings(self) -> Iterator[list[Run]]:
        """Runs that share a training, or that share a trained model, in order: what one process does."""
        names = dict.fromkeys(run.training or run.name for run in self.runs)
        for name in names:
            yield [run for run in self.runs if (run.training or run.name) == name]

    def shares_weights(self) -> bool:
        """Whether cells have the same weights."""
        return len({(run.training, run.seed) for run in self.runs}) < len(self.runs)

    def drawn_differently(self) -> tuple[Run, Run] | None:
        """Two runs that differ only in how pictures are drawn: all likelihoods are the same."""
        pairs = itertools.combinations(self.runs, 2)
        return next((pair for pair in pairs if _draws_differently(*pair)), None)

    def only_draws_differently(self) -> bool:
        """Whether this holds for all cells, of which there are several."""
        first, *others = [run for run in self.runs if run.seed == self.runs[0].seed]
        return bool(others) and all(_draws_differently(first, other) for other in others)


def _draws_differently(one: Run, other: Run) -> bool:
    return one.training == other.training and all(
        key.partition(".")[0] in _DRAWS for key, _, _ in diff(one.recipe, other.recipe)
    )


def names_a_model(subject: str) -> bool:
    """Whether a sweep's subject is a trained model and not a recipe."""
    try:
        return ":" in subject or Path(subject).is_dir()
    except OSError:  # longer than a file name may be
        return False


def plan_of(
    subject: str,
    grid: Grid,
    num_seeds: int,
    registry: Registry,
    *,
    is_model: bool,
    trust_endpoints: Sequence[str] = (),
) -> Plan:
    """Compose and check all cells.

    Args:
        subject: a recipe's name or file; or a trained model, of which nothing is trained.
        grid: the cells.
        num_seeds: trainings of each cell, with consecutive seeds.
        is_model: whether the subject is a trained model.
        trust_endpoints: see `cm3run.model.load`.

    Raises:
        CM3Error: a cell is wrong; the error names its overrides.
    """
    if any(one.startswith(f"{_SEED_KEY}=") for axis in grid.axes for _, own in axis for one in own):
        raise RecipeError(
            _SEED_KEY, "is varied, but seeds are no cells", "give the number of seeds: --seeds N"
        )
    if is_model:
        return _plan_of_model(subject, grid, num_seeds, registry, trust_endpoints)
    fixed = [one for one in grid.fixed if not one.startswith(f"{_SEED_KEY}=")]
    cells = list(grid.cells())
    runs: list[Run] = []
    first = _composed(subject, [*grid.fixed, *cells[0].varied], cells[0], registry).train.seed
    names = _folder_names(cells)
    for cell in cells:
        for seed in range(first, first + num_seeds):
            own = (*fixed, *cell.varied, f"{_SEED_KEY}={seed}")
            recipe = _composed(subject, own, cell, registry)
            name = f"{names[cell]}-{seed}"
            alike = (run for run in runs if run.seed == seed)
            shared = next((one for one in alike if trains_the_same(one.recipe, recipe)), None)
            training = name if shared is None else shared.training
            runs.append(Run(cell, seed, recipe, own, name, training))
    _check_different(runs)
    plan = Plan(subject, tuple(runs))
    check_life(plan, "train", registry)
    return plan


def _plan_of_model(
    subject: str, grid: Grid, num_seeds: int, registry: Registry, trust_endpoints: Sequence[str]
) -> Plan:
    """The plan for a trained model: cells differ only in what training doesn't use."""
    if num_seeds > 1:
        raise RecipeError(
            "--seeds",
            f"is {num_seeds}, but {subject} is a trained model, with the seed that it was trained with",
            "leave it out, or name a recipe",
        )
    folder = find_checkpoint(find_model(subject, registry))
    read = partial(read_recipe, folder, registry, trust_endpoints=trust_endpoints)
    trained = read()
    cells, runs = list(grid.cells()), []
    names = _folder_names(cells)
    for cell in cells:
        own = (*grid.fixed, *cell.varied)
        recipe = _checked(partial(read, overrides=own), cell)
        if not trains_the_same(trained, recipe):
            raise RecipeError(
                _place(cell),
                f"changes what is trained, but {subject} is a trained model",
                "vary keys of sampler, reranker or generate, or name a recipe to train",
            )
        runs.append(Run(cell, trained.train.seed, recipe, own, names[cell], ""))
    _check_different(runs)
    return Plan(subject, tuple(runs), folder)


def _place(cell: Cell) -> str:
    return f"cell {' '.join(cell.varied)}" if cell.varied else "the recipe"


def _composed(subject: str, overrides: Sequence[str], cell: Cell, registry: Registry) -> Recipe:
    def make() -> Recipe:
        recipe = compose(subject, list(overrides), registry=registry)
        recipe.check()
        return recipe

    return _checked(make, cell)


def _checked(make: Callable[[], T], cell: Cell) -> T:
    """What `make` returns; errors name the cell."""
    try:
        return make()
    except CM3Error as error:
        raise _of_cell(error, cell) from error


def _of_cell(error: CM3Error, cell: Cell) -> CM3Error:
    """The error, with the cell's overrides in its place."""
    if not cell.varied:
        return error
    return type(error)(f"{_place(cell)}: {error.place}", error.cause, error.next_step)


def check_life(plan: Plan, command: str, registry: Registry) -> None:
    """Refuse a cell whose model a command can't be run with, by what its components declare; a trained model's cells are
    tried instead.

    Args:
        plan: the cells.
        command: "train", or a command that uses what is trained.
        registry: the components.

    Raises:
        CM3Error: names the cell.
    """
    first_seed = [run for run in plan.runs if run.training and run.seed == plan.runs[0].seed]
    for run in first_seed:
        verdict = _checked(partial(life_of, run.recipe, registry), run.cell).get(command)
        if verdict is None:
            raise RecipeError(
                f"{_place(run.cell)}: decoder",
                f"is not in the recipe, and {command} needs one",
                "add decoder=NAME (cm3 kinds decoder lists them)",
            )
        if (error := verdict.error) is not None:
            raise _of_cell(error, run.cell)


def _check_different(runs: Sequence[Run]) -> None:
    """Refuse two cells with the same recipe, written differently."""
    seen: dict[str, Run] = {}
    for run in runs:
        other = seen.setdefault(run.recipe.hash, run)
        if other is not run:
            raise RecipeError(
                _place(run.cell),
                f"is the same recipe as {other.cell.label!r}",
                "remove one of them",
            )


def _folder_names(cells: Sequence[Cell]) -> dict[Cell, str]:
    """A readable name for each cell's folder; unique, and independent of the other cells."""
    found = {}
    for cell in cells:
        plain = re.sub(r"[^\w.=+-]+", "_", cell.label).strip("._") or "cell"
        if plain != cell.label or len(plain) > _LONGEST:
            digest = hashlib.sha256("\n".join((cell.label, *cell.varied)).encode()).hexdigest()
            plain = f"{plain[:_LONGEST]}-{digest[:8]}"
        found[cell] = plain
    return found


# The folder.


def claim_of(plan: Plan, protocol: Protocol) -> dict[str, Any]:
    """What is swept, as JSON values."""
    return {
        "format": FORMAT,
        "subject": plan.subject,
        "protocol": protocol.sha256,
        "runs": {run.name: run.recipe.hash for run in plan.runs},
    }


def claim_folder(folder: Path, claim: dict[str, Any], protocol: Protocol) -> None:
    """Take the folder, or go on with the same sweep in it, which may have got more cells or seeds.

    Raises:
        CM3Error: it has something else.
        FileError: it can't be written.
    """
    check_claim(folder, claim)
    make_folder(folder)
    write_text(folder / PROTOCOL, protocol.text())
    write_text(folder / CLAIM, json.dumps(claim, indent=1) + "\n")


def check_claim(folder: Path, claim: dict[str, Any]) -> None:
    """See `claim_folder`; writes nothing."""
    OutputFolder(folder, resumes=True)
    path = folder / CLAIM
    other = "name another folder (-o)"
    if not path.is_file():
        if folder.is_dir():
            remove_unfinished(folder)
        others = (
            [one for one in folder.iterdir() if one.name != PROTOCOL] if folder.is_dir() else []
        )
        if others:
            cause = f"is not empty, but has no sweep (it has {min(others).name})"
            raise CM3Error(str(folder), cause, other)
        OutputFolder(folder, PROTOCOL)
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        runs = dict(stored["runs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CM3Error(str(path), "is no sweep's", other) from error
    for key, words in (
        ("format", "a sweep of another version"),
        ("subject", f"a sweep of {stored.get('subject')}"),
        ("protocol", "a sweep that is measured by another protocol"),
    ):
        if stored.get(key) != claim[key]:
            raise CM3Error(str(folder), f"has {words}", other)
    for name, recipe_hash in runs.items():
        if name not in claim["runs"]:
            raise CM3Error(
                str(folder),
                f"has a sweep with the cell {name!r}, which this one lacks",
                f"{other}, or keep its cells and seeds and add to them",
            )
        if claim["runs"][name] != recipe_hash:
            raise CM3Error(
                str(folder),
                f"has a sweep whose cell {name!r} has another recipe (hash {recipe_hash}, here {claim['runs'][name]})",
                f"{other}, or repeat the command with the recipe and overrides that it was begun with",
            )


def result_of(folder: Path, run: Run) -> dict[str, Any] | None:
    """The result of a finished run; None if it isn't finished."""
    try:
        found: dict[str, Any] = json.loads(
            (folder / CELLS / run.name / RESULT).read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return None
    return found if found.get("hash") == run.recipe.hash else None
