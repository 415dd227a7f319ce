"""Pixels that note arithmetic whose result does not fit their type."""

from __future__ import annotations

from typing import Any

import numpy as np

from cm3core.document import PixelArray

#: Whose results may not fit; `where(a > b, a - b, b - a)` overflows too, and is right.
_ARITHMETIC = {"add", "subtract", "multiply", "power", "square", "negative"}
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "power": "**"}


class Watched(np.ndarray):
    """An array whose arithmetic in 8 or 16 bits is done again in 64, and noted where that differs."""

    notes: list[str]

    @classmethod
    def of(cls, pixels: PixelArray, notes: list[str]) -> Watched:
        """The same pixels; what overflows is noted in `notes`, in words."""
        watched = pixels.copy().view(cls)
        watched.notes = notes
        return watched

    def __array_finalize__(self, made_of: Any) -> None:
        self.notes = getattr(made_of, "notes", [])

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Any:
        plain = [_plain(one) for one in inputs]
        exact = None
        if ufunc.__name__ in _ARITHMETIC and method == "__call__":
            with np.errstate(all="ignore"):
                exact = ufunc(*[_wide(one) for one in plain])
            before = [np.array(one) for one in plain]
        if out is not None:
            options["out"] = tuple(_plain(one) for one in out)
        result: Any = getattr(ufunc, method)(*plain, **options)
        if exact is not None and _is_narrow(result):
            wrong = np.asarray(result != exact)
            if wrong.any():
                self.notes.append(_told(ufunc.__name__, before, result, wrong))
        if out is not None:
            return out[0]
        if isinstance(result, np.ndarray):
            seen: Any = result.view(Watched)
            seen.notes = self.notes
            return seen
        return result


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Watched) else value


def _wide(value: Any) -> Any:
    return (
        value.astype(np.int64)
        if isinstance(value, np.ndarray) and value.dtype.kind in "ui"
        else value
    )


def _is_narrow(result: Any) -> bool:
    dtype = getattr(result, "dtype", None)
    return dtype is not None and dtype.kind in "ui" and dtype.itemsize <= 2


def _told(name: str, inputs: list[Any], result: Any, wrong: Any) -> str:
    """The first wrong result in words: `3 - 5 = 254 in uint8`."""
    place = tuple(np.argwhere(wrong)[0])
    values = [np.broadcast_to(one, result.shape)[place].item() for one in inputs]
    sign = _SIGNS.get(name)
    told = f" {sign} ".join(map(str, values)) if sign else f"{name}({values[0]})"
    return f"{told} = {result[place]} in {result.dtype}"
