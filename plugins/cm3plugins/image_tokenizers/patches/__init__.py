"""Config of `patches`, an image tokenizer of patches and their k-means codebook. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cm3core.document import PixelArray
from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
from cm3core.interfaces.reach import READS, Outside
from cm3plugins.image_tokenizers import NEEDED, check_multiple
from cm3plugins.trained.bundled import BUNDLED, is_bundled

if TYPE_CHECKING:
    from cm3plugins.image_tokenizers.patches.tokenizer import PatchTokenizer


@dataclass(kw_only=True)
class PatchTokenizerConfig(ImageTokenizerConfig):
    """Encodes each square of pixels as the nearest of `codebook_size` squares.

    Vector quantisation without a network. It is blockier than a VQGAN, but a code depends only on its
    square: equal squares have equal codes everywhere, and a decoder can copy them from a retrieved
    document. A VQGAN's normalisation sees the whole picture, so equal backgrounds of two pictures
    rarely share codes.

    Training takes over squares that are at least 1 / `codebook_size` of all squares as they are, for
    up to a quarter of the codes: plain backgrounds come back to the bit. The other codes are k-means
    centres of the other squares. The squares of emoji32 are k-means centres alone.

    Args:
        resolution: pixels per side; a multiple of `patch_size`. The same weights serve every resolution.
        patch_size: pixels per side of one code.
        codebook_size: number of codes.
        weights: "bundled:NAME" for assets/NAME.safetensors of this package, such as "bundled:emoji32"
            (1,024 squares of 4 x 4 pixels, from the bundled corpus at 32 x 32); the path of a file
            written by `cm3 tokenizer train-image`; or None if there is none yet. `patch_size` and
            `codebook_size` must be those of the file. A checkpoint holds a copy of weights that are
            not bundled.
        seed: seed of training.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "weights": Outside(READS, "its squares", shipped="bundled:", needed=NEEDED),
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (1, 2**14),
        "patch_size": (1, 2**14),
        "codebook_size": (1, 2**24),
        "seed": (0, 2**63 - 1),
    }

    resolution: int = 32
    patch_size: int = 4
    codebook_size: int = 1024
    weights: str | None = BUNDLED + "emoji32"
    seed: int = 0

    def check(self) -> None:
        """Check ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        check_multiple(self.resolution, "patch_size", self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes."""
        return self.resolution // self.patch_size, self.resolution // self.patch_size

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.resolution, self.resolution

    def build(self) -> PatchTokenizer:
        """Return the tokenizer with its squares.

        Raises:
            CheckpointError: there are no squares, or they don't match the recipe.
        """
        from cm3plugins.image_tokenizers.patches.tokenizer import PatchTokenizer, weights_file

        self.check()
        return PatchTokenizer.from_file(
            weights_file(self.weights),
            self.resolution,
            self.patch_size,
            self.codebook_size,
            bundled=is_bundled(self.weights),
        )

    def saved_in(self, folder: Path) -> PatchTokenizerConfig:
        """With the squares in `folder`."""
        from cm3plugins.image_tokenizers.patches.tokenizer import SAVED

        return replace(self, weights=str(folder / SAVED))

    def train(self, images_NHWC: PixelArray, out_dir: str | Path, **options: Any) -> Path:
        """Run k-means over the pictures' squares; `steps` is the number of rounds.

        This takes seconds, so an interrupted run starts over.
        """
        from cm3plugins.image_tokenizers.patches.training import train_patches
        from cm3plugins.trained.training_run import RunOptions

        self.check()
        return train_patches(self, images_NHWC, Path(out_dir), RunOptions(**options))
