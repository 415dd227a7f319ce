"""Measure which reranker finds the right picture, and write docs/figures/rerankers.json: `python docs/_rerankers.py`
(five minutes of one core). `python docs/_generate.py` then writes the table of decoding.md.

Eight candidates of each prompt are sampled carelessly, so that there is something to choose from. A candidate is right
if the judge, whose network no reranker uses, ranks the prompt's concept first.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import cm3core
from cm3core.document import ImageHole, Text
from cm3core.interfaces import Candidate
from cm3icons.judge.judge import Judge
from cm3plugins.datasets.emoji.corpus import EmojiCorpus, select_concepts

FILE = Path(__file__).parent / "figures" / "rerankers.json"
MODEL, CANDIDATES, SEED = "bundled:emoji64", 8, 5


def main() -> None:
    """Generate, score by each reranker, judge."""
    model = cm3core.load(MODEL, precision="fp32", num_threads=1)
    parts = model.components
    pmi = parts.registry.config_class("reranker", "pmi", place="reranker")
    rerankers = {name: model.reranker(name) for name in ("clip", "likelihood")} | {
        f"pmi {direction}": pmi(direction=direction).build(  # type: ignore[call-arg]  # pmi's own key
            embedder=parts.embedder, likelihood=parts.likelihood
        )
        for direction in ("text", "image")
    }
    corpus, judge = EmojiCorpus(), Judge.load()
    concepts = sorted(select_concepts("starter", corpus))
    right: dict[str, list[float]] = {name: [] for name in ("nothing", *rerankers, "the best")}
    for concept in concepts[::2]:
        entry = next(
            one for one in corpus.entries if one.split == "train" and one.id.endswith(f"/{concept}")
        )
        prompt = f"{entry.label}, {entry.id.split('/')[0]} style"
        pictures = model.generate(
            prompt,
            CANDIDATES,
            seed=SEED,
            num_retrieved=0,
            temperature=1.1,
            plausible_top_p=1.0,
            guidance_scale=1.0,
        )
        pixels = np.stack([picture.pixels for picture in pictures])
        first = judge.ranks(pixels, [concept] * CANDIDATES, concepts) == 1
        candidates = [
            Candidate(
                (Text(prompt), ImageHole()),
                (Text(prompt), picture.codes),
                lambda codes, picture=picture: picture.pixels,  # type: ignore[misc]  # a default
            )
            for picture in pictures
        ]
        right["nothing"].append(float(first.mean()))
        right["the best"].append(float(first.any()))
        for name, reranker in rerankers.items():
            right[name].append(float(first[np.argmax(reranker.score(candidates))]))
    found = {name: round(float(np.mean(values)), 4) for name, values in right.items()}
    FILE.write_text(
        json.dumps(
            {"prompts": len(right["nothing"]), "candidates": CANDIDATES, "right": found}, indent=1
        )
        + "\n",
        encoding="utf-8",
    )
    print(FILE)


if __name__ == "__main__":
    main()
