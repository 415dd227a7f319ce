"""Choose which search results are prepended to a query: the rules of CM3leon section 2.1.

Each rule is a function.

    relevance     `ranked`: by score
    modality      `preferred_first`: documents with both text and a picture before others
    diversity     `is_redundant`: no near-duplicates of a document already taken (those of the query: a limit on the score)
    the query     `query_parts`: its text, its picture, or both, whose results are `interleaved`

A search returns only the beginning of the whole ranking. Every rule keeps only what that beginning
makes certain, so a longer search never changes the results of a shorter one.

Legend: W results of a search, C candidates of them, n documents taken, E dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from cm3core.document import Document, Image, Text
from cm3core.errors import DataError

QUERY_PARTS = ("text", "image", "both", "union")

#: Scores are rounded to this many digits: the last bits depend on how many queries share a matrix
#: product.
DIGITS = 6

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """A document that may be taken: its `index` in the memory, its `score`; the rest as in `Retrieved`."""

    index: int
    score: float
    found_by: str = "text"
    preferred: bool = True


@dataclass(frozen=True)
class Ranking:
    """The result of one search: candidates, best first.

    Args:
        candidates: the certain beginning of the whole ranking.
        complete: it is the whole ranking.
    """

    candidates: tuple[Candidate, ...]
    complete: bool


def query_parts(query: Document, part: str) -> list[tuple[str, Document]]:
    """Split a query into the parts to search by, as ("text" or "image", document).

    The name becomes `found_by` in the results.

    Args:
        query: a document; parts that it lacks are left out.
        part: of `QUERY_PARTS`: its text; its pictures; "both" averaged, like a document of the
            memory; "union": one search by text and one by pictures (paper section 2.1).

    Raises:
        DataError: neither text nor a picture.

    >>> [found_by for found_by, _ in query_parts((Text("red apple"),), "union")]
    ['text']
    """
    texts = tuple(segment for segment in query if isinstance(segment, Text) and segment.text)
    images = tuple(segment for segment in query if isinstance(segment, Image))
    if not texts and not images:
        raise DataError(
            "retrieval query",
            "has neither text nor a picture",
            "give it one, or use num_retrieved=0",
        )
    parts: list[tuple[str, Document]] = [("text", texts), ("image", images)]
    if part == "both" and texts and images:
        return [("text", (*texts, *images))]
    there = [one for one in parts if one[1]]
    return there if part == "union" else [one for one in there if one[0] == part] or there[:1]


def ranked(
    scores_W: FloatArray,
    rows_W: npt.NDArray[np.int64],
    *,
    whole: bool,
    found_by: str = "text",
    minimum: float | None = None,
    maximum: float | None = None,
) -> Ranking:
    """Rank the results of a search by rounded score, ties in the memory's order.

    If the search did not cover the whole memory, the last score is dropped: documents beyond it may
    have the same score.

    Args:
        scores_W, rows_W: best first; a row below 0 means no result, and none follows.
        whole: there are no further results.
        found_by: "text" or "image".
        minimum: drop documents less similar than this.
        maximum: drop documents more similar than this: near-duplicates of the query (paper: 0.9).
    """
    there = rows_W >= 0
    whole = whole or not there.all()
    scores: Any = np.round(scores_W[there].astype(np.float64), DIGITS)
    rows = rows_W[there]
    if minimum is not None and len(scores) and scores[-1] < minimum:
        whole = True  # the rest is even less similar
    keep = np.ones(len(scores), bool) if whole else scores > scores[-1]
    if minimum is not None:
        keep &= scores >= minimum
    if maximum is not None:
        keep &= scores <= maximum
    order = np.lexsort((rows[keep], -scores[keep]))
    pairs = zip(rows[keep][order].tolist(), scores[keep][order].tolist(), strict=True)
    return Ranking(tuple(Candidate(row, score, found_by) for row, score in pairs), whole)


def preferred_first(ranking: Ranking, is_preferred: Callable[[int], bool]) -> Ranking:
    """Put preferred candidates first, otherwise keeping the order.

    The others are included only if the ranking is complete, since more preferred ones may follow.

    Args:
        ranking: by relevance.
        is_preferred: called with indices into the memory.
    """
    first = [candidate for candidate in ranking.candidates if is_preferred(candidate.index)]
    chosen = {candidate.index for candidate in first}
    rest = [
        replace(candidate, preferred=False)
        for candidate in ranking.candidates
        if candidate.index not in chosen
    ]
    return Ranking((*first, *(rest if ranking.complete else ())), ranking.complete)


def interleaved(rankings: Sequence[Ranking]) -> Ranking:
    """Take the best of each ranking, then the second of each, and so on.

    A document that occurs twice keeps its first position.

    >>> one, two = (Ranking(tuple(Candidate(index, 1.0) for index in places), True) for places in ([7, 3, 5], [3, 9]))
    >>> [candidate.index for candidate in interleaved([one, two]).candidates]
    [7, 3, 9, 5]
    """
    if len(rankings) == 1:
        return rankings[0]
    certain = min(
        (len(ranking.candidates) for ranking in rankings if not ranking.complete), default=None
    )
    lists = [ranking.candidates[:certain] for ranking in rankings]
    merged: dict[int, Candidate] = {}
    for place in range(max(map(len, lists))):
        for candidates in lists:
            if place < len(candidates):
                merged.setdefault(candidates[place].index, candidates[place])
    return Ranking(tuple(merged.values()), certain is None)


def is_redundant(
    vector_E: FloatArray, taken_nE: Sequence[FloatArray], max_redundancy: float
) -> bool:
    """Whether a document is more similar than `max_redundancy` (paper: 0.9) to one already taken.

    All vectors have length 1.

    >>> is_redundant(np.float32([1, 0]), [np.float32([0.6, 0.8])], 0.5)
    True
    """
    return bool(taken_nE) and bool(
        (np.round(np.stack(taken_nE) @ vector_E, DIGITS) > max_redundancy).any()
    )


def take(
    candidates: Iterable[Candidate],
    number: int,
    allowed: Callable[[int], bool],
    vector_of: Callable[[int], FloatArray] | None = None,
    max_redundancy: float = 1.0,
) -> list[Candidate]:
    """Take the first `number` allowed candidates; with `vector_of`, skip redundant ones."""
    taken: list[Candidate] = []
    vectors: list[FloatArray] = []
    for candidate in takewhile(lambda _: len(taken) < number, candidates):
        if not allowed(candidate.index):
            continue
        if vector_of is not None:
            vector_E = vector_of(candidate.index)
            if is_redundant(vector_E, vectors, max_redundancy):
                continue
            vectors.append(vector_E)
        taken.append(candidate)
    return taken
