"""A reader of icons: a small network that reads a drawing as a vector among the vectors of names.

It sees the ink alone, grey, with its bounding box fitted into a square (`cm3run.nearness.placed_ink`), so neither place
nor size nor colour matters. It learned from `train` of the closed splits, so it has seen no test case. The names' vectors
are those of the frozen MiniLM that are shipped with the icons' names. `assets/things.md` says how it was trained and how
well it reads. Legend: N pictures or names, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from cm3core.document import PixelArray
from cm3core.files import sha256_file
from cm3icons import NAME_VECTORS
from cm3icons.judge.reader import Floats, load_reader, read
from cm3plugins.embedders import MiniLMConfig
from cm3plugins.retrievers.hybrid import plain
from cm3plugins.retrievers.text_vectors import TextVectors
from cm3run.nearness import placed_ink

#: The shipped weights.
WEIGHTS = Path(__file__).parent / "assets" / "things.safetensors"


class Names:
    """Vectors of names by the frozen MiniLM: the file's, which is shipped with the icons' names; others are computed."""

    file = NAME_VECTORS

    def __init__(self) -> None:
        self._texts = TextVectors(MiniLMConfig().build(), self.file)
        self._known: dict[str, Floats] = {}

    def __call__(self, names: Sequence[str]) -> Floats:
        """Return unit vectors float32 [N, D] of at least one name; each is computed once."""
        wanted = [plain(name) for name in names]
        missing = [name for name in dict.fromkeys(wanted) if name not in self._known]
        if missing:
            self._known.update(zip(missing, self._texts.of_memory(missing), strict=True))
        return np.stack([self._known[name] for name in wanted])


class ThingReader:
    """Reads what drawings show.

    Args:
        weights: file of the network.
    """

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self._weights = weights
        self._network, self.sizes = load_reader(weights)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, and of the vectors of names."""
        return f"{sha256_file(self._weights)[:16]}-{sha256_file(Names.file)[:16]}"

    def read(self, pictures: Sequence[PixelArray]) -> Floats:
        """Return unit vectors float32 [N, D] of what drawings show."""
        return read(self._network, [placed_ink(one, self.sizes.side) for one in pictures])
