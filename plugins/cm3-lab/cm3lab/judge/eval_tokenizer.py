"""How much of a picture's identity survives an image tokenizer:
`python -m cm3lab.judge.eval_tokenizer --weights FILE`.

Prints R@1 and R@5 of the judge on real pictures and on their reconstructions from a `vqgan`.
"""

from __future__ import annotations

import argparse

import numpy as np

from cm3apps.judge.judge import Judge
from cm3plugins.datasets.emoji.corpus import EmojiCorpus, select_concepts
from cm3plugins.image_tokenizers.vqgan import VQGANConfig


def main() -> None:
    """Sample pictures of each split, reconstruct, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", default="bundled:emoji64", help="weights of the vqgan, as in a recipe"
    )
    parser.add_argument(
        "--num-images", type=int, default=300, help="pictures per split, evenly spread"
    )
    args = parser.parse_args()
    corpus, judge, tokenizer = (
        EmojiCorpus(),
        Judge.load(),
        VQGANConfig(weights=args.weights).build(),
    )
    quickstart = sorted(select_concepts("quickstart", corpus))
    subsets = {
        f"all {len(judge.concepts)}": judge.concepts,
        f"the {len(quickstart)} of the quickstart": tuple(quickstart),
    }
    for split in ("train", "comp", "unseen"):
        for name, among in subsets.items():
            known = set(among)
            rows = [
                i
                for i, entry in enumerate(corpus.entries)
                if entry.split == split and entry.concept in known
            ]
            if not rows:
                continue
            rows = [
                rows[i]
                for i in np.unique(np.linspace(0, len(rows) - 1, args.num_images).astype(int))
            ]
            pictures = np.stack([corpus.render(i, tokenizer.image_size[0]) for i in rows])
            concepts = [corpus.entries[i].concept for i in rows]
            for kind, judged in (
                ("real", pictures),
                ("reconstructed", tokenizer.decode(tokenizer.encode(pictures))),
            ):
                ranks = judge.ranks(judged, concepts, among)
                print(
                    f"{split:7s} among {name:26s} {kind:14s} n={len(rows)} R@1 "
                    f"{(ranks <= 1).mean():.3f} "
                    f"R@5 {(ranks <= 5).mean():.3f} median rank {np.median(ranks):.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
