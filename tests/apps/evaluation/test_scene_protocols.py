"""Protocols of scenes: those of small scenes ask the same of the coarse raster."""

from __future__ import annotations

from typing import Any

import pytest

from cm3apps.evaluation.shipped import find_protocol, shipped

SMALL = [name for name in shipped() if name.startswith("scenes-small-")]


def test_each_protocol_has_a_small_one() -> None:
    names = [name for name in shipped() if name.startswith("scenes-")]
    assert {name.replace("-small", "") for name in SMALL} == set(names) - set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_small_scenes_are_asked_the_same(name: str) -> None:
    small, large = find_protocol(name), find_protocol(name.replace("-small", ""))
    own: dict[str, Any] = dict(large.task["dataset"])
    own |= {"raster": "coarse", "image_size": 32, "max_concepts": 2}
    assert small.task == {**large.task, "dataset": own}
    assert (small.seed, small.size) == (large.seed, large.size and 32)
    assert small.task["num"] == 1000
    for one, other in zip(small.scores, large.scores, strict=True):
        is_of_scenes = other["metric"]["name"].startswith("scene")
        raster = {"raster": "coarse"} if is_of_scenes else {}
        assert one["metric"] == {**other["metric"], **raster}
