"""Tables of docs/plugins/reference.md that no docstring has."""

from __future__ import annotations

import json
from typing import Any


def inputs() -> list[str]:
    """What providers of each op get, in its smallest case."""
    import torch

    from cm3lab.benchmarks.ops import add
    from cm3run.benchmarks import BenchmarkRegistry, Where

    registry, where = BenchmarkRegistry(), Where(torch.device("cpu"), "cpu", "dry")
    add(registry)
    lines = ["| op | inputs in the smallest case |", "| --- | --- |"]
    for name, op in registry.ops.items():
        case = op.cases(where)[0]
        cells = (f"`{key}` {_input(value)}" for key, value in op.inputs(case, where, 0).items())
        lines.append(f"| `{name}` | {', '.join(cells)} |")
    return lines


def _input(value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        trained = ", with a gradient" if value.requires_grad else ""
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}{trained}"
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
