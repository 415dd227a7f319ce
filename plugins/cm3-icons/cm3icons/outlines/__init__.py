"""`outlines`: an image tokenizer of closed paths on a grid. Here is its config, and the form of its codes: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
from cm3core.picture_form import FORBIDDEN, MISSING, CodePositions, CodeRules, PictureForm
from cm3plugins.image_tokenizers import check_multiple

if TYPE_CHECKING:
    from cm3icons.outlines.tokenizer import OutlineTokenizer


@dataclass(kw_only=True)
class OutlinesConfig(ImageTokenizerConfig):
    """The outlines of dark areas as closed paths on a grid: a vector tokenizer whose pictures have different lengths.

    A picture is split into `cells` x `cells` squares, dark or light. Outlines between them are traced, simplified
    (Douglas and Peucker 1973) and written point by point, the largest path first: x, y, x, y, ..., close; then the next
    path, or the end. Rules forbid everything else, so that every drawn sequence is a picture. Areas are filled by the
    even-odd rule. Colours and grey levels are lost, and so is what is smaller than a cell: it is for icons and line art.
    Nothing is trained.

    Args:
        resolution: pixels per side; a multiple of `cells`.
        cells: cells per side of the grid that points lie on.
        tolerance: cells by which a simplified outline may differ from the traced one; 0 keeps every corner.
        most_codes: maximum number of codes of a picture, the end included. Where there are more, the tolerance is
            doubled, then the smallest paths are left out.
    """

    has_codebook: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (1, 2**14),
        "cells": (1, 2**10),
        "tolerance": (0, 2**10),
        "most_codes": (8, 2**16),
    }

    resolution: int = 64
    cells: int = 32
    tolerance: float = 0.75
    most_codes: int = 256

    def check(self) -> None:
        """Ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        check_multiple(self.resolution, "cells", self.cells)

    @property
    def codebook_size(self) -> int:
        """An x and a y for each line of the grid, close, end."""
        return 2 * (self.cells + 1) + 2

    @property
    def form(self) -> PictureForm:
        """A sequence of paths."""
        return form_of(self.cells, self.most_codes)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.resolution, self.resolution

    def build(self) -> OutlineTokenizer:
        """The tokenizer: the config says all of it."""
        from cm3icons.outlines.tokenizer import OutlineTokenizer

        self.check()
        return OutlineTokenizer(self.resolution, self.cells, self.tolerance, self.form)


@lru_cache(maxsize=16)
def form_of(cells: int, most_codes: int) -> PictureForm:
    """The form of pictures of paths. Codes: x 0..cells, y from cells + 1 on, close, end.

    States: before a path; then after x and after y of its first point, of its second, of a later one; at the end.
    """
    lines = cells + 1
    class_of = np.repeat([0, 1, 2, 3], [lines, lines, 1, 1])
    no = FORBIDDEN
    follows = np.array(
        [
            [1, no, no, 7],
            [no, 2, no, no],
            [3, no, no, no],
            [no, 4, no, no],
            [5, no, no, no],
            [no, 6, no, no],
            [5, no, 0, no],
            [no, no, no, 7],
        ]
    )
    end = 2 * lines + 1
    rules = CodeRules(class_of, follows)
    positions = OutlinePositions(lines, rules)
    return PictureForm.sequence(most_codes, end, end + 1, rules, positions=positions)


@dataclass(frozen=True)
class OutlineState:
    """What the codes so far lead to; None: not known."""

    slot: int | None = 0
    x: int | None = None
    y: int | None = None


class OutlinePositions(CodePositions):
    """The state of the rules behind a code (`slot`), and the last x and y of the path; one number more each for what is
    not known.

    Args:
        lines: of the grid, in each direction.
        rules: of `form_of`.
    """

    def __init__(self, lines: int, rules: CodeRules) -> None:
        self._lines, self._kinds = lines, rules.class_of.tolist()
        self._follows = rules.follows.tolist()

    @property
    def axes(self) -> Mapping[str, int]:
        return {"slot": len(self._follows) + 1, "x": self._lines + 1, "y": self._lines + 1}

    @property
    def fingerprint(self) -> str:
        return f"outlines 1 {self._lines}"

    def start(self) -> OutlineState:
        return OutlineState()

    def after(self, state: OutlineState, code: int) -> OutlineState:
        if code == MISSING:
            return OutlineState(slot=None)
        kind = self._kinds[code]
        if kind > 1:  # the path is closed, or the picture ends: both lead to one state
            return OutlineState(max(row[kind] for row in self._follows))
        slot = None if state.slot is None else self._follows[state.slot][kind]
        point = (code, state.y) if kind == 0 else (state.x, code - self._lines)
        return OutlineState(None if slot == FORBIDDEN else slot, *point)

    def place(self, state: OutlineState) -> tuple[int, ...]:
        known = (state.slot, state.x, state.y)
        last = (len(self._follows), self._lines, self._lines)
        return tuple(b if a is None else a for a, b in zip(known, last, strict=True))
