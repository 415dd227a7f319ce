"""The settings of the experiment on an icon model. Light, because the command line lists them."""

from __future__ import annotations

from dataclasses import dataclass, field

SPLITS = ("comp", "compose", "unseen", "train")
#: The conditions for prepended documents, see `drawing.py`.
CONDITIONS = ("none", "version", "retrieved-train", "retrieved-all", "random")
#: The judges of R@k, see `ranking.py`.
JUDGES = ("pixels", "features")


@dataclass(frozen=True)
class IconSettings:
    """The settings of a measurement.

    Args:
        num: pictures per split.
        splits: splits of the data set.
        drawn: conditions under which pictures are drawn.
        judges: "pixels", "features".
        seed: the seed of the drawing.
        sampling: keys of the sampler that differ from the recipe's.
        tokenizer: whether to measure the image tokenizer.
    """

    num: int
    splits: tuple[str, ...]
    drawn: tuple[str, ...]
    judges: tuple[str, ...]
    seed: int = 0
    sampling: dict[str, float] = field(default_factory=dict)
    tokenizer: bool = True
