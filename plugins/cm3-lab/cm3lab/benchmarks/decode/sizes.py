"""Decoder sizes, and the extent of a run. Light: no torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """One decoder.

    Args:
        name: its name in `--size`.
        num_layers, width, num_heads, d_ff: sizes of the trunk; ours has two feed-forward matrices.
        num_codes: image codes, which is the computed slice of the head.
    """

    name: str
    num_layers: int
    width: int
    num_heads: int
    d_ff: int
    num_codes: int = 8192

    @property
    def trunk_parameters(self) -> int:
        """Weights of the layers, which every step reads: per layer four square matrices and the two of the
        feed-forward layer.

        >>> Size("x", 2, 4, 1, 16).trunk_parameters
        384
        """
        return self.num_layers * (4 * self.width**2 + 2 * self.width * self.d_ff)

    @property
    def llama_d_ff(self) -> int:
        """Feed-forward width at which Llama's three matrices have as many weights as our two, rounded to a multiple
        of 8.

        >>> Size("x", 12, 768, 12, 3072).llama_d_ff
        2048
        """
        return round(2 * self.d_ff / 3 / 8) * 8


#: The quickstart's decoder, two intermediate ones, and the paper's smallest (table 3).
SIZES = {
    size.name: size
    for size in (
        Size("tiny", 4, 192, 3, 768, num_codes=1024),
        Size("25m", 8, 512, 8, 2048),
        Size("100m", 12, 768, 12, 3072),
        Size("350m", 24, 1024, 16, 4096),
    )
}


@dataclass(frozen=True)
class Extent:
    """How much a run measures by default.

    Args:
        size: name of the decoder.
        batch: requests at a time.
        tokens: image tokens per picture.
        candidates: number of candidates in the best-of-N part.
        longest: image tokens of the picture for cost against length.
        seconds, max_runs: a provider's runs of a case end after this many seconds or runs.
    """

    size: str
    batch: tuple[int, ...]
    tokens: tuple[int, ...]
    candidates: int
    longest: int
    seconds: float
    max_runs: int


EXTENTS = {
    "full": Extent("100m", (1, 8), (256, 1024), 8, 4096, 20.0, 5),
    "quick": Extent("25m", (1, 8), (256,), 8, 576, 2.0, 3),
}
