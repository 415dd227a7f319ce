"""A time limit for shrinking a failing example.

Hypothesis shrinks for up to five minutes per failing test, so that a kit of a dozen laws could take
an hour to fail. After the limit, examples tried only for shrinking are ended before they draw
anything, as Hypothesis ends one that draws too much; the smallest failing example found so far is
then reported as usual. (Hypothesis's own limit can be lowered, but then prints that five minutes
have passed, and asks for a bug report.)
"""

from __future__ import annotations

import time

from hypothesis import strategies as st
from hypothesis.control import current_build_context

#: Seconds for one law, and for all laws of a test class together.
SECONDS_PER_LAW, SECONDS_PER_CLASS = 5.0, 20.0
#: Seconds for each further law once those of the class are used up.
LEAST_SECONDS = 0.5


class Shrinking:
    """How long one run of a law's test has been shrinking.

    Args:
        used: seconds that other laws of the test class took.
    """

    def __init__(self, used: float) -> None:
        self.limit = max(LEAST_SECONDS, min(SECONDS_PER_LAW, SECONDS_PER_CLASS - used))
        self._begun: float | None = None

    def begin(self) -> None:
        """Record a failure; the first one starts the clock."""
        if self._begun is None:
            self._begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the first failure; 0 before it."""
        return 0.0 if self._begun is None else time.perf_counter() - self._begun

    def check(self, data: st.DataObject) -> None:
        """End the current example if it would only shrink another one, and time is up."""
        # the last run of the failing example is the one that is reported
        if self.seconds > self.limit and not current_build_context().is_final:
            data.conjecture_data.mark_overrun()
