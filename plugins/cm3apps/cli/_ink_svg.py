"""The areas of a drawing's ink as an SVG, as icon sets have them: a few kilobytes, no white, and `currentColor`, so that a
page decides the colour."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cm3core.document import BoolArray, PixelArray
    from cm3run.grey import Ink

#: Pictures are enlarged to about this before they are traced, at least twice: of more, curves follow every pixel.
_TRACED_SIDE = 256

_PATH = re.compile(r'<path d="([^"]*)"[^>]*?\s(transform="[^"]*")')


def ink_svg(pixels: PixelArray, ink: Ink, enlarged: int = 1) -> str:
    """Return the areas of grey and of full ink as an SVG.

    Args:
        pixels: uint8 [height, width, 3].
        ink: its levels.
        enlarged: see `ink_of`.
    """
    import numpy as np  # late, as all that commands import
    from PIL import Image

    from cm3run.grey import FULL, ink_areas

    height, width = pixels.shape[:2]
    times = max(2, round(_TRACED_SIDE / max(height, width)))
    large = Image.fromarray(pixels).convert("L")
    large = large.resize((width * times, height * times), Image.Resampling.BICUBIC)
    areas = ink_areas(np.asarray(large.convert("RGB")), ink, times, enlarged)
    pixel = times * enlarged
    groups = [
        _group(areas.dark > areas.grey_from, pixel, ink.grey),
        _group(areas.dark > areas.full_from, pixel, 1.0 if ink.full >= FULL else ink.full),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width * times} {height * times}">\n{"".join(groups)}</svg>\n'
    )


def _group(covered: BoolArray, pixel: int, opacity: float) -> str:
    """The covered pixels as curves; specks of less than about two pixels of the drawing are left out."""
    faint = f' opacity="{opacity:.2f}"' if opacity < 1 else ""
    paths = "".join(f'<path d="{curve}" {place}/>\n' for curve, place in _traced(covered, pixel))
    return f'<g fill="currentColor"{faint}>\n{paths}</g>\n' if paths else ""


def _traced(covered: BoolArray, pixel: int) -> Iterator[tuple[str, str]]:
    import numpy as np
    import vtracer

    from cm3core.images import png_bytes

    black = np.where(covered, 0, 255).astype(np.uint8)
    text: str = vtracer.convert_raw_image_to_svg(
        png_bytes(np.dstack([black] * 3)),
        img_format="png",
        colormode="binary",
        mode="spline",
        filter_speckle=2 * pixel,
        corner_threshold=60,
        path_precision=1,
    )
    for found in _PATH.finditer(text):
        yield " ".join(found[1].split()), found[2]
