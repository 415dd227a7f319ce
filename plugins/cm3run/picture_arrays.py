"""A data set's pictures in one array, such as tokenizers are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.errors import DataError

if TYPE_CHECKING:
    from cm3core.document import Image, PixelArray
    from cm3core.interfaces.dataset import DocumentSource

#: Maximum bytes of pictures in memory; larger arrays are kept on disk.
MAX_IN_MEMORY = 2 << 30


def pictures_of(
    source: DocumentSource, size: tuple[int, int], num: int | None = None
) -> PixelArray:
    """All distinct pictures of a source, or `num` spread over it, at `size` = (height, width).

    Returns uint8 [N, height, width, 3].

    Raises:
        DataError: no picture can be read.
    """
    from tqdm import tqdm

    from cm3core.images import fit
    from cm3run.progress import make_bar

    chosen = spread(source, num)
    images_NHWC = _empty((len(chosen), *size, 3))
    num_read = 0
    for picture in make_bar(chosen, desc="pictures", unit="", disable=None, leave=False):
        try:
            images_NHWC[num_read] = fit(picture.load(), size)
            num_read += 1
        except DataError as error:
            tqdm.write(f"skipped: {error}")
    if num_read == 0:
        raise DataError(
            "the data set",
            f"has no picture that can be read ({len(source.skipped)} bad records)",
            "run 'cm3 data validate'",
        )
    return images_NHWC[:num_read]


def spread(source: DocumentSource, num: int | None) -> list[Image]:
    """All distinct pictures of a source, or `num` spread over it."""
    import numpy as np

    from cm3core.document import Image

    found: dict[str, Image] = {}
    for index in range(len(source)):
        found |= {
            segment.key: segment for segment in source.document(index) if isinstance(segment, Image)
        }
    chosen = list(found.values())
    if num is not None and num < len(chosen):
        chosen = [chosen[index] for index in np.linspace(0, len(chosen) - 1, num).astype(int)]
    return chosen


def _empty(shape: tuple[int, ...]) -> PixelArray:
    """An array of bytes, in memory or, if it is large, in an unnamed temporary file."""
    import math
    import tempfile

    import numpy as np

    from cm3run.npy import allocate

    if math.prod(shape) < MAX_IN_MEMORY:
        return np.empty(shape, np.uint8)
    try:
        with tempfile.TemporaryFile() as file:
            allocate(file.fileno(), 0, math.prod(shape))
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise DataError(
            tempfile.gettempdir(),
            f"has no room for {math.prod(shape) / 1e9:.1f} GB of pictures: {error.strerror}",
            "set TMPDIR to a folder with room",
        ) from error
