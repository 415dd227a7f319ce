"""Records for tuning, made of the icon corpus: edits, structure, scenes, boxes, questions."""

from cm3plugins.datasets.icon_tasks.config import FORMS, IconTasksConfig

__all__ = ["FORMS", "IconTasksConfig"]
