"""Which entries are compiled for which targets, in worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

from cm3kernels.aot.compiling import Usage, measure
from cm3kernels.aot.entry import AotEntry, collect

#: gfx942 has no budget: that it compiles is the test.
AMD = "gfx942"


@dataclass(frozen=True)
class Result:
    """One entry on one target: `usage`, or the `error` that the compiler gave."""

    name: str
    target: str
    usage: Usage | None
    error: str = ""


def jobs_of(
    entries: Iterable[AotEntry], *, extended: bool = False
) -> list[tuple[str, int | str, bool]]:
    """Every entry on its capabilities; and of each kernel function the first entry on AMD, and on
    sm_90 (if it runs there) without alignment (`extended`: every entry)."""
    jobs: list[tuple[str, int | str, bool]] = []
    seen: set[int] = set()
    for entry in entries:
        jobs += [(entry.name, arch, True) for arch in entry.archs]
        if extended or id(entry.kernel) not in seen:
            seen.add(id(entry.kernel))
            unaligned = 90 if 90 in entry.archs else entry.archs[-1]
            jobs += [(entry.name, AMD, True), (entry.name, unaligned, False)]
    return jobs


def target_of(job: tuple[str, int | str, bool]) -> str:
    """Return a job's target as in the budget: "sm_90"; or "gfx942", "sm_90 unaligned"."""
    _, arch, aligned = job
    return (f"sm_{arch}" if isinstance(arch, int) else arch) + ("" if aligned else " unaligned")


def remaining(
    jobs: Iterable[tuple[str, int | str, bool]], results: Iterable[Result]
) -> list[tuple[str, int | str, bool]]:
    """Leave out jobs whose result is known, and those on AMD or unaligned of entries with nothing left to
    compile."""
    known = {(result.name, result.target) for result in results}
    jobs = list(jobs)
    left = {
        job[0] for job in jobs if job[1] != AMD and job[2] and (job[0], target_of(job)) not in known
    }
    return [job for job in jobs if job[0] in left and (job[0], target_of(job)) not in known]


def run(
    jobs: Sequence[tuple[str, int | str, bool]],
    *,
    num_processes: int = 2,
    all_instructions: bool = True,
) -> Iterator[Result]:
    """Compile in parallel; results in the order of the jobs, as they become available.

    Args:
        jobs: from `jobs_of`.
        num_processes: processes.
        all_instructions: False reads the instructions only of entries that expect some.
    """
    job = partial(_job, all_instructions=all_instructions)
    if num_processes == 1:
        yield from map(job, jobs)
        return
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, jobs)


def _job(job: tuple[str, int | str, bool], *, all_instructions: bool) -> Result:
    """In a worker process: kernels can't be pickled, so it finds them by name."""
    name, arch, aligned = job
    entry = next(entry for entry in collect() if entry.name == name)
    target = target_of(job)
    try:
        judged = isinstance(arch, int) and bool(entry.expects.get(arch) or entry.multiply_adds)
        needed = aligned and (all_instructions or judged)
        return Result(name, target, measure(entry, arch, aligned=aligned, instructions=needed))
    except Exception as error:  # whatever the compiler raises is this entry's finding
        return Result(name, target, None, _reason(error))


def _reason(error: BaseException) -> str:
    """One line: the innermost of Triton's chain of errors (caller, callee); its message follows the
    source that it quotes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['?'])[-1][:300]}"
