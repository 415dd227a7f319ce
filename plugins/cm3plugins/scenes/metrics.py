"""The metrics of scenes: pictures and texts against the known truth (the column `targets`, `Scene.truth`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.collecting import ValueMetric, mean_score
from cm3plugins.scenes import measures
from cm3plugins.scenes.composing import RASTERS, Scene, boxes_of, scene_in
from cm3plugins.scenes.config import ScenesConfig
from cm3plugins.scenes.held_out import HeldOut
from cm3plugins.scenes.reader import Reading, SceneReader
from cm3plugins.scenes.source import sprites_of
from cm3plugins.scenes.sprites import Sprites
from cm3plugins.scenes.wording import Words


class SceneMetric(ValueMetric):
    """Base: reads pictures, and gives the mean of each fact over the samples that have it.

    Args:
        dataset: the drawings.
    """

    #: Names of the facts -> names of their scores, in order.
    scores: ClassVar[Mapping[str, str]]

    def __init__(self, dataset: ScenesConfig) -> None:
        super().__init__()
        self._dataset = dataset
        self.raster = RASTERS[dataset.raster]

    @cached_property
    def sprites(self) -> Sprites:
        """The drawings."""
        return sprites_of(self._dataset)

    @cached_property
    def reader(self) -> SceneReader:
        """Reads pictures of them."""
        return SceneReader(self.sprites, self.raster)

    def scene(self, target: Mapping[str, Any], key: str | None = None) -> Scene:
        """The scene of a target, or the one under a key of it.

        Raises:
            DataError: it has no scene of these drawings.
        """
        truth = target if key is None else target.get(key, {})
        if "items" not in truth:
            raise DataError(
                "the sample's target",
                "has no scene",
                "evaluate on the data set scenes (task.dataset)",
            )
        scene = scene_in(truth)
        for item in scene.items:
            fits = item.size in self.raster.sizes and (
                not item.place or item.place == self.raster.place_of(item.size, item.corners[0])
            )
            if not fits or (item.concept, item.style) not in self.sprites.by_name:
                raise DataError(
                    f"the sample's {item.concept!r} in style {item.style!r}",
                    "is no drawing of the metric"
                    if fits
                    else "is at no place of the metric's raster",
                    "give the metric the data set's sprites, concepts, styles and raster",
                )
        return scene

    def _result(self) -> Sequence[Score]:
        found = []
        for fact, name in self.scores.items():
            own = {index: 100.0 * one[fact] for index, one in self.values.items() if fact in one}
            if own:
                found.append(mean_score(name, own, higher_is_better=True))
        return found


class ScenesMetric(SceneMetric):
    """Pictures against their prompts."""

    needs: ClassVar[tuple[Group, ...]] = (("pictures", "targets"),)
    scores: ClassVar[Mapping[str, str]] = {
        "right": "scenes",
        **{fact: f"scenes_{fact}" for fact in measures.FACTS},
    }

    def _value(self, sample: Mapping[str, Any]) -> dict[str, float]:
        scene, reading = self.scene(sample["targets"]), self.reader.read(sample["pictures"])
        right = measures.is_right(reading, scene, self.raster)
        return {"right": float(right), **measures.facts(reading, scene, self.raster)}


class SceneDocumentsMetric(SceneMetric):
    """Documents against prompts, and pictures against documents."""

    needs: ClassVar[tuple[Group, ...]] = (("pictures", "targets", "documents"),)
    scores: ClassVar[Mapping[str, str]] = {
        "all": "scene_documents",
        "objects": "scene_documents_objects",
        "composed": "scene_composed",
    }

    def __init__(self, dataset: ScenesConfig) -> None:
        super().__init__(dataset)
        self._read: dict[bytes, Reading] = {}

    def _value(self, sample: Mapping[str, Any]) -> dict[str, float]:
        scene, reading = self.scene(sample["targets"]), self.reader.read(sample["pictures"])
        readings = [self._of_document(pixels) for pixels in sample["documents"]]
        shown = {(one.concept, one.style) for own in readings for one in own.found}
        there = [(item.concept, item.style) in shown for item in scene.items]
        result = {"all": float(all(there)), "objects": sum(there) / len(there)}
        if any(one.concept in {item.concept for item in scene.items} for one in reading.found):
            result["composed"] = float(not measures.pasted(reading, scene, self.raster))
        return result

    def _of_document(self, pixels: PixelArray) -> Reading:
        """The reading of a document; the same one stands before many prompts."""
        key = pixels.tobytes()
        if key not in self._read:
            self._read[key] = self.reader.read(pixels)
        return self._read[key]


class SceneEditMetric(SceneMetric):
    """Edited pictures against the scenes before and after."""

    needs: ClassVar[tuple[Group, ...]] = (("pictures", "targets"),)
    scores: ClassVar[Mapping[str, str]] = {
        "right": "scene_edit",
        "changed": "scene_edit_changed",
        "kept": "scene_edit_kept",
    }

    def _value(self, sample: Mapping[str, Any]) -> dict[str, float]:
        after, before = self.scene(sample["targets"]), self.scene(sample["targets"], "before")
        reading = self.reader.read(sample["pictures"])
        changed = measures.edited(before, after, reading)
        kept = measures.kept(before, after, reading)
        return {"right": float(changed and kept), "changed": float(changed), "kept": float(kept)}


class SceneCaptionMetric(SceneMetric):
    """Captions against scenes."""

    needs: ClassVar[tuple[Group, ...]] = (("texts", "targets"),)
    scores: ClassVar[Mapping[str, str]] = {"right": "scene_caption"}

    def _value(self, sample: Mapping[str, Any]) -> dict[str, float]:
        scene = self.scene(sample["targets"])
        words = Words(
            self.sprites.labels, HeldOut(self.sprites).several_styles, len(self.raster.sizes) > 1
        )
        return {"right": float(measures.is_caption(sample["texts"], scene, self.raster, words))}


class SceneBoxesMetric(SceneMetric):
    """Answered boxes against those of a phrase's objects."""

    needs: ClassVar[tuple[Group, ...]] = (("texts", "targets"),)
    scores: ClassVar[Mapping[str, str]] = {"overlap": "scene_boxes", "found": "scene_boxes_found"}

    def _value(self, sample: Mapping[str, Any]) -> dict[str, float]:
        target = sample["targets"]
        items = [one for one in self.scene(target).items if one.concept == target.get("phrase")]
        if not items:
            raise DataError(
                "the sample's target",
                "has no phrase of its scene",
                "evaluate on the form grounding (task.dataset)",
            )
        wanted = boxes_of(self.raster, items, self.sprites.labels).seen()
        overlap, found = measures.located(sample["texts"], wanted)
        return {"overlap": overlap, "found": float(found)}
