"""Tasks whose response is a picture: edits, generation from edges and boxes, enlarging.

Each has its own measure of faithfulness to the input: F1 of edges, IoU of the ink in boxes, PSNR. Legend: H, W of a
picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3apps.evaluation.icons.drawing import reconstructed
from cm3apps.evaluation.icons.ranking import Judge, RealPictures
from cm3apps.evaluation.icons.style_classifier import StyleClassifier
from cm3core.document import PixelArray
from cm3core.images import fit
from cm3lab.experiments.tasks import asking
from cm3lab.experiments.tasks.asking import chosen, records_of
from cm3plugins.datasets.icon_tasks.source import halved
from cm3plugins.datasets.icons import IconSourceConfig
from cm3plugins.datasets.icons.corpus import IconEntry
from cm3plugins.upscalers import EDSRConfig
from cm3run.evaluation.quality import psnr_per_picture
from cm3run.model import Model
from cm3run.model.conditions import condition_config

Bools = NDArray[np.bool_]
#: Maximum distance of matching edges in pixels.
TOLERANCE = 1
#: Minimum difference from white, of 255, of ink.
_INK = 48


def edge_f1(found_HW: Bools, wanted_HW: Bools, tolerance: int = TOLERANCE) -> float:
    """Return the F1 of the found edges: an edge is right if a wanted one is at most `tolerance` pixels away, and a wanted
    one is found if an edge is as near (as in the BSDS boundary benchmark, without matching).

    >>> one = np.eye(8, dtype=bool)
    >>> edge_f1(one, np.roll(one, 1, axis=1)), edge_f1(one, ~np.ones((8, 8), bool))
    (1.0, 0.0)
    """
    if not found_HW.any() or not wanted_HW.any():
        return float(found_HW.any() == wanted_HW.any())
    precision = float(widened(wanted_HW, tolerance)[found_HW].mean())
    recall = float(widened(found_HW, tolerance)[wanted_HW].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def widened(mask_HW: Bools, by: int) -> Bools:
    """Return the mask and all pixels at most `by` rows and columns away."""
    height, width = mask_HW.shape
    padded = np.pad(mask_HW, by)
    steps = range(2 * by + 1)
    parts = [padded[y : y + height, x : x + width] for y in steps for x in steps]
    whole: Bools = np.logical_or.reduce(parts)
    return whole


def ink(pixels: PixelArray) -> Bools:
    """Return where a picture on white has ink, bool [H, W]."""
    marks: Bools = (255 - pixels.astype(np.int16)).max(2) > _INK
    return marks


def frame_of(mask_HW: Bools) -> tuple[int, int, int, int] | None:
    """Return the smallest box (x0, y0, x1, y1), half open, around True values; None if there are none."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def iou(one: Sequence[float] | None, other: Sequence[float] | None) -> float:
    """Return the intersection over union of two boxes (x0, y0, x1, y1); 0 if one is missing.

    >>> iou((0, 0, 2, 2), (1, 0, 3, 2)), iou(None, (0, 0, 1, 1))
    (0.3333333333333333, 0.0)
    """
    if one is None or other is None:
        return 0.0
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return float(shared / (areas - shared)) if areas > shared else 0.0


def ink_ious(
    picture: PixelArray, true: PixelArray, frames: Sequence[tuple[int, int, int, int]]
) -> list[float]:
    """Return, for each frame of a scene, the IoU of the ink's box, in the quarter of the picture with the frame, with
    that of the true picture."""
    half_y, half_x = picture.shape[0] // 2, picture.shape[1] // 2
    found = []
    for x0, y0, x1, y1 in frames:
        rows = slice(0, half_y) if y0 + y1 < 2 * half_y else slice(half_y, None)
        columns = slice(0, half_x) if x0 + x1 < 2 * half_x else slice(half_x, None)
        quarter = np.s_[rows, columns]
        found.append(iou(frame_of(ink(picture)[quarter]), frame_of(ink(true)[quarter])))
    return found


#: One row of a sheet: the text above it, and its pictures.
Row = tuple[str, list[PixelArray | None]]
KS = (1, 5)


