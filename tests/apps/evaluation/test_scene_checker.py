"""The scenes' checker: exact for what is drawn, wrong for anything else; the metric over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cm3apps.evaluation.scene_checker import COLOURS, draw_scene, find_objects, scene_is_right
from cm3apps.evaluation.scene_metric import CATEGORIES, ScenesConfig
from cm3apps.evaluation.tasks.prompts import _targets, open_scenes
from cm3core.errors import DataError
from cm3core.interfaces import MetricBatch
from cm3kits.metric import MetricContract

SCENES = [(text, own) for targets in _targets().values() for text, own in targets]


@pytest.mark.parametrize("size", [48, 64, 200])
def test_every_drawn_scene_is_right(size: int) -> None:
    for place in range(size % 7, len(SCENES), 23):
        text, target = SCENES[place]
        assert scene_is_right(draw_scene(target, size), target), text


def test_scenes_of_other_prompts_are_wrong() -> None:
    """Every pair of prompts of ten, of all categories: right only for its own."""
    some = [SCENES[place] for place in range(0, len(SCENES), 61)]
    for text, target in some:
        picture = draw_scene(target, 64)
        assert [other for other, own in some if scene_is_right(picture, own)] == [text]


def by_hand() -> Any:
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[8:24, 8:24] = COLOURS["red"]
    pixels[40:56, 36:60] = COLOURS["blue"]
    return pixels


def test_objects_by_hand() -> None:
    red, blue = find_objects(by_hand())
    assert (red.colour, red.shape, red.centre) == ("red", "square", (0.25, 0.25))
    assert (blue.colour, blue.shape, blue.centre) == ("blue", "square", (0.75, 0.75))


def test_position_and_number() -> None:
    things = [["red", "square", 1], ["blue", "square", 1]]
    for position, right in (([-1, 0], True), ([1, 0], False), ([0, -1], True), ([0, 1], False)):
        assert scene_is_right(by_hand(), {"objects": things, "position": position}) is right
    assert not scene_is_right(by_hand(), {"objects": things[:1]})  # one too many
    assert not scene_is_right(by_hand(), {"objects": [["red", "square", 2], things[1]]})
    assert find_objects(np.full((64, 64, 3), 255, np.uint8)) == []


def test_noise_and_soft_edges() -> None:
    """JPEG-like noise changes nothing; specks are no objects."""
    noisy = by_hand().astype(int) + np.random.default_rng(0).integers(-25, 26, (64, 64, 3))
    noisy[60, 2:4] = COLOURS["black"]
    assert scene_is_right(
        noisy.clip(0, 255).astype(np.uint8),
        {"objects": [["red", "square", 1], ["blue", "square", 1]]},
    )


class TestScenes(MetricContract):
    config = ScenesConfig()

    def column(self, name: str, num: int, rng: np.random.Generator) -> Sequence[Any]:
        """Targets of all categories, and pictures of some of them."""
        chosen = [SCENES[int(place)][1] for place in rng.integers(0, len(SCENES), num)]
        if name == "pictures":
            return [draw_scene(target, 48) for target in chosen]
        return [{"category": CATEGORIES[i % 4], **target} for i, target in enumerate(chosen)]

    def known_answers(self) -> Any:
        target = {"objects": [["red", "square", 1], ["blue", "square", 1]]}
        other = {"objects": [["red", "square", 2]]}
        targets = [{"category": name, **target} for name in CATEGORIES]
        targets += [{"category": "counting", **other}]
        found = {"scenes": 87.5, "scenes_counting": 50.0, "scenes_two_objects": 100.0}
        return [([MetricBatch(range(5), {"pictures": [by_hand()] * 5, "targets": targets})], found)]


def test_the_task_has_all_categories() -> None:
    task = open_scenes({"num": 3}, size=64, data=None, model=None, registry=None)
    assert [sample.target["category"] for sample in task.samples[::3]] == list(_targets())
    assert task.samples[3].prompt.endswith("s")
    for sample in task.samples:
        assert sample.picture is not None
        assert scene_is_right(sample.picture(), sample.target)
    with pytest.raises(
        DataError, match="category 'colour': has 15 samples, but the protocol needs 16"
    ):
        open_scenes({"num": 16}, size=64, data=None, model=None, registry=None)
