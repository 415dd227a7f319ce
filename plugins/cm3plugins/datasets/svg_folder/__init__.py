"""Data set `svg_folder`: a user's own drawings, the SVG files in a folder, named by their file names.

This module holds its config, which imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError
from cm3core.interfaces.dataset import CAPTIONED, DocumentSourceConfig
from cm3core.interfaces.reach import READS, TEXT, Outside

if TYPE_CHECKING:
    from cm3plugins.datasets.svg_folder.source import SvgFolder, WithThings


@dataclass(kw_only=True)
class SvgFolderConfig(DocumentSourceConfig):
    """The SVG files in a folder and its subfolders. Captions name the thing, the style and the set, like those of the
    data set `icons`: `bell off, outline rounded, my set`.

    Files are read as those of a stranger: scripts, pictures, fonts, references and entities are refused, and nothing
    outside the file is opened. Drawings have one colour, which is taken as black. Files that can't be used are skipped
    with a reason.

    Args:
        split: "train", "valid" (a fraction of the drawings, chosen by a hash of their names), "all", or "memory": those of
            "train", and the documents of `things` that show the same.
        path: the folder.
        style: style words of captions, such as `outline rounded`; null: as the drawings are painted.
        title: name of the set in captions; null: the folder's name.
        valid: fraction of the drawings in "valid", 0..1.
        image_size: height and width of the pictures, in pixels.
        things: another data set, whose drawings of things of the same names are retrieved, too; null: none.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its drawings"),
        "style": TEXT,
        "title": TEXT,
    }
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "valid": (0, 1),
        "image_size": (1, 2**14),
    }
    splits: ClassVar[tuple[str, ...]] = ("train", "valid", "all", "memory")

    path: str
    style: str | None = None
    title: str | None = None
    valid: float = 0.05
    image_size: int = 64
    things: DocumentSourceConfig | None = None

    def record_fields(self) -> tuple[str, ...]:
        """A picture and its caption."""
        return CAPTIONED

    def check(self) -> None:
        """Raise `RecipeError` for an unknown split."""
        super().check()
        if self.split not in self.splits:
            raise RecipeError(
                "dataset.split", f"is {self.split!r}", f"use one of {', '.join(self.splits)}"
            )

    def memory_config(self) -> DocumentSourceConfig:
        return self if self.things is None else replace(self, split="memory")

    def build(self) -> SvgFolder | WithThings:
        """Read the files.

        Raises:
            RecipeError: a value is invalid.
            DataError: there is no such folder, or it has no SVG file, or too many.
        """
        from cm3plugins.datasets.svg_folder.source import Chosen, SvgFolder, WithThings

        self.check()
        split = "train" if self.split == "memory" else self.split
        own = SvgFolder(
            self.path, Chosen(split, self.valid, self.style, self.title), self.image_size
        )
        if self.split != "memory" or self.things is None:
            return own
        return WithThings(own, self.things.build())
