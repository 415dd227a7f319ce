"""Vector graphics for `--svg`: drawings as the model wrote them, and other pictures traced by vtracer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cm3core.errors import MissingPackageError

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3run.model.results import GeneratedImage
    from cm3run.prompting import Finisher

#: Approximate size to which pictures are enlarged before tracing, so that edges of few pixels
#: become curves.
_TRACED_SIDE = 512
_COLOURS = 12
_SIZE = re.compile(r'<svg([^>]*?) width="\d+" height="\d+"')


def check_tracer(place: str) -> None:
    """Raise `MissingPackageError` unless vtracer is installed."""
    from importlib.util import find_spec

    if find_spec("vtracer") is None:
        raise MissingPackageError.extra(place, "vtracer", "svg")


def svg_of_image(
    picture: GeneratedImage,
    finisher: Finisher | None = None,
    tokenizer: ImageTokenizer | None = None,
) -> str:
    """What the model wrote, if its codes are drawings; otherwise `svg_of` for a generated picture, or for its enlarged
    version if there is one. Of a picture that was found, its original if that is an SVG."""
    if picture.original is not None and picture.original.suffix == ".svg":
        return picture.original.content.decode("utf-8")
    codes = picture.drawn
    drawing = None if tokenizer is None or codes is None else tokenizer.svg(codes.codes)
    if drawing is not None:
        return drawing
    large = picture.upscaled
    if large is None:
        return svg_of(picture.pixels, finisher=finisher)
    return svg_of(large, max(1, round(large.shape[0] / picture.pixels.shape[0])), finisher)


def svg_of(pixels: PixelArray, enlarged: int = 1, finisher: Finisher | None = None) -> str:
    """Return a picture as an SVG without the white around the drawing.

    The model's finisher may write it. Otherwise the SVG has areas in up to twelve colours. Its coordinates are those of
    the enlarged picture that was traced (`viewBox`); width and height are those of the picture.

    Args:
        pixels: uint8 [height, width, 3].
        enlarged: the factor by which an upscaler enlarged the picture, and with it edges and noise.
        finisher: the model's finisher.

    Raises:
        MissingPackageError: vtracer is not installed.
    """
    check_tracer("--svg")
    if finisher is not None and (own := finisher.svg(pixels, enlarged)) is not None:
        return own
    import numpy as np  # imported late, like all packages of commands
    import vtracer
    from PIL import Image as Pillow
    from PIL import ImageFilter

    from cm3core.images import png_bytes
    from cm3run.transparency import without_background

    height, width = pixels.shape[:2]
    times = max(1, round(_TRACED_SIDE / max(height, width)))
    layers = Pillow.fromarray(without_background(pixels))
    large = layers.resize((width * times, height * times), Pillow.Resampling.BICUBIC)
    # single-pixel steps would become jagged
    alpha = np.asarray(large.getchannel("A").filter(ImageFilter.GaussianBlur(times / 2)))
    # Reduce to few colours, each of which becomes areas; enlarged edges have many intermediate
    # colours.
    smooth = large.convert("RGB").filter(ImageFilter.MedianFilter(7))
    # start with well separated colours, then take the mean of the pixels nearest to each
    few = smooth.quantize(_COLOURS, Pillow.Quantize.MAXCOVERAGE, 8, dither=Pillow.Dither.NONE)
    solid = np.dstack([np.asarray(few.convert("RGB")), np.where(alpha > 127, 255, 0)])
    text: str = vtracer.convert_raw_image_to_svg(
        png_bytes(solid.astype(np.uint8)),
        img_format="png",
        colormode="color",
        mode="spline",
        filter_speckle=3 * times,
        color_precision=8,
        layer_difference=0,
        corner_threshold=60,
        path_precision=1,
    )
    box = f'viewBox="0 0 {width * times} {height * times}"'
    return _SIZE.sub(rf'<svg\1 width="{width}" height="{height}" {box}', text, count=1)
