"""`clip`: CLIP's two towers, from local files of OpenAI, open_clip or Hugging Face.

Here is its config; `build` does the heavy imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cm3core.files import user_path
from cm3core.interfaces.embedder import EmbedderConfig
from cm3core.interfaces.reach import READS, Outside

if TYPE_CHECKING:
    from cm3plugins.embedders.clip.embedder import CLIP


@dataclass(kw_only=True)
class CLIPConfig(EmbedderConfig):
    """CLIP ViT-B/32 or a relative with a vision transformer, from a file that you have.

    CLIP ViT-B/32 is the paper's retriever (section 2.1). Reads OpenAI's archives (`ViT-B-32.pt`),
    and folders or files of open_clip (`open_clip_model.safetensors`, `open_clip_pytorch_model.bin`,
    with `open_clip_config.json`) and of Hugging Face (`model.safetensors`, `pytorch_model.bin`,
    with `config.json`). Sizes are taken from the weights; preprocessing and tokenizer are the ones
    next to them, else OpenAI's. No code in a file is run. Texts longer than its context (77 tokens)
    are truncated, which is reported once.

    Args:
        path: the folder or file of weights.
        quick_gelu: whether its activation is x * sigmoid(1.702 x) (OpenAI's) instead of GELU. None:
            as the file's origin or the config next to it states; if they state nothing, or
            disagree, this key is required.
        batch_size: pictures or texts per forward pass.
        device: where it computes; "auto" is a CUDA device if there is one.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its weights"),
    }

    path: str
    quick_gelu: bool | None = None
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"batch_size": (1, 2**20)}

    batch_size: int = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def build(self) -> CLIP:
        """Load weights and tokenizer.

        Raises:
            CheckpointError: they are missing, damaged, or not a CLIP that is known here.
        """
        from cm3plugins.embedders.clip.embedder import CLIP
        from cm3run.devices import choose_device

        self.check()
        device = choose_device(None if self.device == "auto" else self.device)
        return CLIP.load(
            user_path(self.path), self.quick_gelu, batch_size=self.batch_size, device=device
        )
