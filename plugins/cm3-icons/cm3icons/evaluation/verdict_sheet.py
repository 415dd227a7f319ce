"""A sheet of all cases of an evaluation: what was drawn, the documents before it, the real drawing, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cm3core.document import PixelArray
from cm3core.interfaces.metric import Case
from cm3icons.evaluation.usable import Verdict
from cm3run.sheets import grid

#: Cases side by side, and documents shown of each.
_BESIDE, _DOCUMENTS = 4, 2


def verdict_sheet(cases: Sequence[Case], verdicts: Mapping[int, Verdict]) -> PixelArray:
    """Return the sheet, uint8 [H, W, 3]; nothing is selected.

    Args:
        cases: all cases.
        verdicts: number of a case -> its verdict.
    """
    rows: list[list[PixelArray | None]] = []
    captions: list[list[str]] = []
    for start in range(0, len(cases), _BESIDE):
        row: list[PixelArray | None] = []
        below: list[str] = []
        for place in range(start, min(start + _BESIDE, len(cases))):
            case = cases[place]
            documents: list[PixelArray | None] = [*case.documents[:_DOCUMENTS]]
            documents += [None] * (_DOCUMENTS - len(documents))
            row += [case.drawn, *documents, case.real]
            thing, _, hand = case.prompt.partition(", ")
            below += [said(verdicts[place]), thing, hand, "real"]
        rows.append(row)
        captions.append(below)
    labels = ["drawn", *["document"] * _DOCUMENTS, "real"] * min(_BESIDE, max(1, len(cases)))
    return grid(rows, column_labels=labels, captions=captions, scale=1, font_size=9)


def said(verdict: Verdict) -> str:
    """A verdict in a few words.

    >>> said(Verdict(3, "bell", True, 0.9, "lucide/bell", False))
    'reads as bell; copies lucide/bell'
    """
    if verdict.usable:
        return "usable"
    reasons = []
    if not verdict.thing:
        reasons.append(f"reads as {verdict.read_as}")
    if not verdict.hand:
        reasons.append("other hand")
    if verdict.copy:
        reasons.append(f"copies {verdict.nearest}")
    return "; ".join(reasons)
