"""Features of many pictures, extracted once and cached; metrics of the kind `metric` on reconstructions.

A file contains the features of some consecutive pictures; its name is the hash of these pictures and of the
extractor's fingerprint. An interrupted evaluation therefore resumes, and another evaluation with the same reference
pictures extracts nothing. Metrics of reconstructions and their originals include rFID, the Frechet distance between
the two sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.files import cache_folder
from cm3core.interfaces.extractor import Extractor, ExtractorConfig, FeatureArray
from cm3core.interfaces.metric import Metric, MetricBatch, MetricConfig, Score
from cm3run.built_once import computed_once
from cm3run.npy import load_array, save_array
from cm3run.progress import make_bar

#: Pictures per feature file: 1 MB for 2,048 features.
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
        pictures: each loads one; at most one chunk is in memory.
        extractor: computes features that are not cached.
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
    return computed_once(
        path,
        f"extracting features by {extractor.label}",
        partial(_read, shape=(len(pixels), extractor.dimension)),
        lambda: extractor.extract(pixels),
        save_array,
    )


def _read(path: Path, shape: tuple[int, int]) -> FeatureArray | None:
    """Cached features; None if missing, incomplete or not finite."""
    if not path.is_file():
        return None
    try:
        array = np.asarray(load_array(path))
    except (OSError, ValueError):
        return None
    is_whole = array.dtype == np.float32 and array.shape == shape and np.isfinite(array).all()
    return array if is_whole else None


#: Columns available for reconstructions.
_PIXELS = {"pictures", "reference_pictures"}
_FEATURES = {"features", "reference_features"}


def check_score(config: MetricConfig, extractor_config: ExtractorConfig | None) -> None:
    """Raise `DataError` if a metric needs more than pictures, or needs features but has no extractor.

    Reads its weight files, so that a wrong file is found before anything is measured."""
    metric = config.build()
    columns = _columns(metric)
    other = sorted(columns - _PIXELS - _FEATURES)
    if other:
        raise DataError(
            f"metric {type(metric).__name__}",
            f"needs {', '.join(other)}, which reconstructions don't have",
            "choose one that compares pictures, or two sets of features",
        )
    if columns & _FEATURES and extractor_config is None:
        raise DataError(
            f"metric {type(metric).__name__}",
            "compares features, but no extractor is given",
            "add extractor=NAME to --score",
        )


def reconstruction_scores(
    images_NHWC: PixelArray,
    reconstructed_NHWC: PixelArray,
    config: MetricConfig,
    extractor_config: ExtractorConfig | None,
) -> list[tuple[str, Score]]:
    """(name, score) of a metric with the originals as references; the name ends with the extractor's
    label.

    Args:
        images_NHWC: originals, uint8 [N, H, W, 3].
        reconstructed_NHWC: the same through the image tokenizer.
        config: of the metric.
        extractor_config: of the network for its features, if it compares features.

    Raises:
        DataError: see `check_score`; or there are too few pictures.
    """
    check_score(config, extractor_config)
    metric, label = config.build(), ""
    if _columns(metric) & _FEATURES:
        assert extractor_config is not None
        extractor = extractor_config.build()
        label = f"-{extractor.label}"
        _feed_features(metric, extractor, "features", reconstructed_NHWC)
        _feed_features(metric, extractor, "reference_features", images_NHWC)
    else:
        for start in range(0, len(images_NHWC), CHUNK):
            part = slice(start, start + CHUNK)
            values = {
                "pictures": list(reconstructed_NHWC[part]),
                "reference_pictures": list(images_NHWC[part]),
            }
            places = range(start, start + len(values["pictures"]))
            metric.update(MetricBatch(places, values))
    return [(f"{score.name}{label}", score) for score in metric.result()]


def _columns(metric: Metric) -> set[str]:
    return {name for group in metric.needs for name in group}


def _feed_features(
    metric: Metric, extractor: Extractor, name: str, pictures_NHWC: PixelArray
) -> None:
    loads = [partial(pictures_NHWC.__getitem__, place) for place in range(len(pictures_NHWC))]
    bar = make_bar(
        desc=f"{name.replace('_', ' ')}, {extractor.label}", total=len(loads), unit="picture"
    )
    with bar:
        for places, features in features_in_chunks(loads, extractor, advance=bar.update):
            values: dict[str, Any] = {name: features}
            metric.update(MetricBatch(places, values))
