"""Emu3-Chat's, Emu3.5's and Lumina-mGPT 2.0's tasks, worded as in BAAI's `processing_emu3.py` and README
(baaivision/Emu3), `example_config_t2i.py`, `example_config_x2i.py` (baaivision/Emu3.5), and `generate.py`
(Alpha-VLLM/Lumina-mGPT-2.0), all Apache-2.0.

Emu3-Chat's prompt is "You are a helpful assistant. USER: {picture}{question}. ASSISTANT:"; the layout `emu3` adds the
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


#: What Emu3.5 reads before a request: for a task, and without one in the stream that guides a picture.
_EMU3_5, EMU3_5_NULL = (
    f"You are a helpful assistant{task}. USER: " for task in (" for {} task", "")
)


@dataclass(kw_only=True)
class Emu35DrawConfig(TaskConfig):
    """Draw a picture with Emu3.5. Fields: caption, image."""

    serves = "generate"

    def build(self) -> WordedTask:
        return WordedTask([(_EMU3_5.format("t2i") + "{caption}", "{image: image}")], ["image"])


@dataclass(kw_only=True)
class Emu35EditConfig(TaskConfig):
    """Edit a picture with Emu3.5. Fields: source, instruction, target."""

    serves = "edit"

    def build(self) -> WordedTask:
        system = _EMU3_5.format("x2i")
        wording = (system, "{image: source}", "{instruction}", "{image: target}")
        return WordedTask([wording], ["target"])


@dataclass(kw_only=True)
class LuminaDrawConfig(TaskConfig):
    """Draw a picture with Lumina-mGPT 2.0, whose prompts state its size. Fields: caption, image.

    Args:
        width, height: of pictures, in pixels.
    """

    serves = "generate"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "width": (1, 2**14),
        "height": (1, 2**14),
    }
    width: int = 768
    height: int = 768

    def build(self) -> WordedTask:
        self.check()
        asked = (
            f"Generate an image of {self.width}x{self.height} according to the following prompt:"
        )
        return WordedTask([(asked + "\n{caption}", "{image: image}")], ["image"])


#: Name in recipes -> config.
PUBLISHED_TASKS: dict[str, type[TaskConfig]] = {
    "emu3_5_draw": Emu35DrawConfig,
    "emu3_5_edit": Emu35EditConfig,
    "emu3_caption": Emu3CaptionConfig,
    "emu3_question": Emu3QuestionConfig,
    "lumina_draw": LuminaDrawConfig,
}
