"""Statistics of many pictures stream: what an evaluation holds does not grow with their features."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3apps.evaluation.made import Made
from cm3apps.evaluation.measured import Seen, feed_features
from cm3apps.evaluation.tasks.base import Sample, Task
from cm3core.interfaces.extractor import Extractor
from cm3plugins.metrics import FIDConfig

D = 512
#: Bytes that a sample may cost beside its features: its number in the metrics, and what loads it.
BOOKKEEPING = 1000


class Random(Extractor):
    """Features of D numbers, the same ones for the same picture."""

    label, dimension, fingerprint = "random", D, "random 1"  # type: ignore[assignment]  # class attributes

    def _extract(self, pictures: Sequence[Any]) -> Any:
        seeds = [int(picture.sum()) for picture in pictures]
        return np.stack([np.random.default_rng(s).normal(size=D).astype(np.float32) for s in seeds])


class InMemory(Made):
    """Pictures that are drawn when they are asked for."""

    def load(self, index: int, size: int) -> Any:
        return picture(index + 1)


def picture(seed: int) -> Any:
    return np.full((16, 16, 3), seed % 251, np.uint8)


def peak(folder: Path, num: int) -> int:
    """Most bytes held while so many pictures and references are scored, real against real too."""
    samples = [Sample(str(i), picture=partial(picture, i)) for i in range(num)]
    made = InMemory(folder, Task("documents", "pictures", samples, {}))
    metric, half = FIDConfig().build(), FIDConfig().build()
    tracemalloc.start()
    try:
        feed_features([metric], Seen(Random(), 16), made, halves=[half])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    few, many = peak(tmp_path, 512), peak(tmp_path, 2048)
    grown = (many - few) / (2048 - 512)
    assert grown < BOOKKEEPING < 4 * D, "features of a set would be 4 D bytes a picture"
    # two metrics of two sets: sums of D and of D x D numbers, float64; those of the last chunk beside them
    assert many < 2 * 2 * 8 * (D + D**2) + 3 * 8 * D**2 + 128 * 16 * 16 * 3 * 2 + 8e6
