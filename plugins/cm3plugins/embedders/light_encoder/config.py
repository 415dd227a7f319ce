"""`light_encoder`: two small towers, text and picture, trained contrastively on the bundled corpus.
Needs no extra package.

It stands where CM3leon has a frozen CLIP ViT-B/32 (paper section 2.1); it is far smaller, knows
drawings only, and is never to be called CLIP. Figures: `assets/README.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.errors import RecipeError
from cm3core.interfaces.embedder import EmbedderConfig

if TYPE_CHECKING:
    from cm3plugins.embedders.light_encoder.embedder import LightEncoder

BUNDLED_WEIGHTS = Path(__file__).parent / "assets" / "light_encoder.safetensors"
BUNDLED_STYLED, STYLED_WEIGHTS = "bundled:styled", BUNDLED_WEIGHTS.with_name("styled.safetensors")


@dataclass(kw_only=True)
class LightEncoderConfig(EmbedderConfig):
    """A small text tower and a small picture tower.

    Args:
        path: weights as `cm3 embedder train light_encoder` writes them; None: those that come with
            cm3leon. "bundled:styled" comes with it too: a text's nearest documents are then of the
            style that it names (`train --keep-style`).
        batch_size: pictures or texts in one forward pass.
    """

    path: str | None = None
    batch_size: int = 256

    def check(self) -> None:
        """Refuse a batch of nothing."""
        if self.batch_size < 1:
            raise RecipeError("embedder.batch_size", f"is {self.batch_size}", "use 1 or more")

    def build(self) -> LightEncoder:
        """Load the weights. Raises `CheckpointError` when the file is missing, damaged or of
        another kind."""
        from cm3plugins.embedders.light_encoder.embedder import LightEncoder

        path = {None: BUNDLED_WEIGHTS, BUNDLED_STYLED: STYLED_WEIGHTS}.get(self.path)
        return LightEncoder.load(
            Path(str(self.path)).expanduser() if path is None else path, self.batch_size
        )
