"""The progress of a training run: a bar on a terminal, a line a minute anywhere else."""

from __future__ import annotations

import math
import sys
import time

from cm3core import progress
from cm3run.training.state import TrainState


class ProgressBar:
    """The progress bar, in steps, or in seconds if the run's length is in minutes.

    Where stderr is no terminal, a line is written to it once a minute: a log file stays readable.
    """

    def __init__(self, state: TrainState, show: bool) -> None:
        self.state = state
        self._writes_lines = show and not progress.bars_shown()
        self._last_line = time.monotonic()
        by_clock = state.schedule.minutes is not None
        total = (
            60 * state.schedule.minutes
            if state.schedule.minutes is not None
            else state.schedule.steps
        )
        self.bar = progress.make_bar(
            total=total,
            initial=min(self._now(), total or 0),
            disable=not show or self._writes_lines,
            desc=state.recipe.name,
            mininterval=0.5,
            unit="s" if by_clock else "step",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit}{postfix}",
        )

    def _now(self) -> float:
        return self.state.elapsed_s if self.state.schedule.minutes is not None else self.state.step

    def update(self) -> None:
        """Show the current values."""
        state = self.state
        left = state.seconds_left
        clock = f"{int(left) // 60}:{int(left) % 60:02d} left" if math.isfinite(left) else ""
        parts = [clock, f"{state.speed.rate:,.0f} tokens/s"]
        losses = {name: state.metrics.get(f"train/{name}_loss") for name in ("image", "text")}
        parts += [f"{name} {loss:.3f}" for name, loss in losses.items() if loss is not None]
        shown = ", ".join(part for part in parts if part)
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update(max(0.0, min(self._now(), self.bar.total) - self.bar.n))

        now = time.monotonic()
        if self._writes_lines and now - self._last_line >= progress.SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(
                f"{state.recipe.name}: step {state.step:,}, {100 * state.progress:.0f}%, {shown}",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
