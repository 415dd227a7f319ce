"""Layouts with sentinels: segments separated by one token, sentinels for what is hidden.

    <eos> T1 <break> I1 <break> ... Tq <break> Iq <eos>

The order is CM3leon's (paper section 2.2), which moved spans rely on; the ids are the vocabulary's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cm3core.interfaces.layout import Boundary, Frame, Layout

if TYPE_CHECKING:
    from cm3core.document import IntArray
    from cm3core.vocab import Vocabulary


class SentinelLayout(Layout):
    """See the module docstring.

    Args:
        vocabulary: with sentinels, and what ends, separates and closes.
        name: what it is called in messages.
    """

    def __init__(self, vocabulary: Vocabulary, name: str = "by sentinels") -> None:
        self._vocabulary, self._name = vocabulary, name

    @property
    def name(self) -> str:
        return self._name

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> str:
        """Nothing beyond the vocabulary decides."""
        return ""

    @property
    def begin(self) -> tuple[int, ...]:
        """`<eos>`."""
        return (self._vocabulary.eos,)

    @property
    def end(self) -> tuple[int, ...]:
        """`<eos>`."""
        return (self._vocabulary.eos,)

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """`<break>`, between documents too."""
        return (self._vocabulary.break_,)

    def frame(self, grid: tuple[int, int]) -> Frame:
        """Nothing: the number of codes is known."""
        return Frame()

    def segments(self, tokens: IntArray, grid: tuple[int, int]) -> list[tuple[str, IntArray]]:
        """What is between `<break>`s; a segment without a token is an empty text."""
        runs = np.split(tokens, np.flatnonzero(tokens == self._vocabulary.break_))
        # each later run starts with its <break>
        runs = [run if index == 0 else run[1:] for index, run in enumerate(runs)]
        return [
            ("image" if len(run) and int(run[0]) in self._vocabulary.image else "text", run)
            for run in runs
        ]
