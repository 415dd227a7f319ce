"""Config of the data set `scenes`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from cm3core.errors import RecipeError, close_match
from cm3core.interfaces.component import check_value
from cm3core.interfaces.dataset import DocumentSourceConfig, Judged
from cm3core.interfaces.reach import READS, TEXT, WRITES, Outside, Reach
from cm3plugins.datasets.emoji.packages import STYLE_PACKAGES
from cm3plugins.scenes.keys import FIELDS, HEADINGS, SPLITS, UNITS, Form, RasterName

if TYPE_CHECKING:
    from cm3plugins.scenes.source import SceneSource


@dataclass(kw_only=True)
class ScenesConfig(DocumentSourceConfig):
    """Scenes of one to four objects whose content is known exactly, composed of the bundled emoji or of your own sprites.

    Every scene is a function of these keys and its number, so any of them is drawn at once. Documents for retrieval are
    plain pictures, one of each drawing, size and background (the form "plain").

    Args:
        split: "train"; "valid" (other scenes of the same concepts); "unseen" (a fifth of the concepts, which no picture or
            document of train or valid has, in any style); "comp" (a known concept in a style, or a concept and a relation,
            never together in train); "counts" (a known concept and a number, never together in train); "all".
        form: "scene": fields image, caption; "plain": one object in the middle, the same fields; "edit": fields
            source, instruction, target (replace, remove, add, move, background, style); "question": fields image,
            question, answer (what, how many, where, which colour, yes or no); "boxes": fields caption, objects, image;
            "grounding": fields image, phrase, objects; "part": fields image, caption, part (the box of one object).
        sprites: a folder of your own drawings, PNG, WebP, JPEG or SVG files: each is named by its file, and its subfolder
            is its style ("own" without one); a plain background is removed; null: the bundled emoji.
        concepts: of the bundled emoji: as in the data set `emoji`.
        styles: styles to include; an empty list: all.
        raster: "fine": objects of two sizes at nine places, sixteen units a side; "coarse": of one size at four places,
            eight units a side.
        max_concepts: different concepts that a scene has at most.
        num_scenes: number of scenes in the split. More of them continue the same sequence.
        image_size: height and width of the pictures, in pixels; a multiple of the raster's units a side.
        seed: other scenes of the same concepts.
        cache_dir: folder for rendered drawings; null: ``CM3_CACHE`` or, if unset, the user's cache folder.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "sprites": Outside(READS, "its drawings"),
        "concepts": TEXT,
        "styles": TEXT,
        "cache_dir": Outside(WRITES, "rendered drawings"),
    }
    splits: ClassVar[tuple[str, ...]] = SPLITS
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "max_concepts": (1, 4),
        "num_scenes": (1, 10_000_000),
        "image_size": (8, 2**14),
        "seed": (0, 2**63 - 1),
    }

    form: Form = "scene"
    sprites: str | None = None
    concepts: str = "all"
    styles: list[str] = field(default_factory=list)
    raster: RasterName = "fine"
    max_concepts: int = 4
    num_scenes: int = 20_000
    image_size: int = 64
    seed: int = 0
    cache_dir: str | None = None

    def record_fields(self) -> tuple[str, ...]:
        """Those of the form."""
        return FIELDS[self.form]

    def memory_config(self) -> DocumentSourceConfig:
        """Plain pictures of the split's concepts; of `comp` and `counts`, those of the known concepts."""
        return self if self.form == "plain" else replace(self, form="plain")

    def judged(self) -> list[Judged]:
        """Of scenes: unseen objects with and without documents that show them, known ones, and captions, all by their
        truth. What is retrieved is plain pictures of all concepts, as a scene of unseen ones needs."""
        if self.form != "scene":
            return []

        def scores(*names: str) -> list[dict[str, Any]]:
            keys = {"sprites": self.sprites, "concepts": self.concepts, "styles": [*self.styles]}
            return [{"metric": {"name": one, **keys, "raster": self.raster}} for one in names]

        drawn = {name: text for name, text in HEADINGS.items() if name.startswith("scenes")}
        found = drawn | {"scene_documents": HEADINGS["scene_documents"]}
        beside = scores("scenes", "scene_documents")
        number = 100
        return [
            Judged(
                "unseen", "unseen objects, with documents", "unseen", beside, found,
                num=number, memory_split="all",
            ),
            Judged(
                "unseen-alone", "unseen objects, without documents", "unseen", scores("scenes"), drawn,
                num=number, num_retrieved=0,
            ),
            Judged(
                "known", "known objects, with documents", "valid", beside, found,
                num=number, memory_split="all",
            ),
            Judged(
                "captions", "captions of known objects", "valid", scores("scene_caption"),
                {"scene_caption": HEADINGS["scene_caption"]},
                makes="captions", num=number, num_retrieved=0,
            ),
        ]  # fmt: skip  # a title and its scores a line are easier to compare

    def reaches(self) -> list[Reach]:
        """Declare a user's list of concepts."""
        if self.sprites is not None:
            return super().reaches()
        from cm3plugins.datasets.emoji import EmojiSourceConfig

        return [*super().reaches(), *EmojiSourceConfig(concepts=self.concepts).reaches()]

    def check(self) -> None:
        """Raise `RecipeError` for an unknown split or style, or a size that the raster doesn't divide."""
        super().check()
        check_value(
            "dataset.split",
            self.split,
            self.split in SPLITS,
            f"use one of {', '.join(SPLITS)}",
        )
        units = UNITS[self.raster]
        check_value(
            "dataset.image_size",
            self.image_size,
            self.image_size % units == 0,
            f"use a multiple of {units}, the units a side of the raster {self.raster!r}",
        )
        for style in self.styles if self.sprites is None else ():
            if style not in STYLE_PACKAGES:
                cause = f"the emoji have no style {style!r}; {close_match(style, STYLE_PACKAGES)}"
                raise RecipeError(
                    "dataset.styles", cause, f"use some of {', '.join(STYLE_PACKAGES)}"
                )

    def build(self) -> SceneSource:
        """Return the source; the first picture renders the drawings into the cache.

        Raises:
            RecipeError: a value is invalid.
            DataError: the folder or the list of concepts can't be read, or the split has too few concepts.
        """
        from cm3plugins.scenes.source import SceneSource, sprites_of

        self.check()
        return SceneSource(self, sprites_of(self))
