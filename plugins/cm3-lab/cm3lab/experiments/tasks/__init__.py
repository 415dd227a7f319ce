"""`cm3 experiment tasks`: quality of a tuned icon model on each task. Light: what can be measured."""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("comp", "compose", "unseen", "train")
#: In the order of the report.
TASKS = ("edit", "edges", "boxes", "place", "find", "answer", "chat", "caption", "enlarge")


@dataclass(frozen=True)
class TaskSettings:
    """What is measured.

    Args:
        num: records of each task and split.
        splits: of the icons.
        tasks: some of `TASKS`.
        seed: of what is drawn; texts are the most probable ones.
    """

    num: int
    splits: tuple[str, ...]
    tasks: tuple[str, ...]
    seed: int = 0
