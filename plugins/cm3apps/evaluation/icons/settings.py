"""What the experiment on a model of icons measures. Light: the command line lists it."""

from __future__ import annotations

from dataclasses import dataclass, field

SPLITS = ("comp", "compose", "unseen", "train")
#: What may be prepended, see `drawing.py`.
CONDITIONS = ("none", "version", "retrieved-train", "retrieved-all", "random")
#: What R@k compares pictures by, see `ranking.py`.
JUDGES = ("pixels", "features")


@dataclass(frozen=True)
class IconSettings:
    """What is measured.

    Args:
        num: pictures of each split.
        splits: of the data set.
        drawn: conditions under which pictures are drawn.
        judges: "pixels", "features".
        seed: of the drawing.
        sampling: keys of the sampler that differ from the recipe's.
        tokenizer: whether the image tokenizer is measured.
    """

    num: int
    splits: tuple[str, ...]
    drawn: tuple[str, ...]
    judges: tuple[str, ...]
    seed: int = 0
    sampling: dict[str, float] = field(default_factory=dict)
    tokenizer: bool = True
