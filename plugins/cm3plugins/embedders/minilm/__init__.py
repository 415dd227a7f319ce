"""Config of `minilm`: the sentence encoder all-MiniLM-L6-v2, shipped in four bits a weight.

It compares texts by meaning: "puppy" is near "dog", "padlock on a folder" near "folder lock". Light: `build` does the
heavy imports. Figures and licence: `assets/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cm3core.files import user_path
from cm3core.interfaces.embedder import EmbedderConfig
from cm3core.interfaces.reach import READS, Outside
from cm3plugins.embedders.light_encoder import LightEncoderConfig

if TYPE_CHECKING:
    from cm3plugins.embedders.minilm.embedder import MiniLM

#: Folder of the shipped weights and word pieces.
ASSETS = Path(__file__).parent / "assets"


@dataclass(kw_only=True)
class MiniLMConfig(EmbedderConfig):
    """Texts by a sentence encoder (BERT), pictures by another embedder.

    The vectors of texts and of pictures are orthogonal, so that texts can't be compared with pictures. Texts
    longer than 128 word pieces are truncated, which is reported once.

    Args:
        path: folder of another BERT with mean pooling (`config.json`, `model.safetensors`, `tokenizer.json`), as
            sentence-transformers publishes them; None: all-MiniLM-L6-v2, shipped with cm3leon.
        pictures: embedder of pictures.
        batch_size: texts per forward pass.
    """

    outside: ClassVar[Mapping[str, Outside]] = {"path": Outside(READS, "its weights")}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"batch_size": (1, 2**20)}
    not_in_outputs: ClassVar[tuple[str, ...]] = ("batch_size",)

    path: str | None = None
    pictures: EmbedderConfig = field(default_factory=LightEncoderConfig)
    batch_size: int = 64

    def build(self) -> MiniLM:
        """Load the sentence encoder; the embedder of pictures is loaded when it is first used.

        Raises:
            CheckpointError: a file is missing, damaged or of another architecture.
        """
        from cm3plugins.embedders.minilm.embedder import MiniLM

        self.check()
        folder = ASSETS if self.path is None else user_path(self.path, "embedder.path")
        return MiniLM(folder, self.pictures, self.batch_size)
