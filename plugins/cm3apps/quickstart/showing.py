"""The tasks that the quickstart gives the trained model, and how their results are measured.

Of each split it measures how probable the true pictures are, draws, and ranks what is drawn, all with
and without a document in front; then it captions and inpaints pictures that were trained on and
pictures that were not. `subjects.py` says what is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cm3apps.evaluation.icons.drawing import AskedPicture, draw, nats_of_codes
from cm3apps.evaluation.icons.experiment import mean_and_error
from cm3apps.evaluation.icons.report import write_sheet
from cm3apps.quickstart.pictures import Row, write_table
from cm3apps.quickstart.subjects import Subjects, subjects_of
from cm3core.document import PixelArray, text_of
from cm3run.model import Model
from cm3run.model.jobs import results

#: Pictures of each split that are measured and drawn, and how many of them are shown.
NUM_DRAWN = {"comp": 96, "compose": 96, "unseen": 96, "valid": 48, "train": 48}
NUM_SHOWN = 24
NUM_CAPTIONS = 48
NUM_CAPTIONS_SHOWN = 12
NUM_INPAINTED = 48
NUM_INPAINTED_SHOWN = 12
#: Least of each that is left of these numbers where time is short.
LEAST = 2
SEED = 1
_GREY = 160

Pictures: TypeAlias = Sequence[PixelArray] | PixelArray


def show(model: Model, out: Path, share: float = 1.0) -> dict[str, Any]:
    """Generate, caption and inpaint; write tables of pictures into `out`; return the measures.

    `share` is the fraction of the usual numbers of prompts and pictures, for a short run.
    """
    started = time.monotonic()
    subjects = subjects_of(model)
    asked = {
        split: own
        for split in subjects.splits
        if (number := _limited(NUM_DRAWN[split], share)) and (own := subjects.of(split, number))
    }
    drawn: dict[str, Any] = {
        "documents": subjects.documents,
        "splits": {},
        "captions": {},
        "repairs": {},
    }
    clock = _Clock()
    for split, own in asked.items():
        drawn["splits"][split] = _split(model, subjects, own, out / f"pictures-{split}.png", clock)
    cells = int(np.prod(model.components.image_tokenizer.grid))
    drawn["generation_tokens_per_second"] = clock.num_drawn * cells / max(clock.seconds, 1e-9)
    if model.components.serializer.max_spans:  # else it was never trained to fill anything
        for split in _two(list(asked)):
            some = asked[split][: _limited(NUM_CAPTIONS, share)]
            drawn["captions"][split] = _captions(model, some, subjects.documents)
            _caption_table(out / f"captions-{split}.png", model, some, drawn["captions"][split])
            some = asked[split][: _limited(NUM_INPAINTED, share)]
            pictures = _inpainted(model, some, subjects.documents)
            drawn["repairs"][split] = {
                name: subjects.ranks(some, made) for name, made in pictures.items()
            }
            drawn["repairs"][split]["num"] = len(some)
            _repair_table(out / f"inpainted-{split}.png", some, pictures)
    drawn["drawing_seconds"] = time.monotonic() - started
    return drawn


class _Clock:
    """Counts pictures drawn, and the seconds that it took."""

    def __init__(self) -> None:
        self.num_drawn, self.seconds = 0, 0.0

    def draw(self, draw_them: Callable[[], PixelArray]) -> PixelArray:
        before = time.monotonic()
        pictures = draw_them()
        self.seconds += time.monotonic() - before
        self.num_drawn += len(pictures)
        return pictures


def _limited(number: int, share: float) -> int:
    """A share of a number, at least `LEAST`.

    >>> _limited(100, 1.0), _limited(100, 0.45), _limited(48, 0.01), _limited(0, 0.01)
    (100, 45, 2, 0)
    """
    return max(min(number, LEAST), round(number * share))


def _two(splits: Sequence[str]) -> list[str]:
    """The first split of held-out documents, if there is one, and what was trained on."""
    held_out = [split for split in splits if split != "train"]
    return [*held_out[:1], *(split for split in splits if split == "train")]


def _split(
    model: Model, subjects: Subjects, asked: Sequence[AskedPicture], sheet: Path, clock: _Clock
) -> dict[str, Any]:
    """Everything measured of a split; writes its sheet."""
    conditions = ["none"] if subjects.documents is None else ["none", subjects.documents]
    nats = {one: nats_of_codes(model, asked, one) for one in conditions}
    pictures = {
        one: clock.draw(lambda one=one: draw(model, asked, one, SEED, {}))  # type: ignore[misc]  # mypy infers no lambda with a default
        for one in conditions
    }
    write_sheet(
        sheet,
        model,
        asked[:NUM_SHOWN],
        {one: made[:NUM_SHOWN] for one, made in pictures.items()},
    )
    figures: dict[str, Any] = {
        "num": len(asked),
        "nats": {one: mean_and_error(values) for one, values in nats.items()},
        "real": subjects.ranks(asked, [one.pixels(model.image_size) for one in asked]),
        "drawn": {one: subjects.ranks(asked, made) for one, made in pictures.items()},
    }
    if subjects.documents is not None:
        with_documents = np.subtract(nats["none"], nats[subjects.documents]).tolist()
        figures["gain"] = mean_and_error(with_documents)
        white = np.full((*model.image_size, 3), 255, np.uint8)
        copies = [one.front_pixels(subjects.documents, model) for one in asked]
        figures["copied"] = subjects.ranks(asked, [white if one is None else one for one in copies])
    return figures


def _by_hand(
    one: AskedPicture, condition: str | None, model: Model
) -> list[tuple[PixelArray, str]]:
    """The document in front, as `context` takes it."""
    if condition is None:
        return []
    pixels = one.front_pixels(condition, model)
    return [] if pixels is None else [(pixels, text_of(one.front(condition)[0]))]


def _captions(
    model: Model, asked: Sequence[AskedPicture], documents: str | None
) -> list[dict[str, str]]:
    """The true text, the written one, and that written after a document, of each picture."""
    shown = [one.pixels(model.image_size) for one in asked]
    found = [
        {"real": one.text, "written": text.text}
        for one, text in zip(asked, model.captions(shown, num_retrieved=0), strict=True)
    ]
    if documents is not None:
        jobs = [
            job
            for one, pixels in zip(asked, shown, strict=True)
            for job in model.caption_jobs(
                [pixels], num_retrieved=0, context=_by_hand(one, documents, model)
            )[0]
        ]
        for caption, text in zip(found, results(model.engine, jobs), strict=True):
            caption["with_document"] = text.text
    return found


def _caption_table(
    path: Path, model: Model, asked: Sequence[AskedPicture], captions: Sequence[dict[str, str]]
) -> None:
    """Pictures under their written and true captions."""
    rows: list[Row] = [
        (
            f"{caption['written']}   (real: {caption['real']})",
            [one.pixels(model.image_size), *([None] * 2)],
        )
        for caption, one in zip(captions, asked, strict=False)
    ]
    write_table(path, ["picture", "", ""], rows[:NUM_CAPTIONS_SHOWN], num_blocks=3)


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (x0, y0, x1, y1) that is cut out: a quarter of the picture, in its middle."""
    height, width = size
    return width // 4, height // 4, width * 3 // 4, height * 3 // 4


