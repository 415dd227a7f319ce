"""`svg`: drawings <-> codes of their commands. The config is in the package's `__init__`.

Legend: N pictures, c codes of a picture's array, R pixels per side.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from cm3core import images
from cm3core.document import IntArray, PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3core.picture_form import PictureForm
from cm3icons.outlines.paths import outlines, simplified
from cm3icons.outlines.tokenizer import DARK
from cm3icons.svg_codes.alphabet import PER_UNIT, SHAPES, UNITS, alphabet
from cm3icons.svg_codes.reading import codes_of
from cm3icons.svg_codes.writing import svg_of
from cm3plugins.svg import render_svg, renderer_version

#: Numbers per side of the canvas, on which pictures without a drawing are traced.
CELLS = UNITS * PER_UNIT


class SvgTokenizer(ImageTokenizer):
    """See `SvgConfig`.

    Args:
        resolution: R.
        form: of its codes.
    """

    reads_drawings = True

    def __init__(self, resolution: int, form: PictureForm) -> None:
        self.resolution, self._form = resolution, form

    @property
    def image_size(self) -> tuple[int, int]:
        return self.resolution, self.resolution

    @property
    def form(self) -> PictureForm:
        return self._form

    @property
    def codebook_size(self) -> int:
        return alphabet().size

    @property
    def fingerprint(self) -> str:
        """Hash of the sizes, the rules and the renderer."""
        assert self._form.rules is not None
        facts = [self.resolution, self._form.num_codes, self._form.rules.fingerprint]
        content = json.dumps(["svg", *facts, renderer_version()]).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    def encode_drawing(self, svg: str) -> IntArray:
        """Codes int32 [c] of an SVG document.

        Raises:
            DataError: it has what codes can't say, or needs more of them than a picture has.
        """
        codes = codes_of(svg)
        if len(codes) > self._form.num_codes:
            raise DataError(
                "SVG",
                f"needs {len(codes)} codes, and a picture has at most {self._form.num_codes}",
                "raise image_tokenizer.most_codes, or leave the drawing out",
            )
        return self._form.padded(np.asarray(codes, np.int32))

    def svg(self, codes_c: IntArray) -> str:
        """A picture as an SVG document on a canvas of 24 x 24 units."""
        return svg_of(codes_c[: self._form.length(codes_c)])

    def around_parts(self, codes_c: IntArray) -> list[tuple[IntArray, IntArray]]:
        """Subpaths and shapes, in order. The paint before one stays, and that behind it is written out. Where a path
        has several subpaths, the first code of one stays, too: the subpath before it, or the path's paint, could grow
        otherwise. If another element is begun in place of a subpath that is not its path's last, the path's other
        subpaths take its paint."""
        codes_m = codes_c[: self._form.length(codes_c)]
        named = alphabet().named()
        kinds = [named[code][0] for code in codes_m.tolist()]
        starts = [place for place, kind in enumerate(kinds) if kind in ("M", *SHAPES)]
        limits = [place for place, kind in enumerate(kinds) if kind in ("paint", "same", "end")]
        found = []
        for start in starts:
            stop = min(place for place in (*starts, *limits) if place > start)
            header = max(place for place in limits if place < start)
            shares_its_path = kinds[stop] == "M" or any(header < one < start for one in starts)
            first = start if shares_its_path else start - 1
            behind = codes_m[stop:]
            # The next element's paint is written out: what is drawn here may have another.
            follows = min(place for place in limits if place > start)
            if kinds[follows] == "same":
                paint = max(place for place in range(follows) if kinds[place] == "paint")
                ends = min(place for place in starts if place > paint)
                behind = np.concatenate(
                    [codes_m[stop:follows], codes_m[paint:ends], codes_m[follows + 1 :]]
                )
            found.append((codes_m[: first + 1], behind))
        return found

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        codes = [self._form.padded(self._traced(pixels)) for pixels in pixels_NHWC]
        return np.stack(codes) if codes else np.zeros((0, self._form.num_codes), np.int32)

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        pictures = [self._drawn(codes) for codes in codes_Nc]
        return np.stack(pictures) if pictures else np.zeros((0, *self.image_size, 3), np.uint8)

    def _drawn(self, codes_c: IntArray) -> PixelArray:
        return render_svg(self.svg(codes_c), self.resolution)

    def _traced(self, pixels: PixelArray) -> IntArray:
        """Codes of the dark areas of a picture as one filled path; the smallest ones are left out where there are more
        than a picture has room for."""
        dark = images.fit(pixels, (CELLS, CELLS)).mean(axis=2) < DARK
        paths = sorted(simplified(outlines(dark[None]), 0.75).of(0), key=len, reverse=True)
        table = alphabet()
        written = [table.kinds["paint"].first + 1]  # areas by the even-odd rule
        steps, positions = table.kinds["step"], table.kinds["position"]
        for path in paths:
            moves = np.diff(path, axis=0)
            own = [table.kinds["M"].first, *(path[0] + positions.first - positions.lowest).tolist()]
            for u, v in moves.tolist():
                name = "h" if v == 0 else "v" if u == 0 else "l"
                values = {"h": (u,), "v": (v,), "l": (u, v)}[name]
                own += [
                    table.kinds[name].first,
                    *(one + steps.first - steps.lowest for one in values),
                ]
            own.append(table.kinds["z"].first)
            if len(written) + len(own) < self._form.num_codes:
                written += own
        if len(written) == 1:  # nothing is dark: a point without size
            written += [table.kinds["circle"].first]
            written += [positions.first - positions.lowest] * 2
            written += [table.kinds["length"].first]
        return np.asarray([*written, table.end], np.int32)
