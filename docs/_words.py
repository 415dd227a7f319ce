"""Measure what prompts find among the bundled icons' names: ``python docs/_words.py [--every N] [RETRIEVER.KEY=VALUE ...]``.

1. Every name of the corpus as a prompt: how often the first document is a drawing of that name (`--every 10`: one name
   in ten).
2. The prompts of `tests/fixtures/everyday_prompts.txt`: how often the first document has a name that was accepted
   when the prompts were written, before any retriever was run on them.
3. Prompts of things that icons don't show: how often the best score is below `retriever.unknown_below`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cm3core.document import Document, Text, text_of
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.retriever import Retrieved, Retriever
from cm3icons.data import IconSourceConfig
from cm3plugins.embedders import MiniLMConfig
from cm3plugins.retrievers import HybridRetrieverConfig
from cm3run.words import words_of

PROMPTS = Path(__file__).parents[1] / "tests" / "fixtures" / "everyday_prompts.txt"
#: What no icon set has.
ABSENT = [
    "quarterly revenue philosophy",
    "the smell of rain in autumn",
    "zxqv blorp",
    "my grandmother's opinion",
    "schroedinger equation solution",
    "existential dread",
    "the second amendment",
    "photosynthesis rate",
    "a contract dispute in Ohio",
    "gluten intolerance symptoms",
]


class Texts(DocumentSource):
    """The texts of documents, without their pictures."""

    fingerprint = "texts"

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def id(self, index: int) -> str:
        return str(index)

    def _document(self, index: int, rng: object) -> Document:
        return (Text(self._texts[index]),)


def icon_captions() -> list[str]:
    """The canonical captions of the bundled icons."""
    icons = IconSourceConfig(split="all").build()
    return [text_of(icons.document(index)) for index in range(len(icons))]


def everyday() -> Iterator[tuple[str, set[tuple[str, ...]]]]:
    """The prompts and their accepted names."""
    for line in PROMPTS.read_text().splitlines():
        if line and not line.startswith("#"):
            prompt, accepted = line.split("|")
            yield prompt.strip(), {name_key(one) for one in accepted.split(";")}


def name_key(name: str) -> tuple[str, ...]:
    """The words of a name, sorted, without numbers, which count variants."""
    return tuple(sorted(word for word in words_of(name) if not word.isdigit()))


def first(retriever: Retriever, prompts: Sequence[str]) -> list[tuple[str, Retrieved]]:
    """The subject of each prompt's first document, and the result."""
    found = retriever.retrieve([(Text(one),) for one in prompts], 1)
    memory = retriever.memory
    return [(text_of(memory.document(one.index)).split(",")[0], one) for [one] in found]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--every", type=int, default=1, metavar="N")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="of the retriever")
    args = parser.parse_args()
    options: dict[str, Any] = {}
    for one in args.options:
        key, _, value = one.partition("=")
        if key == "only_if_asked":
            options[key] = value.split(",")
        else:
            options[key] = None if value == "null" else value if key == "vectors" else float(value)
    options = {"encoder": MiniLMConfig(), "vectors": "bundled:icons", **options}
    config = HybridRetrieverConfig(**options)
    captions = icon_captions()
    retriever = config.build(Texts(captions), None)
    right = 0
    prompts = list(everyday())
    for (prompt, accepted), (name, found) in zip(
        prompts, first(retriever, [one for one, _ in prompts]), strict=True
    ):
        is_right = name_key(name) in accepted
        right += is_right
        print(f"{'    ' if is_right else 'not '}{found.score:.2f} {prompt!r}: {name!r}")
    print(f"everyday prompts: {right} of {len(prompts)} find an accepted name first")
    for prompt, (name, found) in zip(ABSENT, first(retriever, ABSENT), strict=True):
        print(f"absent: {found.score:.2f} {prompt!r}: {name!r}")
    names = sorted({one.split(",")[0] for one in captions})[:: args.every]
    own = [name == found for name, (found, _) in zip(names, first(retriever, names), strict=True)]
    lost = [name for name, is_own in zip(names, own, strict=True) if not is_own]
    print(f"names: {sum(own):,} of {len(names):,} find their own drawing first", *lost[:20])
    return 0


if __name__ == "__main__":
    sys.exit(main())
