"""The bundled corpus: emoji art in five permissive styles. This module holds its config, which imports nothing heavy.

`EmojiCorpus` in `corpus.py` is the data without documents; `build.py` rebuilds the data files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError, close_match
from cm3core.interfaces.dataset import CAPTIONED, DocumentSourceConfig
from cm3core.interfaces.reach import READS, TEXT, WRITES, Outside, Reach
from cm3plugins.datasets.emoji.captions import DEFAULT_TEMPLATES, FIELDS
from cm3plugins.datasets.emoji.packages import STYLE_PACKAGES
from cm3plugins.datasets.vector.captions import CaptionTemplate, check_templates

if TYPE_CHECKING:
    from cm3plugins.datasets.emoji.source import EmojiSource

SPLITS = ("train", "comp", "unseen", "all")


@dataclass(kw_only=True)
class EmojiSourceConfig(DocumentSourceConfig):
    """The emoji corpus: about 7,200 pictures of 1,674 concepts.

    Args:
        split: "train", "comp" (the concept is in train, but not in this style), "unseen" (60
            concepts held out entirely), or "all" of them.
        concepts: "all", "starter" (40 distinct objects), "quickstart" (100, including those),
            "concrete" (about 300), or the path of a text file with one label per line.
        styles: styles to include: noto, noto-v1, fluent, twemoji, emojione.
        image_size: height and width of the pictures, in pixels.
        templates: caption templates with fields in braces: label, style, tags, category, concept;
            the first is the canonical one.
        template_weights: how often each template is drawn, relative to the others.
        cache_dir: folder for rendered pictures; None: ``CM3_CACHE`` or, if unset, the user's cache folder.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "concepts": TEXT,
        "styles": TEXT,
        "templates": TEXT,
        "cache_dir": Outside(WRITES, "rendered pictures"),
    }

    splits: ClassVar[tuple[str, ...]] = SPLITS

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "image_size": (1, 2**14),
        "template_weights": (0, 1e9),
    }
    concepts: str = "all"
    styles: list[str] = field(default_factory=lambda: list(STYLE_PACKAGES))
    image_size: int = 64
    templates: list[str] = field(
        default_factory=lambda: [template.text for template in DEFAULT_TEMPLATES]
    )
    template_weights: list[float] = field(
        default_factory=lambda: [template.weight for template in DEFAULT_TEMPLATES]
    )
    cache_dir: str | None = None

    def record_fields(self) -> tuple[str, ...]:
        """A picture and its caption."""
        return CAPTIONED

    def reaches(self) -> list[Reach]:
        """Declare a user's file with a list of concepts."""
        from cm3core.files import user_path
        from cm3plugins.datasets.emoji.corpus import ALL, list_names

        if self.concepts in (ALL, *list_names()):
            return []
        path = str(user_path(self.concepts, "dataset.concepts").absolute())
        return [Reach(READS, path, "concepts", "the list of concepts", self.concepts)]

    def check(self) -> None:
        """Raise `RecipeError` for an unknown split or style, a size below 1, or invalid
        templates."""
        super().check()
        if self.split not in SPLITS:
            cause = (
                f"the emoji corpus has no split {self.split!r}; {close_match(self.split, SPLITS)}"
            )
            raise RecipeError("dataset.split", cause, f"use one of {', '.join(SPLITS)}")
        if not self.styles:
            raise RecipeError(
                "dataset.styles", "the list is empty", f"use some of {', '.join(STYLE_PACKAGES)}"
            )
        for style in self.styles:
            if style not in STYLE_PACKAGES:
                cause = (
                    f"the emoji corpus has no style {style!r}; {close_match(style, STYLE_PACKAGES)}"
                )
                raise RecipeError(
                    "dataset.styles", cause, f"use some of {', '.join(STYLE_PACKAGES)}"
                )
        if len(self.templates) != len(self.template_weights):
            cause = f"{len(self.template_weights)} weights for {len(self.templates)} templates"
            raise RecipeError("dataset.template_weights", cause, "set one weight per template")
        check_templates(
            "dataset.templates", self.caption_templates(), FIELDS, "{label}, {style} style"
        )

    def caption_templates(self) -> tuple[CaptionTemplate, ...]:
        """Templates and weights together."""
        return tuple(map(CaptionTemplate, self.templates, self.template_weights))

    def build(self) -> EmojiSource:
        """Return the source. Nothing is rendered before the first picture is needed.

        Raises:
            RecipeError: a value is invalid.
            DataError: the list of concepts can't be read, or nothing is selected.
        """
        from cm3plugins.datasets.emoji.source import EmojiSource

        self.check()
        return EmojiSource(
            split=self.split,
            concepts=self.concepts,
            styles=self.styles,
            image_size=self.image_size,
            templates=self.caption_templates(),
            cache_dir=self.cache_dir,
        )
