"""What the quickstart measures of held-out documents, by `cm3 eval`: `evaluation/NAME` of its folder.

The data set says what is judged, and by which scores (`DocumentSourceConfig.judged`); of one that doesn't, every held-out
split, by what `cm3 eval MODEL FOLDER` tells of a folder (`own_folder`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.evaluation.evaluating import SHEET, Evaluation
from cm3apps.evaluation.made import Made
from cm3apps.evaluation.measured import shown_with
from cm3apps.evaluation.own_folder import num_groups, scores_beside
from cm3apps.evaluation.tasks import open_task
from cm3apps.evaluation.tasks.base import Task
from cm3core.document import PixelArray
from cm3core.errors import CM3Error
from cm3core.images import fit, save_png
from cm3core.interfaces.dataset import DocumentSourceConfig, Judged
from cm3run.evaluation.protocol import Protocol
from cm3run.model import Model
from cm3run.sheets import grid

#: Minimum of every number of pictures if time is short.
LEAST = 2
FOLDER = "evaluation"
#: Cases on a sheet, in so many columns, with so many documents, and the height of a picture.
_CASES, _BESIDE, _DOCUMENTS, _HEIGHT = 24, 2, 2, 64


def limited(number: int, share: float) -> int:
    """A share of a number, at least `LEAST`.

    >>> limited(100, 1.0), limited(100, 0.45), limited(48, 0.01)
    (100, 45, 2)
    """
    return max(min(number, LEAST), round(number * share))


def declared(config: DocumentSourceConfig) -> list[Judged]:
    """What a data set, or the one that it retrieves from, says of how to judge."""
    return config.judged() or config.memory_config().judged()


def judged_of(config: DocumentSourceConfig) -> list[Judged]:
    """What to judge; nothing if the training reads other documents than `train`, which may be of all."""
    if config.split != "train":
        return []
    others = ("train", "all", "near", "missing", "available")
    return declared(config) or [
        judged_split(config, split) for split in config.splits if split not in others
    ]


def judged_split(config: DocumentSourceConfig, split: str) -> Judged:
    """How pictures of a split are judged: as the data set says, of this split or else of its first one."""
    known = [one for one in declared(config) if one.makes == "pictures"]
    own = next((one for one in known if one.split == split), None)
    title = f"documents of `{split}`" if split == "train" else f"held-out documents (`{split}`)"
    if own is None and known:
        own = replace(known[0], name=split, title=title, split=split, memory_split=None)
    return own or Judged(split, title, split)


def splits_of(config: DocumentSourceConfig) -> tuple[str, ...]:
    """The held-out splits to judge, each once."""
    return tuple(dict.fromkeys(one.split for one in judged_of(config)))


def drawn_scores(
    config: DocumentSourceConfig, judged: Judged | None = None
) -> list[Mapping[str, Any]]:
    """The scores of pictures drawn of a data set's held-out documents. `judged`: of these; None: of any."""
    if judged is None:
        judged = judged_split(config, "")
    return [*judged.scores] or [*scores_beside(replace(config, split="train").build())]


def protocol_of(model: Model, judged: Judged, num: int) -> Protocol | None:
    """The protocol; None if the split has no document.

    Args:
        model: names the data set.
        judged: what is judged.
        num: documents to judge at most.
    """
    config, split = model.recipe.dataset, judged.split
    assert config is not None
    try:
        number = num_groups(replace(config, split=split).build())
    except CM3Error:
        return None
    if not number:
        return None
    task: dict[str, Any] = {"dataset": None, "split": split, "num": min(num, number)}
    if judged.makes == "captions":
        task |= {"name": "records", "task": "caption"}
    else:
        task |= {"name": "documents", "baselines": judged.copies or not judged.scores}
    title = f"held-out documents of the split {split}"
    scores = drawn_scores(config, judged)
    return Protocol(f"quickstart-{judged.name}", title, task, scores, size=max(model.image_size))


def retrieves(model: Model) -> bool:
    """Whether documents are prepended to the model's prompts."""
    config = model.recipe.retriever
    return config is not None and config.retrieves


def remembering(model: Model, judged: Judged) -> Model:
    """The model with the memory that is asked for: by default what it was trained on."""
    own, wanted = model.components.memory_split, judged.memory_split
    if not retrieves(model) or judged.num_retrieved == 0 or own == wanted:
        return model
    return model.with_memory(split=wanted or "train")


