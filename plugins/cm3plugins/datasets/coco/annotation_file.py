"""COCO's annotation files: pictures, annotations, categories and licences, and what is wrong in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm3core.errors import DataError
from cm3core.interfaces.dataset import Provenance
from cm3plugins.datasets.annotations import (
    list_in,
    name_in,
    object_of,
    provenance_of,
    read_json,
    text_in,
)

#: An annotation: its place in messages, and its values.
Annotation = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Category:
    """A category: number, name, and for poses its keypoints and the limbs between them, from 0."""

    number: int
    name: str
    num_keypoints: int
    skeleton: tuple[tuple[int, int], ...]


@dataclass
class AnnotationFile:
    """A COCO file: pictures in order, what is annotated in each, categories, licences, problems."""

    path: Path
    images: dict[str, Annotation] = field(default_factory=dict)
    annotations: dict[str, list[Annotation]] = field(default_factory=lambda: defaultdict(list))
    categories: dict[str, Category] = field(default_factory=dict)
    licences: dict[str, Any] = field(default_factory=dict)
    problems: list[DataError] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> AnnotationFile:
        """Read the file; raises `DataError` if it is none of COCO's."""
        found, whole = cls(path), object_of(str(path), read_json(path))
        for place, values in found._each("image", list_in(str(path), whole, "images")):
            if (name := str(values["id"])) in found.images:
                found.problems.append(
                    DataError(
                        place,
                        f"its id {name} is also that of {found.images[name][0]}",
                        "keep one of the two",
                    )
                )
            else:
                found.images[name] = place, values
        for place, values in found._each("annotation", list_in(str(path), whole, "annotations")):
            if (name := str(values.get("image_id"))) in found.images:
                found.annotations[name].append((place, values))
            else:
                found.problems.append(
                    DataError(
                        place,
                        f"is about the picture {name}, which 'images' has not",
                        "add the picture, or remove the annotation",
                    )
                )
        for place, values in found._each("category", whole.get("categories") or []):
            try:
                found.categories[str(values["id"])] = _category(place, values)
            except DataError as error:
                found.problems.append(error)
        licences = whole.get("licenses")
        for one in licences if isinstance(licences, list) else []:
            if isinstance(one, dict):
                found.licences[str(one.get("id"))] = one
        return found

    def _each(self, noun: str, values: Any) -> Iterator[Annotation]:
        """Those values that are objects with an id; a panoptic annotation has its picture's."""
        for number, value in enumerate(values if isinstance(values, list) else []):
            place = f"{self.path}, {noun} {number}"
            try:
                own = object_of(place, value)
                name_in(place, own, "image_id" if noun == "annotation" else "id")
                yield place, own
            except DataError as error:
                self.problems.append(error)

    def category_of(self, place: str, values: dict[str, Any]) -> Category:
        """The category of an annotation or a segment; raises `DataError` if there is none."""
        given = values.get("category_id")
        number = str(given)
        if number not in self.categories:
            raise DataError(
                place, f"has the category {given!r}, which 'categories' has not", "add the category"
            )
        return self.categories[number]

    def provenance(self, values: dict[str, Any]) -> Provenance:
        """Licence and address of a picture."""
        licence = self.licences.get(str(values.get("license")))
        return provenance_of(licence, values.get("flickr_url") or values.get("coco_url"))


def _category(place: str, values: dict[str, Any]) -> Category:
    number = values["id"]
    if not isinstance(number, int):
        raise DataError(place, f"its 'id' is {number!r}, not a number", "correct it")
    keypoints = values.get("keypoints")
    count = len(keypoints) if isinstance(keypoints, list) else 0
    limbs = values.get("skeleton")
    skeleton = []
    for limb in limbs if isinstance(limbs, list) else []:
        good = isinstance(limb, list) and len(limb) == 2
        if not good or not all(isinstance(end, int) and 1 <= end <= count for end in limb):
            raise DataError(
                place, f"its 'skeleton' has {limb!r}, it has {count} keypoints", "correct it"
            )
        skeleton.append((limb[0] - 1, limb[1] - 1))
    return Category(number, text_in(place, values, "name"), count, tuple(skeleton))