def _inpainted(
    model: Model, asked: Sequence[AskedPicture], documents: str | None
) -> dict[str, list[PixelArray]]:
    """Real pictures, with a box cut out of their middle, and with that box inpainted."""
    x0, y0, x1, y1 = box = _middle(model.image_size)
    real = [one.pixels(model.image_size) for one in asked]
    cut = [pixels.copy() for pixels in real]
    for pixels in cut:
        pixels[y0:y1, x0:x1] = _GREY
    pictures = {"real": real, "cut": cut}
    conditions = {"inpainted": None, "with_document": documents}
    for name, condition in conditions.items():
        if name == "inpainted" or documents is not None:
            jobs = [
                model.infill_job(
                    pixels, box, one.text, seed=SEED, truncate=True, num_retrieved=0,
                    context=_by_hand(one, condition, model),
                )[0]
                for one, pixels in zip(asked, real, strict=True)
            ]  # fmt: skip  # one argument a line is harder to read
            pictures[name] = [made.pixels for made in results(model.engine, jobs)]
    return pictures


def _repair_table(
    path: Path, asked: Sequence[AskedPicture], pictures: dict[str, list[PixelArray]]
) -> None:
    """Real, cut out, inpainted without and with a document."""
    names = {"real": "real", "cut": "cut out", "inpainted": "inpainted", "with_document": "with it"}
    rows: list[Row] = [
        (one.text, [made[place] for made in pictures.values()])
        for place, one in enumerate(asked[:NUM_INPAINTED_SHOWN])
    ]
    write_table(path, [names[name] for name in pictures], rows, num_blocks=3)
