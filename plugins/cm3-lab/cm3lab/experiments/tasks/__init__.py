"""`cm3 experiment tasks`: quality of a tuned icon model on each task. Light: the names of tasks."""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("comp", "compose", "unseen", "train")
#: In the order of the report.
TASKS = ("edit", "edges", "boxes", "place", "find", "answer", "chat", "caption", "enlarge")


@dataclass(frozen=True)
class TaskSettings:
    """Settings of the measurement.

    Args:
        num: number of records per task and split.
        splits: splits of the icons.
        tasks: some of `TASKS`.
        seed: seed of generated pictures; texts are the most probable ones.
    """

    num: int
    splits: tuple[str, ...]
    tasks: tuple[str, ...]
    seed: int = 0
