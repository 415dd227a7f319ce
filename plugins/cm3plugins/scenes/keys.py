"""Names of scenes: styles, places, sizes, relations, backgrounds, forms, splits. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

SizeName: TypeAlias = Literal["large", "small"]
Relation: TypeAlias = Literal["left of", "right of", "above", "below"]
RasterName: TypeAlias = Literal["fine", "coarse"]
Form: TypeAlias = Literal["scene", "plain", "edit", "question", "boxes", "grounding", "part"]
Arrangement: TypeAlias = Literal["single", "places", "relation", "count"]

RELATIONS: tuple[Relation, ...] = get_args(Relation)
FORMS: tuple[Form, ...] = get_args(Form)
ARRANGEMENTS: tuple[Arrangement, ...] = get_args(Arrangement)
#: Step of the second coordinate pair seen from the first: (columns, rows) of "a RELATION b", from a to b.
STEPS: Mapping[Relation, tuple[int, int]] = {
    "left of": (1, 0),
    "right of": (-1, 0),
    "above": (0, 1),
    "below": (0, -1),
}
#: Splits, see `cm3plugins.scenes.held_out`. "all": for plain pictures, those of every concept; for scenes of any concepts.
SPLITS = ("train", "valid", "unseen", "comp", "counts", "all")

#: Backgrounds by name, RGB. All are light, so that drawings of any colour stand out; no concept has one of these names.
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "azure": (198, 222, 248),
    "mint": (206, 238, 204),
    "sand": (252, 242, 186),
    "blush": (252, 214, 226),
    "silver": (222, 222, 222),
}

#: Numbers in words, from one on.
NUMBERS = ("one", "two", "three", "four")

#: Fields of each form's records, besides those of `target`.
FIELDS: Mapping[Form, tuple[str, ...]] = {
    "scene": ("image", "caption"),
    "plain": ("image", "caption"),
    "edit": ("source", "instruction", "target"),
    "question": ("image", "question", "answer"),
    "boxes": ("caption", "objects", "image"),
    "grounding": ("image", "phrase", "objects"),
    "part": ("image", "caption", "part"),
}

#: Units a side of each raster.
UNITS: Mapping[RasterName, int] = {"fine": 16, "coarse": 8}

#: Score -> its heading in reports.
HEADINGS: Mapping[str, str] = {
    "scenes": "right",
    "scenes_single_object": "object",
    "scenes_two_objects": "objects",
    "scenes_counting": "number",
    "scenes_position": "place",
    "scenes_colours": "background",
    "scenes_styles": "style",
    "scene_documents": "documents",
    "scene_caption": "true",
}
