"""A reward for icons: the asked thing in the asked hand, and nothing for a copy.

    python examples/grpo/grpo.py --model examples/icons_svg/model --retrieve 2 --reward icon_reward:usable

The judge of `cm3 eval`'s metric `usable` answers three questions of a drawing with yes or no. Few drawings of a model at
its beginning get three times yes, so here the place of the asked name among 100 counts smoothly, and documents alone
are searched for copies, which takes no search through all drawings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cm3icons.evaluation.usable import NUM_NAMES, IconJudge, icon_judge
from cm3icons.evaluation.usable import Asked as AskedIcon
from cm3run.nearness import NEARLY_A_COPY, nearness

if TYPE_CHECKING:
    from grpo import Asked, Floats

    from cm3core.document import PixelArray

#: Cosine below the limit of a hand at which a drawing has nothing of it.
FAR = 0.5


def usable(pictures: Sequence[PixelArray], asked: Sequence[Asked]) -> Mapping[str, Floats]:
    """`thing` times `hand` times what is the drawing's own, each from 0 to 1.

    thing: 1 for the first and 0 for the last place of the asked name among 100, by logarithm
    hand: 1 in the asked hand; falls to 0 with the distance from it
    own: 1 for what is no copy of a document; falls to 0 with the nearness above that of copies

    They are multiplied: with a mean as reward, a model learned to draw anything in the hand.
    """
    judge = icon_judge()
    icons = [icon_of(judge, one.id) for one in asked]
    ranks_N = np.array([rank for rank, _ in judge.things(pictures, icons)], np.float32)
    margins_N = np.array(judge.hand_margins(pictures, icons), np.float32)
    nearness_N = np.array(
        [
            max((nearness(picture, document) for document in own.shown), default=0.0)
            for picture, own in zip(pictures, asked, strict=True)
        ],
        np.float32,
    )
    thing_N = 1 - np.log(ranks_N) / np.log(np.float32(NUM_NAMES))
    hand_N = np.clip(1 + margins_N / FAR, 0, 1)
    own_N = np.minimum(1, (1 - nearness_N) / (1 - np.float32(NEARLY_A_COPY)))
    return {
        "reward": thing_N * hand_N * own_N,
        "thing": thing_N,
        "hand": hand_N,
        "copy": (nearness_N >= NEARLY_A_COPY).astype(np.float32),
        "usable": ((ranks_N == 1) & (margins_N >= 0) & (nearness_N < NEARLY_A_COPY)).astype(
            np.float32
        ),
    }


def icon_of(judge: IconJudge, id: str) -> AskedIcon:
    """What the judge needs to know of a drawing of the corpus."""
    row = judge.real.row(id)
    assert row is not None
    set_name, style = judge.real.hand_of[row]
    return AskedIcon(judge.real.words[row], set_name, style, id)
