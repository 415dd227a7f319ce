"""The keys of COCO's config that its records use."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

#: Forms of a record.
FormName: TypeAlias = Literal["caption", "grounding", "objects", "segmentation", "pose"]
#: Form -> name of the condition in documents, for forms that have one.
FEATURES = {"segmentation": "segmentation map", "pose": "human pose"}


class Settings(Protocol):
    """The keys of `COCOConfig` that determine the records."""

    form: FormName
    path: str
    pictures: str
    captions: str
    segments: str
    feature: str
    allow_outside: bool
