"""`patch_knn`: raises the probability of codes that occur in similar surroundings in a memory's pictures.

This module holds its config, which imports nothing heavy. `database.py` collects the places of a memory and stores them
in a searchable file; `sampler.py` wraps another sampler. Source: AR-RAG's distribution-level augmentation in decoding
(arXiv 2506.06962).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from cm3core.errors import RecipeError
from cm3core.interfaces.reach import READS, Outside
from cm3core.interfaces.sampler import Sampler, SamplerConfig
from cm3plugins.samplers.cfg import CFGSamplerConfig, require

if TYPE_CHECKING:
    from cm3core.interfaces.sampler import ModelParts


@dataclass(kw_only=True)
class PatchKNNSamplerConfig(SamplerConfig):
    """Mixes another sampler's codes with codes that occur in similar surroundings in a memory.

    p = (1 - share) * p_inner + share * p_memory, where p_inner is the inner sampler with its guidance
    and filters. p_memory comes from the places in the memory's pictures whose three upper neighbours and
    left neighbour are nearest to those of the next code, by the image tokenizer's codebook vectors. Codes
    without these four neighbours (a picture's first row, first and last column) and text come from the
    inner sampler alone. Needs no training. Source: AR-RAG
    (arXiv 2506.06962), "DAiD".

    Args:
        inner: sampler whose codes are mixed with the memory's.
        bank: folder of a memory bank of the same image tokenizer. null: the documents that the
            model retrieves from, which are its recipe's bank or its training documents.
        share: weight of the memory, 0..1; 0 is off.
        neighbours: number of nearest places to use; equal places are merged and weighted by their number.
        scale: scale of distances: p_memory is proportional to exp(-d / scale). d is 0 for equal
            surroundings, and 1 on average for two random places.
        combine: "sum" (count all neighbours with the same code, as in a kNN language model) or
            "nearest" (count the nearest neighbour of each code, as published).
        max_places: maximum number of places to read; from a larger memory, only every n-th document is
            read. Collecting them takes about 50 bytes each.
    """

    needs_codebook: ClassVar[bool] = True
    outside: ClassVar[Mapping[str, Outside]] = {
        "bank": Outside(READS, "the memory bank"),
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "neighbours": (1, 65_536),
        "max_places": (1, 100_000_000),
    }

    inner: SamplerConfig = field(default_factory=CFGSamplerConfig)
    bank: str | None = None
    share: float = 0.2
    neighbours: int = 256
    scale: float = 0.02
    combine: Literal["sum", "nearest"] = "sum"
    max_places: int = 2_000_000

    def check(self) -> None:
        """Check the ranges of the share and the scale."""
        super().check()
        require(self, "share", 0 <= self.share <= 1, "use 0 (off) to 1")
        require(self, "scale", 1e-6 <= self.scale <= 1e6, "use 0.000001 to 1000000")

    def check_pictures(self, grid: tuple[int, int], codebook_size: int) -> None:
        """Raise `RecipeError` if no code has all four neighbours."""
        self.inner.check_pictures(grid, codebook_size)
        rows, columns = grid
        if self.share > 0 and (rows < 2 or columns < 3):
            raise RecipeError(
                "sampler",
                f"patch_knn compares codes with a row above and columns on both sides, and pictures have {rows} x "
                f"{columns} codes",
                "choose another sampler, or an image tokenizer with 2 x 3 codes or more",
            )

    def build(self) -> Sampler:
        """Raise a `RecipeError`: this sampler needs a model, see `build_for`."""
        raise RecipeError(
            "sampler",
            "patch_knn searches by a model's codebook, but there is no model",
            "open a model with it, or call build_for(parts)",
        )

    def build_for(self, parts: ModelParts) -> Sampler:
        """Return the sampler. The memory is read once and stored in a file."""
        from cm3plugins.samplers.patch_knn.database import database_for
        from cm3plugins.samplers.patch_knn.sampler import PatchKNNSampler, PatchKNNSettings

        inner = self.inner.build_for(parts)
        if self.share == 0:
            return inner
        if not parts.vocabulary.codes_in_order:
            raise RecipeError(
                "sampler",
                "patch_knn needs image codes whose ids are in the order of the codes, but this "
                "model's are not",
                "choose another sampler",
            )
        return PatchKNNSampler(
            inner,
            database_for(parts, self.bank, self.max_places),
            parts.vocabulary.image.start,
            PatchKNNSettings(
                share=self.share,
                neighbours=self.neighbours,
                scale=self.scale,
                combine=self.combine,
            ),
        )
