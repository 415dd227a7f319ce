"""The recipe's keys that choose and configure an index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cm3core.errors import RecipeError, close_match
from cm3core.interfaces.reach import TEXT, Outside

INDEX_TYPES = ("auto", "flat", "ivf", "pq", "hnsw")


@dataclass(kw_only=True)
class IndexOptions:
    """How vectors are searched.

    Scores of results are exact with every index; approximate ones may miss results.

    Args:
        index: "flat" compares every vector (exact); "ivf" the nearest of about 2 sqrt(M) lists,
            with 8-bit vectors; "hnsw" walks a graph over 8-bit vectors (fast to search, slow to
            build); "pq" is "ivf" with an eighth of the bytes. "auto" is flat where a search takes a
            few milliseconds, else ivf.
        nprobe: lists that a search visits, for ivf and pq. None: measured when the index is built.
        ef_search: size of the candidate list of a search, for hnsw. None: measured when the index
            is built.
        num_candidates: number of best results by approximate score that are re-ranked by exact
            score.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "index": TEXT,
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "nprobe": (1, 2**31 - 1),
        "ef_search": (1, 2**31 - 1),
        "num_candidates": (1, 2**31 - 1),
    }

    index: str = "auto"
    nprobe: int | None = None
    ef_search: int | None = None
    num_candidates: int = 128

    def check_index(self) -> None:
        """Reject an unknown index, numbers below 1, and keys that the chosen index doesn't read."""
        if self.index not in INDEX_TYPES:
            raise RecipeError(
                "retriever.index",
                f"is {self.index!r}; {close_match(self.index, INDEX_TYPES)}",
                "use one of these",
            )
        for name, value, readers in (
            ("nprobe", self.nprobe, ("ivf", "pq")),
            ("ef_search", self.ef_search, ("hnsw",)),
            ("num_candidates", self.num_candidates, INDEX_TYPES),
        ):
            if value is None:
                continue
            if self.index not in ("auto", *readers):
                raise RecipeError(
                    f"retriever.{name}",
                    f"is set, and the index {self.index!r} doesn't read it",
                    f"leave it out, or use index={readers[0]}",
                )
