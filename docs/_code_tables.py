"""Tables of docs/plugins/reference.md that no docstring has."""

from __future__ import annotations

import json
from typing import Any


def inputs() -> list[str]:
    """What providers of each op get, in its smallest case."""
    lines = ["| op | inputs in the smallest case |", "| --- | --- |"]
    where = _dry()
    for name, op in _ops().items():
        case = op.cases(where)[0]
        cells = (
            f"`{key}` {_input(value)}{', with a gradient' if key in op.gradients else ''}"
            for key, value in op.inputs(case, where, 0).items()
        )
        lines.append(f"| `{name}` | {', '.join(cells)} |")
    return lines


def costs() -> list[str]:
    """Keys, dtypes, directions and formulas of each op."""
    lines = [
        "| op | keys of a shape | dtypes | directions | least bytes and operations |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, op in _ops().items():
        keys = ", ".join(
            f"`{key}` {one.meaning}" + (f" ({', '.join(one.choices)})" if one.choices else "")
            for key, one in op.keys.items()
        )
        cells = keys, ", ".join(op.limits), ", ".join(op.directions), op.costs
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def _ops() -> dict[str, Any]:
    from cm3lab.benchmarks.kernels.ops import add
    from cm3run.benchmarks import BenchmarkRegistry

    registry = BenchmarkRegistry()
    add(registry)
    return registry.ops


def _dry() -> Any:
    import torch

    from cm3run.benchmarks import Where

    return Where(torch.device("cpu"), "cpu", "dry")


def _input(value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "null" if value is None else type(value).__name__


def protocol() -> list[str]:
    """The keys of a protocol's file, and those of each task."""
    from cm3apps.evaluation.tasks.base import TASKS
    from cm3run.evaluation.protocol import KEYS

    lines = ["| key | meaning |", "| --- | --- |"]
    for key, (must, text) in KEYS.items():
        lines.append(f"| `{key}`{'' if must else ' (optional)'} | {text} |")
    lines += ["", "| task and its keys, with defaults | meaning |", "| --- | --- |"]
    for task, (about, keys) in TASKS.items():
        lines.append(f"| **`{task}`** | {about} |")
        for name, own in keys.items():
            lines.append(f"| `{name}` = `{json.dumps(own.default)}` | {own.text} |")
    return lines
