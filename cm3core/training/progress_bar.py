"""The progress bar of a training run."""

from __future__ import annotations

import math

from tqdm import tqdm

from cm3core.training.state import TrainState


class ProgressBar:
    """The progress bar, in steps, or in seconds if the run's length is in minutes."""

    def __init__(self, state: TrainState, show: bool) -> None:
        self.state = state
        by_clock = state.schedule.minutes is not None
        total = (
            60 * state.schedule.minutes
            if state.schedule.minutes is not None
            else state.schedule.steps
        )
        self.bar = tqdm(
            total=total,
            initial=min(self._now(), total or 0),
            disable=not show,
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
        self.bar.set_postfix_str(", ".join(part for part in parts if part), refresh=False)
        self.bar.update(max(0.0, min(self._now(), self.bar.total) - self.bar.n))

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
