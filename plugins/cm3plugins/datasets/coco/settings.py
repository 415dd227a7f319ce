"""The keys of COCO's config that its records read."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

#: What a record is.
FormName: TypeAlias = Literal["caption", "grounding", "objects", "segmentation", "pose"]
#: Form -> what the condition is called in a document, if it has one.
FEATURES = {"segmentation": "segmentation map", "pose": "human pose"}


class Settings(Protocol):
    """The keys of `COCOConfig` that decide the records."""

    form: FormName
    path: str
    pictures: str
    captions: str
    segments: str
    feature: str
    allow_outside: bool
