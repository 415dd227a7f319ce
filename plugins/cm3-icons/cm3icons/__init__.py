"""Icons for cm3leon: their data, trained models and codes, what completes a set, and what judges drawings of icons.

`data` has the corpus and its data set, `tasks` the data set of edits, questions and scenes, `svg_codes` and `outlines` image
tokenizers of paths, `facets` the retriever, `ink` what is done with a drawn icon, `complete` the command of that name,
`judge` and `evaluation` metrics; `models`, `weights`, `recipes` and `protocols` are files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: The default model of `cm3 complete`.
COMPLETING_MODEL: Final = "icons:icons64-hands"
#: Vectors of the icons' names by MiniLM, as the retriever `hybrid` reads them (`vectors: bundled:icons`).
NAME_VECTORS = Path(__file__).parent / "weights" / "hybrid" / "icons.safetensors"
