"""Measure what real drawings and copies score by the metric `usable`, and write docs/figures/usable.json:
`python docs/_usable.py` (some minutes of one core, and as many again the first time, to read all real drawings).

No model takes part: these are the rows beside a model's in `cm3 eval MODEL icons-SPLIT-closed-v2`, of the same 200 cases.
The documents before each prompt are the three drawings that could be copied. `python docs/_generate.py` makes the table of
docs/evaluation.md of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.evaluation.shipped import find_protocol
from cm3apps.evaluation.tasks import open_task
from cm3apps.evaluation.tasks.base import Sample
from cm3core.document import PixelArray
from cm3core.interfaces.metric import Metric, MetricBatch
from cm3core.plugins import load_registry
from cm3icons.data.closed import JUDGED
from cm3icons.evaluation.usable_metric import UsableConfig
from cm3plugins.extractors.simple import PixelsExtractor
from cm3plugins.metrics.ranking import chance_among_first, distances

FILE = Path(__file__).parent / "figures" / "usable.json"
REAL = "real"


def rows_of(samples: Sequence[Sample]) -> dict[str, list[PixelArray]]:
    """Row -> a picture of each sample: the real ones, then what could be copied."""
    rows: dict[str, list[PixelArray]] = {REAL: []}
    for sample in samples:
        assert sample.picture is not None
        assert sample.baselines is not None
        rows[REAL].append(sample.picture())
        for name, load in sample.baselines().items():
            rows.setdefault(name, []).append(load())
    return rows


def among_nearest(
    pictures: Sequence[PixelArray], samples: Sequence[Sample], known: dict[str, Any]
) -> dict[str, float]:
    """R@5 of the true drawing, in percent, and its standard error: the judge by blurred pixels.

    `known`: name of a candidate -> its numbers, which are computed once.
    """
    look = PixelsExtractor(32, blur=True)
    chances = []
    for picture, sample in zip(pictures, samples, strict=True):
        assert sample.candidates is not None
        candidates = sample.candidates()
        for name, load in candidates:
            if name not in known:
                known[name] = look.extract([load()])[0]
        real_ND = np.stack([known[name] for name, _ in candidates])
        far_N = distances(look.extract([picture])[0], real_ND, centred=False)
        chances.append(100 * chance_among_first(far_N, 5))
    return {
        "value": float(np.mean(chances)),
        "spread": float(np.std(chances, ddof=1) / np.sqrt(len(chances))),
    }


def measured(
    split: str, watch: Callable[[str, Metric, Any], None] = lambda *_: None
) -> dict[str, Any]:
    """Row -> score -> value and standard error.

    Args:
        split: a closed split, or `missing`.
        watch: called with each row's name, its metric, and all rows' pictures.
    """
    task = find_protocol(f"icons-{split}-closed-v2").task
    opened = open_task(task, size=64, data=None, model=None, registry=load_registry())
    pictures = rows_of(opened.samples)
    copied = [own for name, own in pictures.items() if name != REAL]
    documents = [list(own) for own in zip(*copied, strict=True)]
    targets = [dict(sample.target) for sample in opened.samples]
    found: dict[str, Any] = {}
    known: dict[str, Any] = {}
    for name, own in pictures.items():
        metric = UsableConfig().build()
        columns = {"pictures": own, "targets": targets, "documents": documents}
        metric.update(MetricBatch(range(len(own)), columns))
        found[name] = {
            one.name: {"value": one.value, "spread": one.spread} for one in metric.result()
        }
        found[name]["r5"] = among_nearest(own, opened.samples, known)
        watch(name, metric, (opened, pictures))
    return found


if __name__ == "__main__":
    FILE.write_text(
        json.dumps({split: measured(split) for split in (*JUDGED, "missing")}, indent=1) + "\n",
        encoding="utf-8",
    )
    print(FILE)
