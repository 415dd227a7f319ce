"""A process of a sweep: trains one recipe with one seed, or goes on with it, and evaluates the cells that share the
weights. The first line of its stdin is a `Task` as JSON.

It stops, and saves first, when the process that started it ends for any reason: its stdin then closes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.sweep.plan import CELLS, LOGS, PROTOCOL, RESULT, RUNS

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.evaluation.protocol import Protocol
    from cm3run.model import Model


@dataclass(frozen=True)
class Task:
    """What a process does.

    Args:
        folder: of the sweep.
        recipe: the recipe's name or file.
        training: name of the training's folder in `runs`; "": a trained model is evaluated.
        model: the trained model's folder; "": one is trained.
        cells: name in `cells` -> {"label", "overrides", "hash"} of the unfinished cells.
        device, plugins, trust_endpoints, data: as `cm3 train` and `cm3 eval` take them.
    """

    folder: str
    recipe: str
    training: str
    model: str
    cells: dict[str, dict[str, Any]]
    device: str | None
    plugins: list[str]
    trust_endpoints: list[str]
    data: str | None

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def of(cls, line: str) -> Task:
        """The inverse of `text`."""
        values = json.loads(line)
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def name(self) -> str:
        """Name of its log."""
        return self.training or next(iter(self.cells))


def run(task: Task) -> None:
    """Train and evaluate what isn't finished.

    Raises:
        CM3Error: see `cm3run.training.train` and `Evaluation.run`.
        TrainingInterrupted, KeyboardInterrupt: stopped; the same task goes on.
    """
    from cm3core.files import locked
    from cm3core.plugins.discovery import load_registry
    from cm3run.evaluation.protocol import read_protocol

    folder = Path(task.folder)
    registry = load_registry([Path(one) for one in task.plugins])
    protocol = read_protocol(folder / PROTOCOL)
    # a process of a sweep that was killed may still be saving
    with locked(folder / LOGS / f"{task.name}.lock"):
        trained = _trained(task, registry)
        for name in task.cells:
            model = _model(task, trained["checkpoint"], registry)
            _evaluate(task, name, model, protocol, trained)


def _trained(task: Task, registry: Registry) -> dict[str, Any]:
    """The training's checkpoint and facts."""
    if task.model:
        return {"checkpoint": task.model, "run": task.recipe}
    from cm3run.training import train

    overrides = next(iter(task.cells.values()))["overrides"]
    folder = Path(task.folder) / RUNS / task.training
    result = train(
        _composed(task, overrides, registry),
        folder,
        registry,
        device=task.device,
        trust_endpoints=task.trust_endpoints,
    )
    return {
        "checkpoint": str(result.checkpoint),
        "run": f"{RUNS}/{task.training}",
        "tokens": result.tokens,
        "seconds": round(result.elapsed_s, 3),
    }


def _composed(task: Task, overrides: Sequence[str], registry: Registry) -> Recipe:
    from cm3core.recipe import compose
    from cm3run.checkpoint import read_recipe

    if task.model:
        return read_recipe(
            Path(task.model),
            registry,
            trust_endpoints=task.trust_endpoints,
            overrides=overrides,
        )
    return compose(task.recipe, overrides, registry=registry)


def _model(task: Task, checkpoint: str, registry: Registry) -> Model:
    from cm3run.model import load

    return load(
        checkpoint,
        registry=registry,
        device=task.device,
        precision="fp32",  # others are chosen by speed, so that cells could differ in it
        trust_endpoints=task.trust_endpoints,
    )


def generating_by(model: Model, recipe: Recipe) -> Model:
    """A trained model with the sampler, the reranker and whatever else training doesn't use of another recipe."""
    from cm3run.checkpoint import generating_as
    from cm3run.model import Model

    changed = generating_as(model.recipe, recipe)
    components = replace(
        model.components, recipe=changed, memory_split=changed.generate.memory_split
    )
    other = Model(
        changed,
        components,
        name=model.name,
        step=model.step,
        num_threads=model.options.num_threads,
        precision="fp32",
        max_rows=model.options.max_rows,
        tasks=model.tasks,
    )
    other.words, other.told = model.words, model.told
    return other


def _evaluate(
    task: Task,
    name: str,
    model: Model,
    protocol: Protocol,
    trained: dict[str, Any],
) -> None:
    """Evaluate a cell; its last file says that it is finished."""
    from cm3apps.evaluation.evaluating import Evaluation
    from cm3apps.evaluation.tasks import open_task
    from cm3core.files import write_text

    registry = model.components.registry
    cell = task.cells[name]
    recipe = _composed(task, cell["overrides"], registry)
    own, out = generating_by(model, recipe), Path(task.folder) / CELLS / name
    evaluation = Evaluation(
        protocol,
        open_task(
            protocol.task,
            size=protocol.size,
            data=None if task.data is None else Path(task.data),
            model=own,
            registry=registry,
            writer=protocol.writer,
        ),
        registry,
        out,
        model=own,
        label=name,
    )
    scores = evaluation.run()["scores"]
    kept = ("value", "num", "higher_is_better", "hash")
    facts: dict[str, Any] = {key: trained[key] for key in ("tokens", "seconds") if key in trained}
    result = {
        "cell": cell["label"],
        "seed": recipe.train.seed,
        "overrides": cell["overrides"],
        "hash": cell["hash"],
        "run": trained["run"],
        "step": model.step,
        **facts,
        "scores": {
            row["name"]: {key: row[key] for key in kept} for row in scores if "value" in row
        },
        "cases": f"{CELLS}/{name}/samples.jsonl",
    }
    write_text(out / RESULT, json.dumps(result) + "\n")


def _stop_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)  # a training saves, as after Ctrl-C


def main() -> int:
    """Read the task, do it; return the exit code: 0 done, 2 wrong, 130 stopped."""
    from cm3apps.cli._process import calm_threads, failure_of, plain_warnings, print_error
    from cm3run.training.state import TrainingInterrupted

    signal.signal(signal.SIGINT, signal.default_int_handler)
    plain_warnings()
    calm_threads()
    # unbuffered: what follows the line must stay for the thread
    task = Task.of(_first_line())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        run(task)
    except (TrainingInterrupted, KeyboardInterrupt) as stopped:
        print(stopped or "stopped", file=sys.stderr)
        return 130
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        print_error(failure, [])
        return 2
    return 0


def _first_line() -> str:
    line = bytearray()
    while (letter := os.read(sys.stdin.fileno(), 1)) not in (b"", b"\n"):
        line += letter
    return line.decode()


if __name__ == "__main__":
    sys.exit(main())
