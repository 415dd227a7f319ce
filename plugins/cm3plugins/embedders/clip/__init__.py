"""Config of `clip`: CLIP's two towers, from local files of OpenAI, open_clip or Hugging Face.

Light: `build` does the heavy imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.files import user_path
from cm3core.interfaces.component import check_device
from cm3core.interfaces.embedder import EmbedderConfig
from cm3core.interfaces.reach import READS, TEXT, Outside

if TYPE_CHECKING:
    from cm3plugins.embedders.clip.embedder import CLIP


@dataclass(kw_only=True)
class CLIPConfig(EmbedderConfig):
    """CLIP ViT-B/32 or another CLIP with a vision transformer, from a local file.

    CLIP ViT-B/32 is the paper's retriever (section 2.1). Reads OpenAI's archives (`ViT-B-32.pt`),
    and folders or files of open_clip (`open_clip_model.safetensors`, `open_clip_pytorch_model.bin`,
    with `open_clip_config.json`) and of Hugging Face (`model.safetensors`, `pytorch_model.bin`,
    with `config.json`). Sizes come from the weights; preprocessing and tokenizer from the files next to
    them, otherwise OpenAI's are used. No code in a file is run. Texts longer than its context (77 tokens)
    are truncated, which is reported once.

    Args:
        path: folder or file of weights.
        quick_gelu: whether its activation is x * sigmoid(1.702 x) (OpenAI's) instead of GELU. None: read
            it from the file's origin or the config next to it; if neither states it, or they disagree,
            set this key.
        batch_size: pictures or texts per forward pass.
        device: device to compute on; "auto" is a CUDA device if there is one.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its weights"),
        "device": TEXT,
    }

    path: str
    quick_gelu: bool | None = None
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"batch_size": (1, 2**20)}

    batch_size: int = 32
    device: str = "auto"

    def check(self) -> None:
        """Raise `RecipeError` for values that can't be used."""
        super().check()
        check_device("embedder.device", self.device)

    def build(self) -> CLIP:
        """Load weights and tokenizer.

        Raises:
            CheckpointError: files are missing, damaged, or not a supported CLIP.
        """
        from cm3plugins.embedders.clip.embedder import CLIP
        from cm3run.devices import choose_device

        self.check()
        device = choose_device(None if self.device == "auto" else self.device)
        return CLIP.load(
            user_path(self.path), self.quick_gelu, batch_size=self.batch_size, device=device
        )
