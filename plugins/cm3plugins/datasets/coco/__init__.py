"""Data set `coco`: COCO's annotations as captions, boxes, and pictures of segments and poses.

This module holds its config, which imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3plugins.datasets.coco.settings import FEATURES, FormName
from cm3plugins.datasets.file_source import FileSourceConfig, FoundRecord

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import SkippedRecord
    from cm3plugins.datasets.pictures import PictureIndex


@dataclass(kw_only=True)
class COCOConfig(FileSourceConfig):
    """Pictures with COCO's annotations: captions, instances, panoptic segments or keypoints.

    Args:
        form: form of the records. "caption" (image, caption): from captions_*.json. "grounding" (image,
            phrase, objects): boxes of all objects of one category, and "objects" (caption, objects,
            image): all boxes of a picture; both from instances_*.json, or any file with boxes.
            "segmentation" (feature, condition, caption, image): the condition is drawn from
            instances_*.json, or from panoptic_*.json and its PNGs. "pose" (same fields): drawn
            from person_keypoints_*.json.
        path: the JSON file.
        pictures: folder of the pictures, which contains each `file_name`.
        captions: a captions_*.json with the captions for "objects", "segmentation" and "pose";
            "": captions name the categories in the picture.
        segments: folder of panoptic PNGs; "": the folder next to the JSON file, with the same name without
            `.json`.
        feature: name of the condition in documents; "": "segmentation map" or "human pose".
        allow_outside: read pictures outside their folders, through `../` or links; false: skip their
            records.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "the annotations"),
        "pictures": Outside(READS, "its pictures"),
        "captions": Outside(READS, "the captions"),
        "segments": Outside(READS, "the panoptic segments"),
        "feature": TEXT,
    }

    form: FormName = "caption"
    path: str
    pictures: str
    captions: str = ""
    segments: str = ""
    feature: str = ""
    allow_outside: bool = False

    def check(self) -> None:
        """Raise `RecipeError` for a key that the form does not use."""
        super().check()
        unused = {
            "captions": self.form in ("caption", "grounding"),
            "segments": self.form != "segmentation",
            "feature": self.form not in FEATURES,
        }
        for key, is_unused in unused.items():
            if is_unused and getattr(self, key):
                raise RecipeError(
                    f"dataset.{key}",
                    f"is not used by the form {self.form!r}",
                    "leave it out, or choose another dataset.form",
                )

    def structures(self) -> list[str]:
        return [self.feature or FEATURES[self.form]] if self.form in FEATURES else []

    def scan(self, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
        """Yield records in the order of the file's pictures."""
        from cm3plugins.datasets.coco.records import records

        return records(self, index)
