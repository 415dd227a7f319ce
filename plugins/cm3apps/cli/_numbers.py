"""Types of options that are numbers: each states its range, which is checked with the arguments.

A number out of range is then refused before anything is opened, and not by a library that it
overflows, minutes later.
"""

from __future__ import annotations

from argparse import ArgumentTypeError

#: Largest values that several options share.
MAX_SEED = 2**63 - 1
MAX_THREADS = 4096
MAX_MINUTES = 10_000_000
MAX_STEPS = 2**63 - 1
#: Characters of an argument that an error repeats.
_MOST_SHOWN = 40


class NumberRange:
    """The `type` of an option: parses a number and checks that it lies in a range.

    No dataclass, whose import alone would double the time of `cm3 --help`.

    Args:
        least, most: the smallest and the largest value.
        whole: whether it must be a whole number; the result is then an int.
        above: whether it must be more than `least`.
    """

    def __init__(self, least: float, most: float, *, whole: bool, above: bool = False) -> None:
        self.least, self.most, self.whole, self.above = least, most, whole, above

    def __call__(self, text: str) -> int | float:
        """Return the number; raises `ArgumentTypeError` if it is none, or out of range."""
        try:
            value: int | float = int(text) if self.whole else float(text)
        except ValueError:  # also: more digits than Python converts
            raise self._error(text) from None
        if not self.least <= value <= self.most or (self.above and value == self.least):
            raise self._error(text)
        return value

    def _error(self, text: str) -> ArgumentTypeError:
        what = "a whole number" if self.whole else "a number"
        shown = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
        first = f"more than {self.least:,}" if self.above else f"from {self.least:,}"
        last = "and at most" if self.above else "to"
        return ArgumentTypeError(f"is {shown!r}, must be {what} {first} {last} {self.most:,}")


def whole_number(least: int, most: int) -> NumberRange:
    """The `type` of an option that is a whole number from `least` to `most`.

    >>> whole_number(1, 4096)("8")
    8
    """
    return NumberRange(least, most, whole=True)


def real_number(least: float, most: float, *, above: bool = False) -> NumberRange:
    """The `type` of an option that is a number from `least`, or `above` it, to `most`.

    >>> real_number(0, 60, above=True)("0.5")
    0.5
    """
    return NumberRange(least, most, whole=False, above=above)
