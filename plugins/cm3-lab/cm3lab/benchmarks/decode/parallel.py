"""Several codes of a picture per step compared with one (`cm3 bench decode --parallel`).

The same pictures are drawn with every window, in turns; the shortest of a window's runs counts. Trained models draw
prompts of their own kind with the documents that they retrieve, random weights the random prompts of the benchmark.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cm3core
from cm3core.document import Codes
from cm3lab.benchmarks.decode.engine import EngineProvider, RandomModel, Variant, requests_of
from cm3lab.benchmarks.decode.workload import Setup, decode_case
from cm3run.generation.engine import Completion, Engine, EngineOptions, Request

if TYPE_CHECKING:
    from cm3run.generation.jacobi import Window

#: Windows that are measured; the first is one code per step.
WINDOWS: tuple[Window, ...] = (1, 4, 8, 16, 32, "auto")
#: Trained model -> prompts, each drawn by itself.
TRAINED = {
    "bundled:icons64-tuned": ("bell off, outline", "fish, filled", "house, outline"),
    "bundled:emoji64": ("red apple, noto style",),
}
#: Codes of a picture of random weights.
RANDOM_CODES = 64
RUNS = 2


class CountingDecoder:
    """An inference decoder that counts the forward passes of drawing: those that continue a cache."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.forwards = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def hidden_states(self, *arguments: Any, **options: Any) -> Any:
        """As of the decoder; prompts are not counted."""
        self.forwards += arguments[0].shape[1] == 1
        return self._inner.hidden_states(*arguments, **options)

    def hidden_states_ahead(self, *arguments: Any, **options: Any) -> Any:
        """As of the decoder."""
        self.forwards += 1
        return self._inner.hidden_states_ahead(*arguments, **options)


@dataclass(frozen=True)
class Result:
    """One window of one model.

    Args:
        model: its name.
        pictures: drawn at a time.
        codes: of a picture.
        window: codes drawn per step.
        accepted: codes per forward pass, of each picture; the first code, which the prompt's pass gives, left out.
        seconds: of a picture, reading its prompt included.
        gain: the time of one code per step over this one.
        same: whether all pictures equal those of one code per step.
    """

    model: str
    pictures: int
    codes: int
    window: Window
    accepted: float
    seconds: float
    gain: float
    same: bool


def compared(
    name: str, engine: Engine, groups: Sequence[Sequence[Request]], windows: Sequence[Window]
) -> list[Result]:
    """Every window on an engine's decoder; the requests of a group are drawn together."""
    counting = CountingDecoder(engine.inference)
    preparer = engine.preparer
    engines = [
        Engine(
            engine.decoder,
            engine.serializer,
            engine.sampler,
            engine.vocabulary,
            EngineOptions(
                max_text_tokens=preparer.max_text_tokens,
                max_rows=preparer.max_rows,
                num_threads=preparer.num_threads,
                window=window,
            ),
            inference=counting,  # type: ignore[arg-type]  # passes on all else
        )
        for window in windows
    ]
    seconds, forwards = [float("inf")] * len(windows), [0] * len(windows)
    drawn: list[list[Any]] = [[] for _ in windows]
    for run in range(1 + RUNS):
        for place, own in enumerate(engines):
            counting.forwards = 0
            begin = time.perf_counter()
            done = [own.complete(requests) for requests in groups]
            if run:  # the first one warms up
                seconds[place] = min(seconds[place], time.perf_counter() - begin)
            forwards[place] = counting.forwards
            drawn[place] = [_codes(one) for requests in done for one in requests]
    number = sum(map(len, groups))
    codes = len(drawn[0][0])
    return [
        Result(
            name,
            len(groups[0]),
            codes,
            window,
            len(groups) * (codes - 1) / forwards[place],
            seconds[place] / number,
            seconds[0] / seconds[place],
            drawn[place] == drawn[0],
        )
        for place, window in enumerate(windows)
    ]


def _codes(completion: Completion) -> list[int]:
    """The codes of a completed picture."""
    pictures = [one for one in completion.document if isinstance(one, Codes)]
    return [int(code) for code in pictures[-1].codes]


def measured(setup: Setup, batches: Sequence[int]) -> Iterator[list[Result]]:
    """The results of each model and batch: trained models, then random weights."""
    for name, prompts in TRAINED.items():
        model = cm3core.load(name, device=str(setup.device), num_threads=setup.threads)
        for batch in batches:
            groups = []
            for prompt in prompts:
                jobs, _ = model.image_jobs(prompt, batch, num_candidates=1, draw=True, force=True)
                groups.append([request for job in jobs for request in job.requests])
            yield compared(name, model.engine, groups, WINDOWS)
    model_of_nothing = RandomModel(setup)
    provider = EngineProvider("engine", setup, Variant(), model_of_nothing)
    for batch in batches:
        engine = provider.engine(RANDOM_CODES, batch)
        case = decode_case(setup, RANDOM_CODES, batch=batch)
        name = f"random weights, {setup.size.name}"
        requests = [replace(one, sampler=engine.sampler) for one in requests_of(case)]
        yield compared(name, engine, [requests], WINDOWS)


def table(results: Sequence[Result]) -> str:
    """The results of one model and batch as a table for people."""
    first = results[0]
    lines = [
        f"{first.model}: {first.pictures} at a time, {first.codes} codes each",
        f"  {'window':>6} {'codes a forward':>15} {'s a picture':>11} {'gain':>5}  pictures",
    ]
    lines += [
        f"  {one.window:>6} {one.accepted:>15.2f} {one.seconds:>11.3f} {one.gain:>5.2f}  "
        + ("the same" if one.same else "DIFFER")
        for one in results
    ]
    return "\n".join(lines)
