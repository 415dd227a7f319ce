"""Metrics `icon_style` and `hand`: how often a classifier of real icons recognises the requested set and style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from cm3core.errors import DataError
from cm3core.interfaces.metric import Group, Metric, MetricConfig, Score

if TYPE_CHECKING:
    from cm3icons.evaluation.ranking import RealPictures
    from cm3icons.evaluation.style_classifier import StyleClassifier

#: Score -> the parts that must agree.
NAMES = ("icon_set_and_style", "icon_style", "icon_finish")


@dataclass(kw_only=True)
class IconStyleConfig(MetricConfig):
    """How often a small network trained on real icons recognises the requested set and style, the style words
    alone, and the finish alone (outline, filled, duotone, colour or broken), in percent.

    The network is trained on first use, within a minute, and kept in the cache folder. Its last bits, and so
    a picture's class, may differ between machines. The score of real pictures, which an evaluation also
    prints, is the upper limit of a meaningful score.

    Args:
        image_size: side of the real pictures that the network learns from, in pixels.
    """

    bounded: ClassVar[bool] = True
    #: What the network does not learn from, see the data set `icons`; and the names of the scores.
    held_out: ClassVar[str] = "by_name"
    names: ClassVar[Sequence[str]] = NAMES
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"image_size": (8, 1024)}
    image_size: int = 64

    def build(self) -> Metric:
        """A metric without samples."""
        self.check()
        return IconStyleMetric(self.image_size, self.held_out, self.names)

    def protocol(self) -> dict[str, Any]:
        """The version, the key, and the hash of the network's training data and settings."""
        from cm3icons.evaluation.style_classifier import classifier_key

        size = (self.image_size, self.image_size)
        real = _real(self.image_size, self.held_out)
        return super().protocol() | {"classifier": classifier_key(real, size)}


@dataclass(kw_only=True)
class HandConfig(IconStyleConfig):
    """How often a small network recognises the requested hand, which is a set and a style, in percent. It learns from
    real icons of `train` and `near` of the closed splits, so it has seen no test case.

    As with `icon_style`, the network is trained on first use, and the score of real pictures is the upper limit.

    Args:
        image_size: side of the real pictures that the network learns from, in pixels.
    """

    held_out: ClassVar[str] = "closed"
    names: ClassVar[Sequence[str]] = ("hand",)


class IconStyleMetric(Metric):
    """Whether set and style, style, and finish of each sample are the requested ones.

    Args:
        image_size: see `IconStyleConfig`.
        held_out: what the network does not learn from, see the data set `icons`.
        names: of the scores, which are the first of these three.
    """

    needs: ClassVar[tuple[Group, ...]] = (("pictures", "targets"),)

    def __init__(
        self, image_size: int, held_out: str = "by_name", names: Sequence[str] = NAMES
    ) -> None:
        self._image_size, self._held_out, self._names = image_size, held_out, names
        self._metric = "icon_style" if held_out == "by_name" else "hand"
        self._right: dict[int, tuple[float, ...]] = {}

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        from cm3icons.evaluation.style_classifier import finish_of

        for target in columns["targets"]:
            if not {"set", "style"} <= set(target):
                raise DataError(
                    "a sample",
                    "states no set and style of an icon",
                    f"use a data set of icons, or remove the metric {self._metric}",
                )
        found = _classifier(self._image_size, self._held_out).classify(columns["pictures"])
        for index, own, target in zip(indices, found, columns["targets"], strict=True):
            wanted = (target["set"], target["style"])
            right = (
                own == wanted,
                own[1] == wanted[1],
                finish_of(own[1]) == finish_of(wanted[1]),
            )
            self._right[index] = tuple(100.0 * one for one in right)

    def _merge(self, other: IconStyleMetric) -> None:
        self._right |= other._right

    def _result(self) -> Sequence[Score]:
        from cm3plugins.metrics.collecting import mean_score

        return [
            mean_score(
                name,
                {i: own[place] for i, own in sorted(self._right.items())},
                higher_is_better=True,
            )
            for place, name in enumerate(self._names)
        ]


@cache
def _real(image_size: int, held_out: str = "by_name") -> RealPictures:
    from cm3icons.data.corpus import IconCorpus
    from cm3icons.evaluation.ranking import RealPictures

    return RealPictures(IconCorpus(held_out=held_out), image_size, (image_size, image_size), None)


@cache
def _classifier(image_size: int, held_out: str) -> StyleClassifier:
    from cm3icons.evaluation.style_classifier import style_classifier

    return style_classifier(_real(image_size, held_out), (image_size, image_size))[0]
