"""Which runs of missing codes share a sentinel: a model knows only as many as it was trained with.

A box of r rows is r runs. Where there are more than sentinels that were trained, neighbouring runs
become one span that holds the known codes between them too. These are fed, not drawn, when their
turn comes, so the picture keeps them: what is lost is only that codes drawn before don't see them.
The shortest gaps are closed, the first ones among equals: what comes after has seen them by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from cm3core.document import Codes, Document, MaskedText, Text, has_holes
from cm3core.sequence.holes import missing_codes, num_holes, runs_of

#: (segment, number of the run in it).
Run = tuple[int, int]


@dataclass(frozen=True)
class Joined:
    """The runs of missing codes that continue the span of the run before them.

    Args:
        runs: these runs.
        num_spans: spans that the document's holes take, one sentinel each.
    """

    runs: frozenset[Run]
    num_spans: int


def joined_runs(query: Document, max_spans: int) -> Joined:
    """How the holes of a query are joined, so that they and all that a guidance stream may hide
    take at most `max_spans` sentinels; more than that if they can't.

    The same for every guidance stream, which all generate the same holes.
    """
    number = num_holes(query)
    gaps = sorted(
        (int(after[0]) - int(before[-1]), index, place + 1)
        for index, segment in enumerate(query)
        if isinstance(segment, Codes)
        for place, (before, after) in enumerate(pairwise(runs_of(missing_codes(segment))))
    )
    most = max(1, max_spans - _num_hideable(query))
    chosen = gaps[: max(0, number - most)]
    return Joined(frozenset((index, run) for _, index, run in chosen), number - len(chosen))


def _num_hideable(query: Document) -> int:
    """Segments without holes: as many sentinels a guidance stream needs at most for what it
    hides (text beside a hole is hidden by the hole's)."""
    return sum(
        isinstance(segment, (Text, MaskedText, Codes)) and not has_holes([segment])
        for segment in query
    )
