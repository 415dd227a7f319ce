"""Metrics of the kind `metric` on reconstructions and their originals, such as rFID, which is the Frechet
distance of the two sets."""

from __future__ import annotations

from functools import partial
from typing import Any

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.extractor import Extractor, ExtractorConfig
from cm3core.interfaces.metric import Metric, MetricBatch, MetricConfig, Score
from cm3core.progress import make_bar
from cm3run.evaluation.features import CHUNK, features_in_chunks

#: Columns that reconstructions give.
_PIXELS = {"pictures", "reference_pictures"}
_FEATURES = {"features", "reference_features"}


def check_score(config: MetricConfig, extractor_config: ExtractorConfig | None) -> None:
    """Raise `DataError` if a metric needs more than pictures, or features and has no extractor for them.

    Its files of weights are read, so that a wrong one is found before anything is measured."""
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
            "compares features, and no extractor is given",
            "add extractor=NAME to --score",
        )


def reconstruction_scores(
    images_NHWC: PixelArray,
    reconstructed_NHWC: PixelArray,
    config: MetricConfig,
    extractor_config: ExtractorConfig | None,
) -> list[tuple[str, Score]]:
    """(name, score) of a metric, the originals being the references; the name ends with the extractor's
    label.

    Args:
        images_NHWC: originals, uint8 [N, H, W, 3].
        reconstructed_NHWC: the same through the image tokenizer.
        config: of the metric.
        extractor_config: of the network whose features it compares, where it compares features.

    Raises:
        DataError: see `check_score`; or these are too few pictures.
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
