"""Features of many pictures, extracted once and kept in the cache folder.

A file holds the features of some pictures in a row; its name is the hash of these pictures and of the
extractor's fingerprint, so that an interrupted evaluation resumes, and another one of the same
reference pictures extracts nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cm3core.document import PixelArray
from cm3core.files import atomic_path, cache_folder
from cm3core.interfaces.extractor import Extractor, FeatureArray
from cm3run.npy import load_array, save_array

#: Pictures whose features are one file: 1 MB of 2,048 features.
CHUNK = 128
Load = Callable[[], PixelArray]


def picture_hash(pixels_HWC: PixelArray) -> str:
    """Hash of a picture's size and pixels."""
    shape = np.asarray(pixels_HWC.shape, "<i4").tobytes()
    return hashlib.sha256(shape + np.ascontiguousarray(pixels_HWC).tobytes()).hexdigest()


def features_in_chunks(
    pictures: Sequence[Load],
    extractor: Extractor,
    *,
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda num: None,
) -> Iterator[tuple[range, FeatureArray]]:
    """Yield (positions, features float32 [N, D]) of consecutive pictures.

    Args:
        pictures: each loads one; at most a chunk of them is in memory.
        extractor: computes what is not in the cache.
        folder: the cache; None: "eval-features" in the user's cache folder.
        advance: called with the number of pictures done.
    """
    folder = cache_folder("eval-features") if folder is None else folder
    for start in range(0, len(pictures), CHUNK):
        places = range(start, min(start + CHUNK, len(pictures)))
        pixels = [pictures[place]() for place in places]
        yield places, _cached(pixels, extractor, folder)
        advance(len(places))


def _cached(pixels: Sequence[PixelArray], extractor: Extractor, folder: Path) -> FeatureArray:
    names = "\n".join([extractor.fingerprint, *map(picture_hash, pixels)])
    path = folder / f"{hashlib.sha256(names.encode()).hexdigest()}.npy"
    shape = (len(pixels), extractor.dimension)
    found = _read(path)
    if found is not None and found.shape == shape and np.isfinite(found).all():
        return found
    features_ND = extractor.extract(pixels)
    with atomic_path(path) as temporary:
        save_array(temporary, features_ND)
    return features_ND


def _read(path: Path) -> FeatureArray | None:
    """What an earlier call kept; None if it is not there or not whole."""
    if not path.is_file():
        return None
    try:
        array = np.asarray(load_array(path))
    except (OSError, ValueError):
        return None
    return array if array.dtype == np.float32 else None
