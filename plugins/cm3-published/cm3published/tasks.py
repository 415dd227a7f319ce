"""Emu3-Chat's tasks, worded as in BAAI's `processing_emu3.py` and README (baaivision/Emu3, Apache-2.0).

Its prompt is "You are a helpful assistant. USER: {picture}{question}. ASSISTANT:"; the layout `emu3` adds the
last word (`layout.answer`), so that a question and its full stop are one text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cm3core.errors import RecipeError
from cm3core.interfaces.reach import TEXT, Outside
from cm3core.interfaces.task import TaskConfig
from cm3plugins.tasks.worded import WordedTask

_SYSTEM, _PICTURE = "You are a helpful assistant. USER: ", "{image: image}"


@dataclass(kw_only=True)
class Emu3CaptionConfig(TaskConfig):
    """Describe a picture with Emu3-Chat. Fields: image, caption.

    Args:
        request: the request, without its final full stop.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "request": TEXT,
    }

    serves = "caption"
    request: str = "Please describe the image"

    def check(self) -> None:
        """Raise `RecipeError` for an invalid request."""
        super().check()
        if not self.request.strip() or set("{}") & set(self.request):
            raise RecipeError("task.request", f"is {self.request!r}", "use words without braces")

    def build(self) -> WordedTask:
        self.check()
        return WordedTask([(_SYSTEM, _PICTURE, f"{self.request}.", "{caption}")], ["caption"])


@dataclass(kw_only=True)
class Emu3QuestionConfig(TaskConfig):
    """Ask Emu3-Chat a question about a picture. Fields: image, question, answer."""

    serves = "ask"

    def build(self) -> WordedTask:
        return WordedTask([(_SYSTEM, _PICTURE, "{question}.", "{answer}")], ["answer"])


#: Name in recipes -> config.
EMU3_TASKS: dict[str, type[TaskConfig]] = {
    "emu3_caption": Emu3CaptionConfig,
    "emu3_question": Emu3QuestionConfig,
}
