"""Config of `light_encoder`: small text and picture towers, trained contrastively on the bundled icons.

Needs no extra package. It replaces CM3leon's frozen CLIP ViT-B/32 (paper section 2.1). It is not a CLIP and must not
be called one: it is far smaller and was trained only on drawings. Figures: `assets/README.md`. Light: `build` does the
heavy imports.
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
    "bundled:styled": BUNDLED_WEIGHTS,  # name in recipes of earlier versions
    "bundled:emoji": BUNDLED_WEIGHTS.with_name("emoji.safetensors"),
}
"""Name of the bundled weights, as a value of `path`."""
BUNDLED_LOOKS = BUNDLED_WEIGHTS.with_name("looks.safetensors")
"""Weights for comparing pictures with pictures."""


@dataclass(kw_only=True)
class LightEncoderConfig(EmbedderConfig):
    """A small text tower and a small picture tower.

    Args:
        path: file of weights of the shipped form; None: the weights shipped with cm3leon; recipes of
            earlier versions name these "bundled:styled". "bundled:emoji" are the weights of earlier
            versions, trained on emoji alone, which distinguish pictures of emoji far better.
        looks: file of weights for comparing pictures with pictures (`retriever.compare: same`); None: the
            weights shipped with cm3leon.
        batch_size: pictures or texts per forward pass.
    """

    is_default: ClassVar[bool] = True
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
