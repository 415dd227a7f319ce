"""A live preview of growing pictures: `preview.png`, and half blocks on a terminal.

A half block shows two pixels per character. Without colour (`NO_COLOR`), the character shows their brightness.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cm3core.files import write_bytes
from cm3run.printing import raw_stream

if TYPE_CHECKING:
    from cm3core.document import Codes, PixelArray
    from cm3run.attribution import Credit
    from cm3run.generation.engine import PictureGrown
    from cm3run.model.model import Model

#: Minimum seconds between two updates: decoding must not slow down generation.
INTERVAL = 0.5
#: Maximum pictures side by side, and the width of each on a terminal in characters.
MOST, WIDTH = 8, 32
#: Environment variable that asks programs for text without colour, see https://no-color.org.
NO_COLOUR = "NO_COLOR"
#: From black to white.
_SHADES = " \u2591\u2592\u2593\u2588"


class LivePreview:
    """Shows the pictures that are being generated.

    Args:
        model: decodes the pictures.
        path: the file, rewritten at each update.
        stream: also shows them if it is a terminal.
    """

    def __init__(self, model: Model, path: Path, stream: TextIO | None = None) -> None:
        self.model, self.path = model, path
        self.stream = raw_stream(sys.stderr if stream is None else stream)
        self._growing: dict[int, Codes] = {}
        self._credits: list[Sequence[Credit]] = []
        self._lines, self._last = 0, -INTERVAL

    def grown(self, event: PictureGrown) -> None:
        """Handle a new row of codes of a picture."""
        self._growing[event.request] = event.codes
        if time.monotonic() - self._last >= INTERVAL:
            self.show()

    def credit(self, credits: Sequence[Credit]) -> None:
        """Record the prepended documents of a picture; they are known only when it is finished."""
        self._credits.append(credits)

    def done(self, first: int, number: int) -> None:
        """Drop the finished candidates `first`, ... of a picture from the preview."""
        for candidate in range(first, first + number):
            self._growing.pop(candidate, None)

    def show(self) -> None:
        """Write the file, and replace the preview on the terminal."""
        from cm3run import sheets
        from cm3run.attribution import png
        from cm3run.model.facts import facts_of_preview

        shown = [self.model.preview(self._growing[key]) for key in sorted(self._growing)[:MOST]]
        if not shown:
            return
        sheet = sheets.grid([shown], scale=max(1, 128 // shown[0].shape[0]))
        write_bytes(self.path, png(sheet, facts_of_preview(self._credits)))
        if self.stream.isatty():
            self.clear()
            columns = shutil.get_terminal_size().columns
            drawn = shades if os.environ.get(NO_COLOUR) else half_blocks
            text = drawn(shown[: max(1, columns // (WIDTH + 1))])
            self.stream.write(text)
            self.stream.flush()
            self._lines = text.count("\n")
        self._last = time.monotonic()

    def clear(self) -> None:
        """Remove the preview from the terminal, so that lines can be printed."""
        if self._lines:
            self.stream.write(f"\x1b[{self._lines}A\x1b[J")
            self.stream.flush()
            self._lines = 0


def half_blocks(pictures: list[PixelArray], width: int = WIDTH) -> str:
    """Pictures side by side in true colour.

    Each character is an upper half block on a background: one pixel above another.
    """
    import numpy as np
    from PIL import Image as Pillow

    small = [
        np.asarray(Pillow.fromarray(one).resize((width, width), Pillow.Resampling.BOX))
        for one in pictures
    ]
    lines = []
    for row in range(0, width, 2):
        parts = []
        for picture in small:
            cells = zip(picture[row].tolist(), picture[row + 1].tolist(), strict=True)
            parts.append(
                "".join(
                    f"\x1b[38;2;{a};{b};{c};48;2;{d};{e};{f}m\u2580"
                    for (a, b, c), (d, e, f) in cells
                )
                + "\x1b[0m"
            )
        lines.append(" ".join(parts) + "\n")
    return "".join(lines)


def shades(pictures: list[PixelArray], width: int = WIDTH) -> str:
    """Pictures side by side without colour: a character for the brightness of two pixels."""
    import numpy as np
    from PIL import Image as Pillow

    grey = [
        np.asarray(
            Pillow.fromarray(one).convert("L").resize((width, width // 2), Pillow.Resampling.BOX)
        )
        for one in pictures
    ]
    return "".join(
        " ".join(
            "".join(_SHADES[value * len(_SHADES) // 256] for value in one[row].tolist())
            for one in grey
        )
        + "\n"
        for row in range(width // 2)
    )
