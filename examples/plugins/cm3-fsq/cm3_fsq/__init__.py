"""An image tokenizer without a codebook: finite scalar quantisation (arXiv 2309.15505)."""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from cm3core.errors import RecipeError
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import ImageTokenizerConfig

CM3_API = 1
FILE = "fsq.safetensors"


@dataclass(kw_only=True)
class FSQConfig(ImageTokenizerConfig):
    """A code is a few numbers, each rounded to one of a few levels: no codebook, no dead codes.

    Args:
        resolution: pixels a side.
        patch_size: pixels a side of one code.
        levels: levels of each number of a code; their product is the number of codes.
        channels: width of the network.
        num_blocks: residual blocks of the encoder, and of the decoder.
        weights: a file that `cm3 tokenizer train-image` wrote. None: those of this package, trained
            on the bundled emoji at 64 pixels.
    """

    resolution: int = 64
    patch_size: int = 4
    levels: tuple[int, ...] = (8, 5, 5, 5)
    channels: int = 64
    num_blocks: int = 3
    weights: str | None = None

    codebook_size = property(lambda self: prod(self.levels))
    grid = property(lambda self: (self.resolution // self.patch_size,) * 2)
    image_size = property(lambda self: (self.resolution,) * 2)

    def check(self):
        if not 0 < self.patch_size <= self.resolution or self.resolution % self.patch_size:
            raise RecipeError(
                "image_tokenizer.resolution",
                "is not a multiple of image_tokenizer.patch_size",
                "change one of them",
            )
        if not self.levels or min(self.levels) < 2:
            raise RecipeError(
                "image_tokenizer.levels",
                f"is {list(self.levels)}",
                "give each number 2 levels or more",
            )

    def build(self):
        from cm3_fsq.tokenizer import BUNDLED, read

        return read(self, BUNDLED if self.weights is None else Path(self.weights).expanduser())

    def saved_in(self, folder):
        return replace(self, weights=str(folder / FILE))

    def train(self, images_NHWC, out_dir, **options):
        from cm3_fsq.tokenizer import train

        return train(self, images_NHWC, Path(out_dir), **options)


@hookimpl
def cm3_image_tokenizers():
    return {"fsq": FSQConfig}
