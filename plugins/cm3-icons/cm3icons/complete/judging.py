"""The judge's verdicts of candidates: whether each shows the thing, in the set's hand, and is no copy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cm3core.document import Image, PixelArray

if TYPE_CHECKING:
    from cm3icons.complete.documents import Documents
    from cm3icons.complete.drawing import Drawn
    from cm3icons.complete.sets import OwnSet
    from cm3icons.evaluation.usable import IconJudge, Verdict

#: Drawings of a user's set from which the judge learns its hand.
_SHOWN = 100


class SetJudge:
    """Judges drawings for a set.

    Args:
        own: the set.
    """

    def __init__(self, own: OwnSet) -> None:
        self._own = own

    @cached_property
    def _judge(self) -> IconJudge:
        from cm3icons.evaluation.usable import icon_judge

        return icon_judge()

    @cached_property
    def _drawings(self) -> list[PixelArray]:
        """Some drawings of the set, spread over it."""
        source = self._own.source
        step = max(1, len(source) // _SHOWN)
        return [
            one.load()
            for index in range(0, len(source), step)
            for one in source.document(index)
            if isinstance(one, Image)
        ]

    def verdicts(self, documents: Documents, pictures: Sequence[PixelArray]) -> list[Verdict]:
        """A verdict of each picture for a thing."""
        from cm3icons.evaluation.usable import Asked

        own, name = self._own, documents.name
        if own.folder is None:
            index = own.index(name)
            of_set = "" if index is None else own.source.id(index)
            asked = Asked(name, own.place, own.style, of_set)
        else:
            names = sorted({own.source.group(index) for index in range(len(own.source))} - {name})
            asked = Asked(name, drawings=self._drawings, names=names)
        shown = [one.pixels for one in (*documents.things, *documents.hands)]
        number = len(pictures)
        return self._judge.judge(list(pictures), [asked] * number, [shown] * number)


def ordered(
    candidates: Sequence[Drawn], verdicts: Sequence[Verdict]
) -> list[tuple[Drawn, Verdict]]:
    """Candidates with their verdicts: the usable ones first, then those that show the thing, then those in the hand,
    copies last."""
    return sorted(
        zip(candidates, verdicts, strict=True),
        key=lambda one: (one[1].copy, not one[1].usable, not one[1].thing, not one[1].hand),
    )


def told(verdict: Verdict) -> dict[str, Any]:
    """A verdict as it stands in the report."""
    return {
        "usable": verdict.usable,
        "thing": verdict.thing,
        "read_as": verdict.read_as,
        "hand": verdict.hand,
        "copy": verdict.copy,
        "nearest": verdict.nearest,
        "nearness": round(verdict.nearness, 3),
    }
