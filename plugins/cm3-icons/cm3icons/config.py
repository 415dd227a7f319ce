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
    from cm3icons.ink import IconFinisher, InkUpscaler


@dataclass(kw_only=True)
class InkUpscalerConfig(UpscalerConfig):
    """Enlarges ink drawings with sharp edges: drawings in black, or in black and one grey, which `--svg` can trace.

    White, black and grey become pure, which removes the decoder's noise. Other pictures, in colour or with many greys, are
    left as another upscaler enlarges them.

    Args:
        otherwise: upscaler that enlarges all pictures first, before ink edges are sharpened; it sets the scale.
    """

    otherwise: UpscalerConfig = field(default_factory=LanczosUpscalerConfig)

    def build(self) -> InkUpscaler:
        """Return the upscaler; loads the weights of `otherwise`."""
        from cm3icons.ink import InkUpscaler

        self.check()
        return InkUpscaler(self.otherwise.build())


@dataclass(kw_only=True)
class IconFinisherConfig(FinisherConfig):
    """Removes specks of colour from icons, which codes of grey squares contain, and writes ink drawings as SVG
    (`--svg`).

    Args:
        colour_words: words that ask for colour. A picture is shown without colour if its prompt has none of them and
            none of its source pictures (retrieved, edited, filled in) has colour. None: the source pictures alone
            decide; without any, specks of colour are removed. []: show pictures as decoded.
    """

    outside: ClassVar[Mapping[str, Outside]] = {"colour_words": TEXT}
    colour_words: list[str] | None = None

    def check(self) -> None:
        """Reject words without letters or digits."""
        super().check()
        for word in self.colour_words or ():
            # pictographs start at U+2600; each is a word
            if not any(letter.isalnum() or letter >= "\u2600" for letter in word):
                raise RecipeError(
                    "finisher.colour_words",
                    f"has {word!r}, which has no letter or digit",
                    "remove it, or write a word",
                )

    def build(self) -> IconFinisher:
        """See `FinisherConfig.build`."""
        from cm3icons.ink import IconFinisher

        return IconFinisher(self.colour_words)
