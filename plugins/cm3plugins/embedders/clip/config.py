"""`clip`: a trained CLIP from a local file. Light: what is heavy is imported by `build`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cm3core.errors import RecipeError
from cm3core.interfaces.embedder import EmbedderConfig

if TYPE_CHECKING:
    from cm3plugins.embedders.clip.embedder import CLIP


@dataclass(kw_only=True)
class CLIPConfig(EmbedderConfig):
    """CLIP ViT-B/32 (the paper's retriever, section 2.1) and its relatives with a vision
    transformer, from a file of your own.

    Reads OpenAI's archives (`ViT-B-32.pt`), folders or files of open_clip
    (`open_clip_model.safetensors`, `open_clip_pytorch_model.bin`, with `open_clip_config.json`) and
    of Hugging Face (`model.safetensors`, `pytorch_model.bin`, with `config.json`). Sizes are those
    of the weights; preprocessing and tokenizer stand beside them, else are OpenAI's. No code of a
    file is run. Texts longer than it reads (77 tokens) are cut, which is told once.

    Args:
        path: the folder or the file of weights.
        quick_gelu: whether its activation is x * sigmoid(1.702 x) (OpenAI's) and not GELU. None:
            what the file's origin or the config beside it says; if that says nothing, or two say
            different things, this key is asked for.
        batch_size: pictures or texts in one forward pass.
        device: where it computes; "auto" is a CUDA device if there is one.
    """

    path: str
    quick_gelu: bool | None = None
    batch_size: int = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def check(self) -> None:
        """Refuse a batch of nothing."""
        if self.batch_size < 1:
            raise RecipeError("embedder.batch_size", f"is {self.batch_size}", "use 1 or more")

    def build(self) -> CLIP:
        """Load weights and tokenizer. Raises `CheckpointError` when they are missing, damaged, or
        no CLIP that is known here."""
        from cm3core.training.device import choose_device
        from cm3plugins.embedders.clip.embedder import CLIP

        self.check()
        device = choose_device(None if self.device == "auto" else self.device)
        return CLIP.load(
            Path(self.path).expanduser(), self.quick_gelu, batch_size=self.batch_size, device=device
        )
