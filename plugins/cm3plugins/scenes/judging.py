"""Configs of the metrics that judge pictures of the data set `scenes`. `build` imports the implementations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from cm3core.interfaces.metric import Metric, MetricConfig
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3plugins.scenes.config import ScenesConfig
from cm3plugins.scenes.keys import RasterName


@dataclass(kw_only=True)
class SceneMetricConfig(MetricConfig):
    """Base of the configs. The keys say which drawings a picture may show, as in the data set `scenes`.

    Args:
        sprites: folder of your own drawings; null: the bundled emoji.
        concepts: of the bundled emoji.
        styles: styles that may occur; an empty list: all.
        raster: where objects may be.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "sprites": Outside(READS, "its drawings"),
        "concepts": TEXT,
        "styles": TEXT,
    }

    sprites: str | None = None
    concepts: str = "all"
    styles: list[str] = field(default_factory=list)
    raster: RasterName = "fine"

    def dataset(self) -> ScenesConfig:
        """The data set with these drawings."""
        return ScenesConfig(
            sprites=self.sprites,
            concepts=self.concepts,
            styles=self.styles,
            raster=self.raster,
            image_size=1024,
        )

    def check(self) -> None:
        """Raise `RecipeError` for an unknown style."""
        super().check()
        self.dataset().check()


@dataclass(kw_only=True)
class ScenesMetricConfig(SceneMetricConfig):
    """Percentage of pictures that show exactly their scene, read by correlation with every drawing at every place and size:
    all objects in number, size, style and place, the background, and nothing else. Also, of those whose prompt says it, the
    percentages by fact, as in GenEval: single object, two objects, counting, position, colours (of the background), styles.
    Has the keys of all metrics of scenes. Beside them stand the same of the true pictures after the image tokenizer, which
    bound what a model with these codes can reach."""

    bounded: ClassVar[bool] = True

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.scenes.metrics import ScenesMetric

        self.check()
        return ScenesMetric(self.dataset())


@dataclass(kw_only=True)
class SceneDocumentsConfig(SceneMetricConfig):
    """What retrieval found, and what came of it: the percentage of prompts whose documents show every named object in its
    style (`scene_documents`), of named objects that a document shows (`scene_documents_objects`), and of pictures with a
    named object that are no copies: not every one of them is where and as large as in its document (`scene_composed`)."""

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.scenes.metrics import SceneDocumentsMetric

        self.check()
        return SceneDocumentsMetric(self.dataset())


@dataclass(kw_only=True)
class SceneEditConfig(SceneMetricConfig):
    """Percentage of edits that do what was asked and keep the rest, of those that do what was asked
    (`scene_edit_changed`), and of those that keep every other object and the background (`scene_edit_kept`). Of filled
    parts: that show the object that was hidden, where it was."""

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.scenes.metrics import SceneEditMetric

        self.check()
        return SceneEditMetric(self.dataset())


@dataclass(kw_only=True)
class SceneCaptionConfig(SceneMetricConfig):
    """Percentage of captions that tell the scene exactly, in any of the data set's wordings."""

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.scenes.metrics import SceneCaptionMetric

        self.check()
        return SceneCaptionMetric(self.dataset())


@dataclass(kw_only=True)
class SceneBoxesConfig(SceneMetricConfig):
    """How well an answer's boxes are those of the phrase: mean overlap (intersection over union) in percent, of true and
    answered boxes matched one to one; a missing box, one too many and what is no box count 0. `scene_boxes_found`: percentage
    of answers with all boxes, each with an overlap of a half or more, and nothing else."""

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.scenes.metrics import SceneBoxesMetric

        self.check()
        return SceneBoxesMetric(self.dataset())


#: Name in recipes and protocols -> config.
METRICS: Mapping[str, type[MetricConfig]] = {
    "scenes": ScenesMetricConfig,
    "scene_documents": SceneDocumentsConfig,
    "scene_edit": SceneEditConfig,
    "scene_caption": SceneCaptionConfig,
    "scene_boxes": SceneBoxesConfig,
}
