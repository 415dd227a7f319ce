"""Draw what runs of grpo.py measured, step by step: `python examples/grpo/curves.py RUN/curve.jsonl ... -o curves.png`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cm3core.files import atomic_path

#: Values of a step that are no measures of its pictures.
LEFT_OUT = ("step", "cpu_seconds", "group_std", "kl", "clipped")


def main() -> None:
    """Write a picture: a line of each run for each value, steps to the right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("curves", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, default=Path("curves.png"))
    arguments = parser.parse_args()
    from matplotlib.figure import Figure

    runs = [
        [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in arguments.curves
    ]
    steps = [[one for one in run if "reward" in one] for run in runs]
    names = [name for name in steps[0][0] if name not in LEFT_OUT]
    figure = Figure(figsize=(2.6 * len(names), 2.4), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        for path, run in zip(arguments.curves, steps, strict=True):
            axes.plot([one["step"] for one in run], [one[name] for one in run], label=path.stem)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
    figure.axes[0].legend(fontsize="x-small")
    with atomic_path(arguments.out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    main()
