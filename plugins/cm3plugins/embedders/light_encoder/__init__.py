"""`light_encoder`: small text and picture towers, trained contrastively on the bundled icons.

Needs no extra package. It takes the place of CM3leon's frozen CLIP ViT-B/32 (paper section 2.1); it
is far smaller, knows only drawings, and is never to be called CLIP. Figures: `assets/README.md`. Here is its config;
`build` does the heavy imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cm3core.files import user_path
from cm3core.interfaces.embedder import EmbedderConfig
from cm3core.interfaces.reach import READS, Outside

if TYPE_CHECKING:
    from cm3plugins.embedders.light_encoder.embedder import LightEncoder

BUNDLED_WEIGHTS = Path(__file__).parent / "assets" / "light_encoder.safetensors"
BUNDLED = {
    None: BUNDLED_WEIGHTS,
    "bundled:styled": BUNDLED_WEIGHTS,  # what recipes of earlier versions call weights that heed the style
    "bundled:emoji": BUNDLED_WEIGHTS.with_name("emoji.safetensors"),
}
"""The bundled weights' name, as a value of `path`."""
BUNDLED_LOOKS = BUNDLED_WEIGHTS.with_name("looks.safetensors")
"""How pictures are compared with pictures."""


@dataclass(kw_only=True)
class LightEncoderConfig(EmbedderConfig):
    """A small text tower and a small picture tower.

    Args:
        path: weights as written by `cm3 embedder train light_encoder`; None: the ones shipped with
            cm3leon, which "bundled:styled" names too, in recipes of earlier versions.
            "bundled:emoji" are those of earlier versions, trained on the emoji alone, which tell
            pictures of emoji apart far better.
        looks: how pictures are compared with pictures alone (`retriever.compare: same`), as written by
            `cm3 embedder train looks`; None: what is shipped with cm3leon.
        batch_size: pictures or texts per forward pass.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its weights", shipped="bundled:"),
        "looks": Outside(READS, "its weights for pictures"),
    }

    path: str | None = None
    looks: str | None = None
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"batch_size": (1, 2**20)}

    batch_size: int = 256

    def build(self) -> LightEncoder:
        """Load the weights.

        Raises:
            CheckpointError: the file is missing, damaged or of another kind.
        """
        from cm3plugins.embedders.light_encoder.embedder import LightEncoder

        path = BUNDLED.get(self.path)
        return LightEncoder.load(
            user_path(str(self.path)) if path is None else path,
            self.batch_size,
            BUNDLED_LOOKS if self.looks is None else user_path(self.looks),
        )
