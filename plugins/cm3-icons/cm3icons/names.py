"""Write the vectors of the icon corpus' names: ``python -m cm3icons.names [-o FILE]``.

They are what the retriever `hybrid` reads as `vectors: bundled:icons`, by the embedder `minilm`: 128 numbers of four bits
a name. It takes some minutes on one core. The same names and weights give the same bytes on the same machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cm3icons import NAME_VECTORS
from cm3icons.data.corpus import IconCorpus
from cm3plugins.embedders import MiniLMConfig
from cm3plugins.retrievers.hybrid import plain
from cm3plugins.retrievers.text_vectors import save_vectors

DIMENSION = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--out", type=Path, default=NAME_VECTORS)
    path: Path = parser.parse_args(arguments).out
    names = sorted({plain(words) for words in IconCorpus().entries.words})
    cosine = save_vectors(names, MiniLMConfig().build(), path, DIMENSION)
    print(f"{path}: {len(names):,} names, {path.stat().st_size:,} bytes, cosine {cosine:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
