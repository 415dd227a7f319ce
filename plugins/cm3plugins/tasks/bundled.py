"""The bundled tasks: CM3leon's, worded as in its Table 5 and its demo (facebookresearch/metaseq, branch
scaling_rebase_racm3xzuc, `metaseq/cli/demo.py`).

Models were tuned on these wordings: a changed wording no longer fits older models, so new ones are
only added, after the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from cm3core.interfaces.task import TaskConfig
from cm3plugins.tasks.worded import WordedTask, Wording


@dataclass(kw_only=True)
class BundledTaskConfig(TaskConfig):
    """Base of the bundled tasks' configs.

    Args:
        layout: position of an answer that is a text: "answer_last", after everything else, or "paper", in
            the text before the picture, where it is infilled (Table 5). Tasks whose answer is a picture have
            one layout.
        paraphrase: draw one of the task's wordings for each document; False: always use the first.
    """

    paper: ClassVar[Sequence[Wording]]
    #: None: same as `paper`.
    answer_last: ClassVar[Sequence[Wording] | None] = None
    response: ClassVar[tuple[str, ...]]
    layout: Literal["answer_last", "paper"] = "answer_last"
    paraphrase: bool = True

    def build(self) -> WordedTask:
        last = self.layout == "answer_last" and self.answer_last is not None
        wordings = self.answer_last if last and self.answer_last is not None else self.paper
        return WordedTask(wordings if self.paraphrase else wordings[:1], self.response)

    def for_untuned(self) -> TaskConfig:
        return replace(self, layout="paper", paraphrase=False)


@dataclass(kw_only=True)
class TextToImageConfig(BundledTaskConfig):
    """Text to picture: the caption, then the picture. Fields: caption, image."""

    serves, is_default = "generate", True
    paper = (("{caption}", "{image: image}"),)
    response = ("image",)


@dataclass(kw_only=True)
class CaptionConfig(BundledTaskConfig):
    """Picture to caption (COCO caption, Flickr30k). Fields: image, caption."""

    serves, is_default = "caption", True
    paper = (
        ("{caption}", "{image: image}"),
        ("Describe the given picture. {caption}", "{image: image}"),
    )
    answer_last = (
        ("{image: image}", "Describe the given picture.", "{caption}"),
        ("{image: image}", "What does the picture show?", "{caption}"),
    )
    response = ("caption",)


_AT_LENGTH = (
    "Describe the given picture in very detail.",
    "Describe all the objects in the given image in very detail.",
    "Generate a long caption for the given image.",
    "Generate a long narration of what is happening in the given image.",
)


@dataclass(kw_only=True)
class DenseCaptionConfig(BundledTaskConfig):
    """Picture to a long description (Image Paragraph, Localized Narratives). Fields: image, caption."""

    serves = "caption"
    paper = tuple((f"{wording} {{caption}}", "{image: image}") for wording in _AT_LENGTH)
    answer_last = tuple(("{image: image}", wording, "{caption}") for wording in _AT_LENGTH)
    response = ("caption",)


@dataclass(kw_only=True)
class QuestionConfig(BundledTaskConfig):
    """Question about a picture (VQA2, VizWiz, OKVQA). Fields: image, question, answer."""

    serves, is_default = "ask", True
    paper = (
        ("Question: {question} Answer: {answer}.", "{image: image}"),
        ("Question: {question}\n{answer}", "{image: image}"),
        ("Question: {question} The answer is {answer}.", "{image: image}"),
    )
    answer_last = (
        ("{image: image}", "Question: {question} Answer:", "{answer}"),
        ("{image: image}", "Question: {question}", "{answer}"),
        ("{image: image}", "Question: {question} The answer is", "{answer}"),
    )
    response = ("answer",)


@dataclass(kw_only=True)
class PlainQuestionConfig(BundledTaskConfig):
    """Question about a picture in the user's own words (models tuned on conversations, Chameleon).
    Fields: image, question, answer."""

    serves = "ask"
    paper = (("{image: image}", "{question}", "{answer}"),)
    response = ("answer",)


_REASON = "Question: {question} Context: {context} Options: {options} Answer:"


@dataclass(kw_only=True)
class ReasonConfig(BundledTaskConfig):
    """Question with options, answered step by step (ScienceQA). Fields: image, question, context,
    options, solution (the steps and, at their end, the answer)."""

    paper = ((f"{_REASON} Let's think step-by-step: {{solution}}", "{image: image}"),)
    answer_last = (("{image: image}", f"{_REASON} Let's think step-by-step:", "{solution}"),)
    response = ("solution",)


@dataclass(kw_only=True)
class EditConfig(BundledTaskConfig):
    """Edit a picture by an instruction (InstructPix2Pix). Fields: source, instruction, target."""

    serves, is_default = "edit", True
    paper = tuple(
        (wording, "{image: source}", "{instruction}", "{image: target}")
        for wording in (
            "Edit first image following the instruction",
            "Edit the image following the text instruction",
        )
    )
    response = ("target",)


@dataclass(kw_only=True)
class StructureConfig(BundledTaskConfig):
    """A picture from a structure, such as edges or a segmentation map, and a caption (ControlNet). Fields:
    feature (name of the structure: "canny edge features"), condition, caption,
    image."""

    serves, is_default = "structure", True
    paper = (
        (
            "Make high quality image from {feature}",
            "{image: condition}",
            "{caption}",
            "{image: image}",
        ),
    )
    response = ("image",)


@dataclass(kw_only=True)
class ObjectsConfig(BundledTaskConfig):
    """A picture from a caption and objects in boxes. Fields: caption, objects ("bell at (10, 12) ->
    (40, 44)", coordinates 0 to 255), image."""

    paper = (
        ("Generate high quality image of {caption} with segmentations {objects}", "{image: image}"),
    )
    response = ("image",)


@dataclass(kw_only=True)
class GroundingConfig(BundledTaskConfig):
    """Locate an object in a picture, as text. Fields: image, phrase, objects (as in
    `object_to_image`)."""

    serves = "ask"
    paper = (
        ("Where is the {phrase}? {objects}", "{image: image}"),
        ("Find the {phrase}. {objects}", "{image: image}"),
    )
    answer_last = (
        ("{image: image}", "Where is the {phrase}?", "{objects}"),
        ("{image: image}", "Find the {phrase}.", "{objects}"),
    )
    response = ("objects",)


@dataclass(kw_only=True)
class ReadingConfig(BundledTaskConfig):
    """Read the text in a picture. Fields: image, text."""

    serves = "caption"
    paper = (('draw "{text}"', "{image: image}"),)
    answer_last = (("{image: image}", "What is written in the picture?", "{text}"),)
    response = ("text",)


@dataclass(kw_only=True)
class SuperResolutionConfig(BundledTaskConfig):
    """Sharpen a blurred picture. Fields: source, target."""

    serves, is_default = "upscale", True
    paper = (("Make a sharp picture of this one", "{image: source}", "{image: target}"),)
    response = ("target",)


@dataclass(kw_only=True)
class ChatConfig(BundledTaskConfig):
    """Conversation about a picture. Fields: image, conversation (the turns so far, as one text, ending
    with the user's), answer."""

    serves = "ask"
    paper = (("{conversation} Assistant: {answer}", "{image: image}"),)
    answer_last = (("{image: image}", "{conversation} Assistant:", "{answer}"),)
    response = ("answer",)


#: Name in recipes -> config.
TASKS: dict[str, type[TaskConfig]] = {
    "t2i": TextToImageConfig,
    "caption": CaptionConfig,
    "dense_caption": DenseCaptionConfig,
    "vqa": QuestionConfig,
    "plain_question": PlainQuestionConfig,
    "reason": ReasonConfig,
    "edit": EditConfig,
    "structure": StructureConfig,
    "object_to_image": ObjectsConfig,
    "grounding": GroundingConfig,
    "ocr": ReadingConfig,
    "super_resolution": SuperResolutionConfig,
    "chat": ChatConfig,
}
