"""Images for the report: tables of captioned pictures (in Pillow's own font), and loss curves."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cm3core.document import Image as ImageSegment
from cm3core.document import PixelArray
from cm3core.errors import MissingPackageError
from cm3core.files import atomic_path
from cm3core.images import fit
from cm3core.interfaces import DocumentSource

TILE = 96
GAP = 6
TEXT_HEIGHT = 16
HEADER_HEIGHT = 20
INK, PALE = (30, 30, 30), (110, 110, 110)

#: One row: the text above the pictures, and the pictures (None leaves a place empty).
Row = tuple[str, Sequence[PixelArray | None]]


def pictures_of(source: DocumentSource, size: tuple[int, int]) -> PixelArray:
    """The first picture of every document of a data set, uint8 [N, *size, 3]."""
    found = []
    for index in range(len(source)):
        picture = next(
            (segment for segment in source.document(index) if isinstance(segment, ImageSegment)),
            None,
        )
        if picture is not None:
            found.append(fit(picture.load(), size))
    return np.stack(found)


def write_table(
    path: Path, header: Sequence[str], rows: Sequence[Row], num_blocks: int = 3
) -> None:
    """Write a PNG: rows of pictures under their texts.

    Args:
        path: the file.
        header: a name for each picture of a row.
        rows: see `Row`; pictures uint8 [H, W, 3], scaled to tiles without smoothing.
        num_blocks: the rows are split into this many columns, each with the header above it.
    """
    num_blocks = max(1, min(num_blocks, len(rows)))
    per_block = -(-len(rows) // num_blocks)
    block_width = len(header) * (TILE + GAP) + 3 * GAP
    row_height = TEXT_HEIGHT + TILE + GAP
    sheet = Image.new(
        "RGB", (num_blocks * block_width, HEADER_HEIGHT + per_block * row_height + GAP), "white"
    )
    draw = ImageDraw.Draw(sheet)
    bold, small = ImageFont.load_default(12), ImageFont.load_default(11)
    for block in range(num_blocks):
        left = block * block_width + GAP
        for column, name in enumerate(header):
            draw.text((left + column * (TILE + GAP), 3), _cut(draw, name, TILE, small), PALE, small)
        for line, (text, tiles) in enumerate(rows[block * per_block : (block + 1) * per_block]):
            top = HEADER_HEIGHT + line * row_height
            draw.text((left, top), _cut(draw, text, block_width - 3 * GAP, bold), INK, bold)
            for column, pixels in enumerate(tiles):
                if pixels is not None:
                    tile = Image.fromarray(np.asarray(pixels)).resize(
                        (TILE, TILE), Image.Resampling.NEAREST
                    )
                    sheet.paste(tile, (left + column * (TILE + GAP), top + TEXT_HEIGHT))
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def _cut(
    draw: ImageDraw.ImageDraw,
    text: str,
    width: int,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> str:
    """The text, shortened to fit in `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


def check_can_plot() -> None:
    """Raise `MissingPackageError` unless the package for `write_curves` is installed."""
    if find_spec("matplotlib") is None:
        raise MissingPackageError.extra("the curves of the losses", "matplotlib", "plots")


def write_curves(path: Path, metrics: Sequence[dict[str, float]]) -> None:
    """Write a PNG of the losses (nats per token) over minutes, with an axis for each modality.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    check_can_plot()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
    minutes_of = {
        int(line["step"]): line["elapsed_s"] / 60 for line in metrics if "elapsed_s" in line
    }
    for axis, modality in zip(axes, ("image", "text", "special"), strict=True):
        names = sorted({name for line in metrics for name in line if f"/{modality}_loss" in name})
        for name in names:
            points = [
                (minutes_of.get(int(line["step"]), float("nan")), line[name])
                for line in metrics
                if name in line
            ]
            points = [point for point in points if np.isfinite(point[0])] or points
            style = (
                {"marker": "o", "markersize": 3}
                if name.startswith("validation")
                else {"linewidth": 1.5}
            )
            axis.plot(*zip(*points, strict=True), label=_label(name), **style)
        axis.set(title=f"{modality} tokens", xlabel="minutes", ylabel="loss, nats a token")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if names:
            axis.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def _label(name: str) -> str:
    """`validation/comp/image_loss_retrieved` -> "comp, with retrieved"."""
    parts = name.split("/")
    if parts[0] != "validation":
        return parts[0]
    return parts[1] + (", with retrieved" if name.endswith("_retrieved") else "")
