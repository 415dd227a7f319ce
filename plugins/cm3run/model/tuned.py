"""What a model was tuned for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cm3core.interfaces.task import TaskConfig


@dataclass(frozen=True)
class TunedTasks:
    """The tasks that a model was tuned for.

    Args:
        configs: name -> config. Empty: it was not tuned.
        plain: whether plain documents were trained on beside them, which draw and caption.
        lost: name -> what to do, of tasks that no plugin in use provides.
        turns: whether it was tuned on conversations in its layout's turns.
        retrieving: the tasks whose documents had retrieved ones in front.
    """

    configs: Mapping[str, TaskConfig] = field(default_factory=dict)
    plain: bool = False
    lost: Mapping[str, str] = field(default_factory=dict)
    turns: bool = False
    retrieving: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """Their names."""
        return sorted([*self.configs, *self.lost])
