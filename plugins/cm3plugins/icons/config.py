"""Configs of `icon` and `ink`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError
from cm3core.interfaces.reach import TEXT, Outside
from cm3core.interfaces.upscaler import UpscalerConfig
from cm3plugins.upscalers.lanczos import LanczosUpscalerConfig
from cm3run.prompting import FinisherConfig

if TYPE_CHECKING:
    from cm3plugins.icons.ink import IconFinisher, InkUpscaler


@dataclass(kw_only=True)
class InkUpscalerConfig(UpscalerConfig):
    """Sharp areas of ink: of a drawing in black, or in black and one grey, what `--svg` traces.

    White is white afterwards, black black and grey one grey; noise that a decoder left in them is gone. Pictures of
    other kinds, in colour or with many greys, stay as another upscaler enlarges them.

    Args:
        otherwise: enlarges all pictures, before the edges of ink are made sharp; the scale is its own.
    """

    otherwise: UpscalerConfig = field(default_factory=LanczosUpscalerConfig)

    def build(self) -> InkUpscaler:
        """The upscaler, and the other one with its weights."""
        from cm3plugins.icons.ink import InkUpscaler

        self.check()
        return InkUpscaler(self.otherwise.build())


@dataclass(kw_only=True)
class IconFinisherConfig(FinisherConfig):
    """Shows icons without the specks of colour that codes of grey squares have, and writes drawings in ink as the areas
    of their ink (`--svg`).

    Args:
        colour_words: words that ask for colour. A picture is shown without colour if its prompt has none of them, and no
            picture that it was made after (retrieved, edited, filled in) has colour. []: as it is decoded.
    """

    outside: ClassVar[Mapping[str, Outside]] = {"colour_words": TEXT}
    colour_words: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuse a word without letters or digits."""
        super().check()
        for word in self.colour_words:
            # from U+2600 on there are pictographs, of which each is a word
            if not any(letter.isalnum() or letter >= "\u2600" for letter in word):
                raise RecipeError(
                    "finisher.colour_words",
                    f"has {word!r}, which has no letter or digit",
                    "remove it, or write a word",
                )

    def build(self) -> IconFinisher:
        """See `FinisherConfig.build`."""
        from cm3plugins.icons.ink import IconFinisher

        return IconFinisher(self.colour_words)
