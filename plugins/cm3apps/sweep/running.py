"""The processes of a sweep: several at a time, until every run is finished."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from tqdm import tqdm

from cm3apps.sweep.plan import LOGS, RESULTS, RUNS, Plan, Run, result_of
from cm3apps.sweep.worker import Task
from cm3core.errors import CM3Error, ProcessError
from cm3core.files import make_folder, write_text
from cm3run.devices import device_memory
from cm3run.progress import make_bar
from cm3run.training.memory import check_training_fits
from cm3run.training.metrics import METRICS

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry

#: Name of a log -> the process that writes it, its unfinished runs, and the open log.
Started: TypeAlias = "dict[str, tuple[subprocess.Popen[bytes], list[Run], IO[bytes]]]"
#: Processes at a time unless the user says otherwise, if cores and memory suffice.
JOBS = 2
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_STEPS = 2.0
#: Seconds that a process gets to save before it is killed.
_PATIENCE = 60.0
#: Most of a log's end that is read for an error.
_TAIL = 4096


@dataclass(frozen=True)
class Machine:
    """Where processes run, and what they may use: arguments of `Task`.

    Args:
        device, plugins, trust_endpoints, data: see `Task`.
    """

    device: str | None
    plugins: Sequence[Path]
    trust_endpoints: Sequence[str]
    data: Path | None


def check_memory(plan: Plan, device: str | None, jobs: int | None, registry: Registry) -> int:
    """The number of processes at a time.

    Args:
        plan: the cells.
        device: as in `cm3 train`.
        jobs: as the user says; None: `JOBS` if cores and memory suffice for them, else 1.

    Raises:
        RecipeError: a cell doesn't fit in memory, or so many at a time don't.
    """
    if plan.model is not None:
        return jobs or 1
    machine, on_cpu = device_memory(device)
    recipes = [runs[0] for runs in plan.trainings()]
    if jobs is None:
        jobs = JOBS if (os.cpu_count() or 1) >= JOBS and len(recipes) > 1 else 1
        for run in recipes:
            try:
                warning = check_training_fits(
                    run.recipe, machine.shared(jobs), on_cpu=on_cpu, registry=registry
                )
            except CM3Error:
                warning = "too large"
            jobs = 1 if warning is not None else jobs
    jobs = min(jobs, len(recipes))
    for run in recipes:
        try:
            warning = check_training_fits(
                run.recipe, machine.shared(jobs), on_cpu=on_cpu, registry=registry
            )
        except CM3Error as error:
            fewer = "" if jobs == 1 else "; or give a smaller --jobs"
            raise type(error)(
                f"cell {run.title}", error.cause, f"{error.next_step}{fewer}"
            ) from error
        if warning is not None:
            print(f"warning: cell {run.title}: {warning}", file=sys.stderr)
    return jobs


class Running:
    """Runs the plan's unfinished runs.

    Args:
        folder: of the sweep, claimed.
        plan: the cells.
        machine: where they run.
        jobs: processes at a time.
    """

    def __init__(self, folder: Path, plan: Plan, machine: Machine, jobs: int) -> None:
        self.folder, self.plan, self.machine, self.jobs = folder, plan, machine, jobs
        self._logs: dict[str, int] = {}

    def run(self) -> int:
        """Run all; return how many processes failed.

        Raises:
            KeyboardInterrupt: Ctrl-C; the processes have saved.
        """
        waiting = []
        for runs in self.plan.trainings():
            left = [one for one in runs if result_of(self.folder, one) is None]
            if left:
                waiting.append(left)
        done = len(self.plan.runs) - sum(map(len, waiting))
        self.write_results()
        if not waiting:
            return 0
        make_folder(self.folder / LOGS)
        running: Started = {}
        failed, looked = 0, 0.0
        with make_bar(
            desc="cells", total=len(self.plan.runs), initial=done, unit="cell", smoothing=0
        ) as bar:
            try:
                while waiting or running:
                    while waiting and len(running) < self.jobs:
                        self._start(waiting.pop(0), running)
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                    for name in list(running):
                        if error := self._look(name, running, bar):
                            failed += 1
                            tqdm.write(error, file=sys.stderr)
                    if time.monotonic() - looked > _SECONDS_BETWEEN_STEPS:
                        looked = time.monotonic()
                        bar.set_postfix_str(self._doing(running))
            finally:
                self._stop(running)
                self.write_results()
        return failed

    def _start(self, left: list[Run], running: Started) -> None:
        machine, model = self.machine, self.plan.model
        task = Task(
            folder=str(self.folder),
            recipe=self.plan.subject,
            training=left[0].training,
            model="" if model is None else str(model),
            cells={
                one.name: {
                    "label": one.cell.label,
                    "overrides": list(one.overrides),
                    "hash": one.recipe.hash,
                }
                for one in left
            },
            device=machine.device,
            plugins=[str(one) for one in machine.plugins],
            trust_endpoints=list(machine.trust_endpoints),
            data=None if machine.data is None else str(machine.data),
        )
        path = self.folder / LOGS / f"{task.name}.log"
        log = path.open("ab")
        self._logs[task.name] = path.stat().st_size
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        process = subprocess.Popen(
            # -P: don't import from the current folder
            [sys.executable, "-P", "-m", "cm3apps.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            # it imports the same packages as this process
            env={
                "OMP_NUM_THREADS": threads,
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
            },
            start_new_session=True,  # Ctrl-C comes from this process, once
        )
        running[task.name] = (process, left, log)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it failed at once, which its code tells
            process.stdin.write(task.text().encode())
            process.stdin.flush()

    def _look(
        self,
        name: str,
        running: Started,
        bar: tqdm[None],
    ) -> str:
        """Report what a process has finished; return the text of its failure, "" if there is none."""
        process, left, log = running[name]
        code = process.poll()  # first: results that are written until then are seen below
        for run in list(left):
            if (result := result_of(self.folder, run)) is not None:
                left.remove(run)
                tqdm.write(f"{run.title}: {_shown(result)}", file=sys.stderr)
                self.write_results()
                bar.update()
        if code is None:
            return ""
        del running[name]
        log.close()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        if code == 0 and not left:
            return ""
        cells = "; ".join(one.title for one in left)
        return f"cell {cells} failed: {self._error(name, code)}; see {log.name}"

    def _error(self, name: str, code: int) -> str:
        """Why a process failed: the error that it printed, or its code."""
        with (self.folder / LOGS / f"{name}.log").open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._logs[name], size - _TAIL))
            text = log.read().decode(errors="replace")
        _, found, said = text.rpartition("error: ")
        if found:
            return said.strip().replace("\n  next:", "; next:")
        return f"it was killed by signal {-code}" if code < 0 else f"its exit code is {code}"

    def _doing(self, running: Started) -> str:
        """How far each process is, e.g. "train.steps=20, seed 0: step 10 of 20"."""
        parts = []
        for _, left, _ in running.values():
            if left:
                step = _last_step(self.folder / RUNS / left[0].training)
                steps = left[0].recipe.train.steps
                doing = "" if step is None else f": step {step}" + (f" of {steps}" if steps else "")
                if step is not None and step == steps:
                    doing = ": evaluating"
                parts.append(f"{left[0].title}{doing}")
        return "; ".join(parts)

    def _stop(self, running: Started) -> None:
        """End all processes, which save first."""
        processes = [process for process, _, _ in running.values()]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        if processes:
            print("stopping: trainings are being saved", file=sys.stderr)
        until = time.monotonic() + _PATIENCE
        for process in processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
                process.wait()
        for _, _, log in running.values():
            log.close()

    def write_results(self) -> None:
        """Write the finished runs, in the plan's order."""
        found = (result_of(self.folder, run) for run in self.plan.runs)
        lines = [json.dumps(one) for one in found if one is not None]
        write_text(self.folder / RESULTS, "".join(f"{line}\n" for line in lines))


def _last_step(run: Path) -> int | None:
    """The last step of which a training has logged anything; None: none yet."""
    try:
        with (run / METRICS).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _shown(result: dict[str, object]) -> str:
    scores = result["scores"]
    assert isinstance(scores, dict)
    return ", ".join(f"{name} {one['value']:.4g}" for name, one in scores.items())


def check_done(failed: int, number: int) -> None:
    """Raise `ProcessError` if processes failed, whose errors were printed."""
    if failed:
        raise ProcessError(
            f"{failed} of {number} trainings",
            "failed, see above",
            "correct the cause; the same command tries them again, and no finished cell",
        )
