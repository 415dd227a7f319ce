"""What the quickstart measures on held-out pictures, by `cm3 eval`: `evaluation/SPLIT` of its folder.

For icons without colour: `usable` (the asked thing, in the asked hand, and no copy), with real drawings and copies beside.
For other data: what `cm3 eval MODEL FOLDER` tells of a folder (`own_folder`).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cm3apps.evaluation.evaluating import SHEET, Evaluation
from cm3apps.evaluation.made import Made
from cm3apps.evaluation.own_folder import num_groups, scores_beside
from cm3apps.evaluation.tasks import open_task
from cm3core.document import PixelArray
from cm3core.errors import CM3Error
from cm3core.images import save_png
from cm3core.interfaces import DocumentSourceConfig
from cm3plugins.datasets.icons import IconSourceConfig
from cm3run.evaluation.protocol import Protocol
from cm3run.model import Model
from cm3run.sheets import grid

#: Splits of icons, most useful first, and the number of pictures of each split.
ICON_SPLITS = ("restyle", "variant", "missing", "unseen")
NUM_JUDGED = 48
#: Minimum of every number of pictures if time is short.
LEAST = 2
FOLDER = "evaluation"
#: Cases side by side on a sheet.
_BESIDE = 6


def limited(number: int, share: float) -> int:
    """A share of a number, at least `LEAST`.

    >>> limited(100, 1.0), limited(100, 0.45), limited(48, 0.01)
    (100, 45, 2)
    """
    return max(min(number, LEAST), round(number * share))


def are_judged(config: DocumentSourceConfig) -> bool:
    """Whether the judge of icons knows what a data set has: icons without colour, held out by closed splits."""
    own = config.memory_config()
    return (
        isinstance(own, IconSourceConfig) and own.held_out == "closed" and "-colour" in own.styles
    )


def splits_of(config: DocumentSourceConfig) -> tuple[str, ...]:
    """The held-out splits to judge; none if the training reads other documents than `train`, which may be of all."""
    if config.split != "train":
        return ()
    if are_judged(config):
        return ICON_SPLITS
    others = ("train", "all", "near", "missing", "available")
    return tuple(split for split in config.splits if split not in others)


def drawn_scores(config: DocumentSourceConfig) -> list[dict[str, Any]]:
    """The scores of pictures drawn of a data set's held-out documents."""
    if not are_judged(config):
        return scores_beside(replace(config, split="train").build())
    own = config.memory_config()
    assert isinstance(own, IconSourceConfig)
    return [{"metric": {"name": "usable", "sets": list(own.sets)}}]


def protocol_of(model: Model, split: str, num: int, *, nats: bool = True) -> Protocol | None:
    """The protocol of a split; None if it has no document.

    Args:
        model: names the data set.
        split: of the data set.
        num: pictures to draw at most.
        nats: whether the loss of icons is measured, too.
    """
    config = model.recipe.dataset
    assert config is not None
    try:
        number = num_groups(replace(config, split=split).build())
    except CM3Error:
        return None
    if not number:
        return None
    scores = drawn_scores(config)
    if nats and are_judged(config):
        scores.append({"metric": {"name": "nats", "modality": "image"}})
    task = {
        "name": "documents",
        "dataset": None,
        "split": split,
        "num": min(num, number),
        "baselines": True,
    }
    title = f"held-out documents of the split {split}"
    return Protocol(f"quickstart-{split}", title, task, scores, size=max(model.image_size))


def remembering(model: Model, split: str) -> Model:
    """The model with the memory that a split is drawn from: what it was trained on; for `missing`, what else the sets have is
    available, too."""
    if split == "missing":
        return model.with_memory(split="available")
    return model if model.components.memory_split is None else model.with_memory(split="train")


def judged(model: Model, out: Path, share: float = 1.0) -> dict[str, dict[str, Any]]:
    """Split -> the content of its scores.json. An interrupted evaluation resumes. Without a held-out document, what was
    trained is judged.

    Args:
        model: the trained model.
        out: the quickstart's folder.
        share: of the usual numbers of pictures, for a short run.
    """
    config = model.recipe.dataset
    assert config is not None
    found: dict[str, dict[str, Any]] = {}
    num = limited(NUM_JUDGED, share)
    for split in splits_of(config):
        protocol = protocol_of(model, split, num)
        if protocol is None:
            print(f"note: split {split!r} is skipped: it has no document", file=sys.stderr)
        else:
            found[split] = evaluated(remembering(model, split), protocol, out / FOLDER / split)
    if not found and (protocol := protocol_of(model, config.split, num)) is not None:
        folder = out / FOLDER / config.split
        found[config.split] = evaluated(model, protocol, folder, allow_leaks=True)
    return found


def evaluated(
    model: Model, protocol: Protocol, folder: Path, *, allow_leaks: bool = False
) -> dict[str, Any]:
    """The content of scores.json; the folder has a sheet of all cases, with verdicts if icons are judged."""
    registry = model.components.registry
    task = open_task(protocol.task, size=protocol.size, data=None, model=model, registry=registry)
    evaluation = Evaluation(
        protocol,
        task,
        registry,
        folder,
        model=model,
        label="quickstart",
        allow_leaks=allow_leaks,
    )
    scores = evaluation.run()
    if not (folder / SHEET).exists():
        save_png(folder / SHEET, _sheet(Made(folder, task), max(model.image_size)))
    return scores


def _sheet(made: Made, size: int) -> PixelArray:
    """What was drawn, and the real picture, of each sample."""
    cells: list[list[PixelArray | None]] = []
    captions: list[list[str]] = []
    for start in range(0, len(made.task.samples), _BESIDE):
        row: list[PixelArray | None] = []
        below: list[str] = []
        for place, sample in enumerate(made.task.samples[start : start + _BESIDE], start):
            row += [made.load(place, size), None if sample.picture is None else sample.picture()]
            below += [sample.prompt, "real"]
        cells.append(row)
        captions.append(below)
    return grid(cells, captions=captions, scale=1, font_size=9)
