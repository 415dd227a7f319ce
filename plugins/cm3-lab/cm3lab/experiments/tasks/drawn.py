"""Tasks whose response is a picture: edits, drawing after edges and at boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image as Pillow

from cm3apps.evaluation.icons.drawing import reconstructed
from cm3apps.evaluation.icons.ranking import Judge, RealPictures
from cm3apps.evaluation.icons.style_classifier import StyleClassifier
from cm3core.document import PixelArray
from cm3core.images import fit
from cm3lab.experiments.tasks import asking
from cm3lab.experiments.tasks.records import chosen, records_of
from cm3lab.experiments.tasks.structures import edge_f1, ink_ious
from cm3plugins.datasets.icons import IconSourceConfig
from cm3plugins.datasets.icons.entries import IconEntry
from cm3run.model import Model
from cm3run.model.conditions import condition_config

#: One row of a sheet: the text above it, and its pictures.
Row = tuple[str, list[PixelArray | None]]
KS = (1, 5)


@dataclass
class Measured:
    """What was measured of a task in a split.

    Args:
        num: number of records.
        figures: what was looked at -> figure -> value.
        header, rows: of the sheet.
    """

    num: int
    figures: dict[str, dict[str, float]]
    header: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


@dataclass
class Setting:
    """What all measurements share.

    Args:
        model: the model.
        icons: config of the corpus.
        real: its pictures.
        judge: ranks the real picture among others of its set and style.
        style: names set and style.
        num, seed: see `TaskSettings`.
        keep: name, and what draws -> the pictures, drawn unless they are kept.
    """

    model: Model
    icons: IconSourceConfig
    real: RealPictures
    judge: Judge
    style: StyleClassifier
    num: int
    seed: int
    keep: Callable[[str, Callable[[], PixelArray]], PixelArray]

    @property
    def options(self) -> dict[str, Any]:
        """One sample each, none selected, nothing retrieved."""
        return {"num_images": 1, "num_candidates": 1, "num_retrieved": 0}

    def found(
        self, pictures: Sequence[PixelArray] | PixelArray, entries: Sequence[IconEntry]
    ) -> dict[str, float]:
        """R@1 and R@5."""
        chances = self.judge.chances(pictures, entries, KS)
        return {f"R@{k}": value for k, value in chances.items()}


def edit(setting: Setting, split: str) -> Measured:
    """Pairs of versions: is the target found, more often than by copying the source?"""
    model, source = setting.model, records_of(setting.icons, "edit", split)
    indices = chosen(source, setting.num, group=source.group)
    pairs = [source.pairs[index] for index in indices]
    entries = [source.entries[pair.target] for pair in pairs]
    given = [setting.real[pair.source] for pair in pairs]
    true = [setting.real[pair.target] for pair in pairs]
    calls = [
        partial(
            model.edit_jobs, picture, pair.instruction, seed=setting.seed + place, **setting.options
        )
        for place, (picture, pair) in enumerate(zip(given, pairs, strict=True))
    ]
    drawn = setting.keep(f"edit-{split}", lambda: asking.pictures(model, f"edit, {split}", calls))
    looked_at: dict[str, Any] = {
        "real": true,
        "reconstructed": reconstructed(model, true),
        "copied": given,
        "drawn": drawn,
    }
    styles = np.array([pair.instruction.startswith("make it") for pair in pairs])
    figures = {}
    for name, pictures in looked_at.items():
        figures[name] = {
            **setting.found(pictures, entries),
            "finish": setting.style.accuracy(pictures, entries)["finish"],
        }
        for kind, places in (("style", np.flatnonzero(styles)), ("badge", np.flatnonzero(~styles))):
            if len(places):
                own = setting.found(
                    [pictures[place] for place in places], [entries[place] for place in places]
                )
                figures[name][f"R@5, {kind}"] = own["R@5"]
    rows: list[Row] = [
        (f"{source.entries[pair.source].words}: {pair.instruction}", list(tiles))
        for pair, *tiles in zip(pairs, given, true, drawn, strict=True)
    ]
    return Measured(len(pairs), figures, ["given", "asked for", "drawn"], rows)


def edges(setting: Setting, split: str) -> Measured:
    """A caption and the edges of its picture: does what is drawn have these edges?"""
    model = setting.model
    condition = condition_config(model, "edges").build()
    entries, captions, true = _icons(setting, split)
    conditions = [condition.draw(picture) for picture in true]
    calls = [
        partial(
            model.image_jobs,
            caption,
            condition=("edges", picture),
            seed=setting.seed + place,
            **setting.options,
        )
        for place, (caption, picture) in enumerate(zip(captions, true, strict=True))
    ]
    alone = [
        partial(model.image_jobs, caption, seed=setting.seed + place, **setting.options)
        for place, caption in enumerate(captions)
    ]
    drawn = setting.keep(f"edges-{split}", lambda: asking.pictures(model, f"edges, {split}", calls))
    without = setting.keep(
        f"edges-{split}-text", lambda: asking.pictures(model, f"text alone, {split}", alone)
    )
    looked_at: dict[str, Any] = {
        "real": true,
        "reconstructed": reconstructed(model, true),
        "text": without,
        "drawn": drawn,
    }
    figures = {
        name: {
            "edge F1": float(
                np.mean(
                    [
                        edge_f1(_black(condition.draw(picture)), _black(wanted))
                        for picture, wanted in zip(pictures, conditions, strict=True)
                    ]
                )
            ),
            **setting.found(pictures, entries),
        }
        for name, pictures in looked_at.items()
    }
    rows: list[Row] = [
        (caption, list(tiles))
        for caption, *tiles in zip(captions, conditions, true, drawn, without, strict=True)
    ]
    return Measured(len(true), figures, ["edges", "real", "drawn", "text alone"], rows)


def boxes(setting: Setting, split: str) -> Measured:
    """Scenes, their boxes given as a picture (condition `boxes`)."""

    def calls(source: Any, indices: Sequence[int]) -> list[Callable[[], asking.Made]]:
        records = [source.record(index) for index in indices]
        return [
            partial(
                setting.model.image_jobs,
                record["caption"],
                condition=("boxes", record["objects"].text),
                seed=setting.seed + place,
                **setting.options,
            )
            for place, record in enumerate(records)
        ]

    return _scenes(setting, split, "boxes", calls)


def place(setting: Setting, split: str) -> Measured:
    """Scenes, their boxes given as a text (task `object_to_image`)."""

    def calls(source: Any, indices: Sequence[int]) -> list[Callable[[], asking.Made]]:
        records = [source.record(index) for index in indices]
        return [
            partial(
                setting.model.task_jobs,
                "object_to_image",
                {"caption": record["caption"], "objects": record["objects"].text},
                record["caption"],
                seed=setting.seed + number,
                **setting.options,
            )
            for number, record in enumerate(records)
        ]

    return _scenes(setting, split, "place", calls)


def _scenes(
    setting: Setting,
    split: str,
    name: str,
    calls: Callable[[Any, Sequence[int]], list[Callable[[], asking.Made]]],
) -> Measured:
    """How well the ink of what is drawn fills the boxes, and whether each icon is found in its box."""
    model, source = setting.model, records_of(setting.icons, "scene", split)
    indices = chosen(source, setting.num)
    scenes = [source.placed(index) for index in indices]
    true = [fit(source.scene_picture(index).load(), model.image_size) for index in indices]
    drawn = setting.keep(
        f"{name}-{split}",
        lambda: asking.pictures(model, f"{name}, {split}", calls(source, indices)),
    )
    looked_at: dict[str, Any] = {
        "real": true,
        "reconstructed": reconstructed(model, true),
        "another": [*true[1:], true[0]],
        "drawn": drawn,
    }
    scale = model.image_size[0] / setting.icons.image_size
    frames = [
        [tuple(round(value * scale) for value in one.box) for one in placed] for placed in scenes
    ]
    entries = [source.entries[one.icon] for placed in scenes for one in placed]
    figures = {}
    for what, pictures in looked_at.items():
        ious = [
            value
            for picture, wanted, own in zip(pictures, true, frames, strict=True)
            for value in ink_ious(picture, wanted, own)
        ]
        crops = [
            _cropped(picture, frame, model.image_size)
            for picture, own in zip(pictures, frames, strict=True)
            for frame in own
        ]
        figures[what] = {"IoU": float(np.mean(ious)), **setting.found(crops, entries)}
    rows: list[Row] = [
        (source.record(index)["caption"], [wanted, picture])
        for index, wanted, picture in zip(indices, true, drawn, strict=True)
    ]
    return Measured(len(indices), figures, ["asked for", "drawn"], rows)


def _icons(setting: Setting, split: str) -> tuple[list[IconEntry], list[str], list[PixelArray]]:
    """Icons of different things: entries, canonical captions, pictures."""
    source = setting.model.components.memory_of_split(split)
    indices = chosen(source, setting.num, group=source.group)
    entries = [source.entry(index) for index in indices]  # type: ignore[attr-defined]  # of icons
    captions = [str(source.record(index)["caption"]) for index in indices]
    corpus = setting.real.corpus
    return entries, captions, [setting.real[corpus.index(entry.id)] for entry in entries]


def _black(pixels: PixelArray) -> Any:
    return pixels[..., 0] < 128


def _cropped(picture: PixelArray, frame: tuple[int, ...], size: tuple[int, int]) -> PixelArray:
    x0, y0, x1, y1 = frame
    crop = Pillow.fromarray(np.asarray(picture)[y0:y1, x0:x1])
    return np.asarray(crop.resize((size[1], size[0]), Pillow.Resampling.LANCZOS)).copy()