def judged(model: Model, out: Path, share: float = 1.0) -> dict[str, dict[str, Any]]:
    """Name -> the content of its scores.json. An interrupted evaluation resumes. Without a held-out document, what was
    trained is judged.

    Args:
        model: the trained model.
        out: the quickstart's folder.
        share: of the usual numbers of pictures, for a short run.
    """
    config = model.recipe.dataset
    assert config is not None
    found: dict[str, dict[str, Any]] = {}
    for one in possible(model, judged_of(config)):
        protocol = protocol_of(model, one, limited(one.num, share))
        if protocol is None:
            print(f"note: split {one.split!r} is skipped: it has no document", file=sys.stderr)
        else:
            found[one.name] = evaluated(remembering(model, one), protocol, out / FOLDER, one)
    if not found:
        one = judged_split(config, config.split)
        if (protocol := protocol_of(model, one, limited(one.num, share))) is not None:
            found[one.name] = evaluated(model, protocol, out / FOLDER, one, allow_leaks=True)
    return found


def possible(model: Model, judged: Sequence[Judged]) -> list[Judged]:
    """What a model can be asked for: without captions if it was never trained to fill gaps; and each split once if it
    retrieves nothing."""
    alone = {one.split for one in judged if one.num_retrieved == 0 and one.makes == "pictures"}
    fills = bool(model.components.serializer.max_spans)
    if not retrieves(model):
        judged = [one for one in judged if one.num_retrieved == 0 or one.split not in alone]
    return [one for one in judged if fills or one.makes != "captions"]


def evaluated(
    model: Model, protocol: Protocol, out: Path, judged: Judged, *, allow_leaks: bool = False
) -> dict[str, Any]:
    """The content of scores.json; the folder `out`/NAME has a sheet of cases with verdicts."""
    registry, folder = model.components.registry, out / judged.name
    task = open_task(protocol.task, size=protocol.size, data=None, model=model, registry=registry)
    number = judged.num_retrieved
    evaluation = Evaluation(
        protocol,
        task,
        registry,
        folder,
        model=model,
        options={} if number is None else {"num_retrieved": number},
        label="quickstart",
        allow_leaks=allow_leaks,
    )
    scores = evaluation.run()
    if not (folder / SHEET).exists():
        save_png(folder / SHEET, _sheet(folder, task, model, judged.headings))
    return scores


def verdict_of(scores: Mapping[str, float], headings: Mapping[str, str]) -> str:
    """What a sample's scores say of it, in a few words.

    >>> verdict_of({"whole": 0, "place": 0, "number": 100}, {"whole": "right", "place": "place", "number": "number"})
    'wrong: place'
    """
    first, *others = headings or [""]
    if first not in scores:
        return ""
    if scores[first] >= 100:
        return headings[first]
    wrong = [headings[name] for name in others if scores.get(name, 100) < 100]
    return ": ".join(["wrong", *([", ".join(wrong)] if wrong else [])])


def _sheet(folder: Path, task: Task, model: Model, headings: Mapping[str, str]) -> PixelArray:
    """The first cases, none selected: the prompt and the verdict; what was drawn, the documents before the prompt, and the
    real picture. Of captions: the picture, what was written, and the real caption."""
    lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()[:_CASES]
    samples = [json.loads(line) for line in lines]
    verdicts = [verdict_of(one.get("scores", {}), headings) for one in samples]
    rows: list[list[PixelArray | None]]
    if task.makes == "captions":
        own = task.samples[: len(samples)]
        rows = [[None if one.picture is None else one.picture()] for one in own]
        said = [
            f"{made['text']}\nreal: {one.references[0]}"
            for made, one in zip(samples, own, strict=True)
        ]
        labels = ["picture"]
    else:
        shown = shown_with(Made(folder, task), max(model.image_size), model)[: len(samples)]
        documents = [[*one.documents[:_DOCUMENTS]] for one in shown]
        most = max(map(len, documents), default=0)
        rows = [
            [one.drawn, *own, *[None] * (most - len(own)), one.real]
            for one, own in zip(shown, documents, strict=True)
        ]
        said = [one.prompt for one in shown]
        labels = ["drawn", *["document"] * most, "real"]
    texts = [
        f"{text}\n{verdict}" if verdict else text
        for text, verdict in zip(said, verdicts, strict=True)
    ]
    scale, per = max(1, _HEIGHT // max(model.image_size)), -(-len(rows) // _BESIDE)
    columns = [
        grid(
            [[None if p is None else fit(p, model.image_size) for p in row] for row in rows[part]],
            row_labels=texts[part],
            column_labels=labels,
            scale=scale,
            label_width=220,
            font_size=12,
        )
        for part in (slice(start, start + per) for start in range(0, len(rows), per))
    ]
    height = max(one.shape[0] for one in columns)
    padding = [((0, height - one.shape[0]), (0, 0), (0, 0)) for one in columns]
    padded = [
        np.pad(one, own, constant_values=255) for one, own in zip(columns, padding, strict=True)
    ]
    return np.concatenate(padded, axis=1)
