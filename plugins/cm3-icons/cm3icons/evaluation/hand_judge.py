"""Whether a drawing is in a hand: no farther from it than nine in ten of its real drawings are.

A hand is the mean of its real drawings' vectors (`cm3icons.judge.hands`). How far a drawing is from it: its cosine with that
mean, less the greatest with another hand's. Many hands can hardly be told apart, so the nearest hand would be the wrong
question: of real drawings less than half are nearest to their own. Limits are chosen on real drawings from which nothing
was learned and which are no test cases (`near`), or on the hand's own if it was never learned, each without itself.

Legend: N drawings, H hands, E numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3icons.evaluation.real_drawings import Floats, Hand, RealDrawings

#: Share of a hand's real drawings that the limit leaves out.
LEFT_OUT = 0.1
#: Fewer real drawings make no mean; fewer make no limit of their own.
LEAST, LEAST_FOR_LIMIT = 5, 20
_ROUNDING = 1e-4


class HandJudge:
    """Tells which drawings are in which hands.

    Args:
        real: real drawings of the corpus.
    """

    def __init__(self, real: RealDrawings) -> None:
        self._real = real
        self._of_hand: dict[Hand, list[int]] = {}
        self._of_set: dict[str, list[int]] = {}
        for row, hand in enumerate(real.hand_of):
            self._of_hand.setdefault(hand, []).append(row)
            self._of_set.setdefault(hand[0], []).append(row)
        self._learned, self._near = real.of_split("train"), real.of_split("near")
        self._limits: dict[Hand, float] = {}
        #: The pictures of the last `is_like`, their mean and limit: a whole set is read once.
        self._last: tuple[Sequence[PixelArray], Floats, float] | None = None

    def is_in(self, drawing_E: Floats, hand: Hand, but: int | None = None) -> bool:
        """Whether a drawing is in a hand of the corpus, see `margin`."""
        return self.margin(drawing_E, hand, but) >= -_ROUNDING

    def margin(self, drawing_E: Floats, hand: Hand, but: int | None = None) -> float:
        """How much nearer a drawing is to a hand of the corpus than the limit; below 0 it is not in the hand.

        Args:
            drawing_E: how it reads.
            hand: set and style.
            but: row of a real drawing that must not count as one of the hand's.

        Raises:
            DataError: the corpus has too few drawings of the set.
        """
        rows = self._rows(hand)
        trained = [row for row in rows if self._learned[row]]
        if len(trained) >= LEAST:
            known = self._means.get(hand)
            mean_E = _mean(self._vectors(trained)) if known is None else known
            if hand not in self._limits:
                near = [row for row in rows if self._near[row]]
                self._limits[hand] = self._limit(self._margins(self._vectors(near), mean_E, hand))
            limit = self._limits[hand]
        else:
            vectors = self._vectors([row for row in rows if row != but])
            mean_E = _mean(vectors)
            limit = self._limit(self._own_margins(vectors, hand))
        return float(self._margins(drawing_E[None], mean_E, hand)[0] - limit)

    def is_like(self, drawing_E: Floats, pictures: Sequence[PixelArray]) -> bool:
        """Whether a drawing is in the hand of some pictures, such as a user's own set.

        Raises:
            DataError: there are too few.
        """
        if len(pictures) < LEAST:
            cause = f"has {len(pictures)} drawings, but a hand is judged by at least {LEAST}"
            raise DataError("the hand", cause, "give more drawings of the set")
        if self._last is None or self._last[0] is not pictures:
            vectors = self._real.hands.read(pictures)
            self._last = pictures, _mean(vectors), self._limit(self._own_margins(vectors, None))
        _, mean_E, limit = self._last
        return bool(self._margins(drawing_E[None], mean_E, None)[0] >= limit - _ROUNDING)

    def _rows(self, hand: Hand) -> list[int]:
        """The hand's real drawings; those of its set in all styles if there are too few."""
        rows = self._of_hand.get(hand, [])
        if len(rows) < LEAST:
            rows = self._of_set.get(hand[0], [])
        if len(rows) < LEAST:
            cause = f"has {len(rows)} real drawings, but a hand is judged by at least {LEAST}"
            raise DataError(f"set {hand[0]!r}", cause, "give its drawings instead of its name")
        return rows

    def _vectors(self, rows: Sequence[int]) -> Floats:
        return self._real.hands_ME[list(rows)]

    @cached_property
    def _means(self) -> dict[Hand, Floats]:
        """The mean of each hand: of what was learned, or of all its drawings if it never was."""
        means = {}
        for hand, rows in self._of_hand.items():
            trained = [row for row in rows if self._learned[row]]
            used = trained if len(trained) >= LEAST else rows
            if len(used) >= LEAST:
                means[hand] = _mean(self._vectors(used))
        return means

    def _margins(self, vectors_NE: Floats, mean_E: Floats, hand: Hand | None) -> Floats:
        """Cosines with a hand's mean, less the greatest with another hand's, [N]."""
        margins: Floats = vectors_NE @ mean_E - self._nearest_other(vectors_NE, hand)
        return margins

    def _own_margins(self, vectors_NE: Floats, hand: Hand | None) -> Floats:
        """Margins of a hand's drawings, each with the mean of the others."""
        rest_NE = vectors_NE.sum(0) - vectors_NE
        rest_NE /= np.maximum(np.linalg.norm(rest_NE, axis=1, keepdims=True), 1e-6)
        margins: Floats = (vectors_NE * rest_NE).sum(1) - self._nearest_other(vectors_NE, hand)
        return margins

    def _nearest_other(self, vectors_NE: Floats, hand: Hand | None) -> Floats:
        """The greatest cosine with another hand's mean, [N]; -1 if there is no other."""
        # a style of a set that has too few drawings is not compared with the set's other styles
        own_set = None if hand is None or hand in self._means else hand[0]
        others = [
            mean_E for name, mean_E in self._means.items() if name != hand and name[0] != own_set
        ]
        if not others:
            return np.full(len(vectors_NE), -1, np.float32)
        cosines: Floats = (vectors_NE @ np.stack(others).T).max(1)
        return cosines

    def _limit(self, margins_N: NDArray[np.floating]) -> float:
        """The margin that all but a tenth reach; of all hands together if there are few."""
        if len(margins_N) < LEAST_FOR_LIMIT:
            return self._common_limit
        return float(np.quantile(margins_N, LEFT_OUT))

    @cached_property
    def _common_limit(self) -> float:
        margins = [np.zeros(0, np.float32)]
        for hand, mean_E in self._means.items():
            near = [row for row in self._of_hand[hand] if self._near[row]]
            if near:
                margins.append(self._margins(self._vectors(near), mean_E, hand))
        every = np.concatenate(margins)
        return float(np.quantile(every, LEFT_OUT)) if len(every) else -0.1


def _mean(vectors_NE: Floats) -> Floats:
    return _unit(vectors_NE.sum(0))


def _unit(vector_E: Floats) -> Floats:
    unit: Floats = vector_E / max(float(np.linalg.norm(vector_E)), 1e-6)
    return unit