@dataclass
class Measured:
    """Results of a task in a split.

    Args:
        num: number of records.
        figures: name of the measured pictures or texts -> figure -> value.
        header, rows: header and rows of the sheet.
    """

    num: int
    figures: dict[str, dict[str, float]]
    header: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


@dataclass
class Setting:
    """Settings shared by all measurements.

    Args:
        model: the model.
        icons: config of the corpus.
        real: its pictures.
        judge: ranks the real picture among others in its set and style.
        style: classifier of set and style.
        num, seed: see `TaskSettings`.
        keep: (name, function that generates) -> the pictures, generated unless stored.
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
        """Generation options: one sample each, no selection, nothing retrieved."""
        return {"num_images": 1, "num_candidates": 1, "num_retrieved": 0}

    def found(
        self, pictures: Sequence[PixelArray] | PixelArray, entries: Sequence[IconEntry]
    ) -> dict[str, float]:
        """Return R@1 and R@5."""
        chances = self.judge.chances(pictures, entries, KS)
        return {f"R@{k}": value for k, value in chances.items()}


def edit(setting: Setting, split: str) -> Measured:
    """Measure pairs of versions: is the target found, more often than by copying the source?"""
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
    """Measure captions with the edges of their picture: does the generated picture have these edges?"""
    model = setting.model
    condition = condition_config(model, "edges").build()
    entries, captions, true = _icons(setting, split)
    conditions = [condition.draw(picture) for picture in true]
    calls = [
        partial(
            model.image_jobs,
            caption,
            condition=("edges", picture),
            force=True,  # what codes keep of it is part of what is measured
            seed=setting.seed + place,
            **setting.options,
        )
        for place, (caption, picture) in enumerate(zip(captions, true, strict=True))
    ]
    alone = [
        partial(model.image_jobs, caption, seed=setting.seed + place, draw=True, **setting.options)
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
    """Measure scenes with boxes given as a picture (condition `boxes`)."""

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
    """Measure scenes with boxes given as a text (task `object_to_image`)."""

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
    """Measure how well the generated ink fills the boxes, and whether each icon is found in its box."""
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
    """Return icons of different objects: entries, canonical captions, pictures."""
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


def enlarge(setting: Setting, split: str) -> Measured:
    """Measure pictures of half the side: how near is the generated picture to the real one, and is the real one found?"""
    model, size = setting.model, setting.model.image_size
    source = records_of(setting.icons, "super_resolution", split)
    indices = chosen(source, setting.num, group=source.group)
    places = [source.icons_in_split[index] for index in indices]
    entries = [source.entries[place] for place in places]
    true = [setting.real[place] for place in places]
    small = [halved(picture) for picture in true]
    given = [fit(picture, size) for picture in small]
    calls = [
        partial(
            model.task_jobs,
            "super_resolution",
            {"source": picture},
            entry.words,
            seed=setting.seed + number,
            **setting.options,
        )
        for number, (picture, entry) in enumerate(zip(given, entries, strict=True))
    ]
    drawn = setting.keep(
        f"enlarge-{split}", lambda: asking.pictures(model, f"enlarge, {split}", calls)
    )
    network = EDSRConfig().build()
    looked_at: dict[str, list[PixelArray]] = {
        "reconstructed": list(reconstructed(model, true)),
        "enlarged": given,
        "edsr": [fit(network.upscale(picture), size) for picture in small],
        "drawn": list(drawn),
    }
    figures = {"real": setting.found(true, entries)}
    for name, pictures in looked_at.items():
        figures[name] = {"PSNR": psnr(pictures, true), **setting.found(pictures, entries)}
    rows: list[Row] = [
        (entry.words, [*tiles])
        for entry, *tiles in zip(
            entries, given, true, looked_at["edsr"], looked_at["drawn"], strict=True
        )
    ]
    return Measured(len(indices), figures, ["given", "real", "EDSR", "drawn"], rows)


def psnr(pictures: list[PixelArray], true: list[PixelArray]) -> float:
    """Return the mean PSNR over pictures, in dB."""
    return float(psnr_per_picture(np.stack(pictures), np.stack(true)).mean())
