"""The tasks that the quickstart gives the trained model, and how their results are measured.

The tasks are generating, captioning and inpainting. Pictures are measured by `judging`, and by nats
a code of the real ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.experiments.icons.drawing import nats_of_codes
from cm3apps.experiments.judging import Judging, reconstructed
from cm3apps.quickstart.asked import (
    NUM_JUDGED,
    NUM_SHOWN,
    Asked,
    asked_of,
    copies,
    limited,
    number_retrieved,
)
from cm3apps.quickstart.pictures import Row, write_table
from cm3core.document import Codes, ImageHole, PixelArray, Text
from cm3core.model import Model
from cm3core.progress import make_bar

NUM_CAPTIONS = 24
NUM_CAPTIONS_SHOWN = 12
NUM_INFILLED = 48
NUM_INFILLED_SHOWN = 8
BATCH = 50
#: The pictures that are captioned and inpainted.
SUBJECTS = {"held_out": "held-out pictures", "trained": "training pictures"}


def show(model: Model, out: Path, share: float = 1.0) -> dict[str, Any]:
    """Generate, caption and inpaint; write tables of pictures into `out`; return the measures.

    `share` is the fraction of the usual numbers of prompts and pictures, for a short run.
    """
    started = time.monotonic()
    retrieves = model.components.retriever is not None and number_retrieved(model) > 0
    drawn: dict[str, Any] = {"splits": {}, "captions": {}, "repairs": {}, "retrieves": retrieves}
    judging = Judging(model)
    asked = {split: own for split in NUM_JUDGED if (own := asked_of(model, split, share))}
    tokens, seconds = 0, 0.0
    for split, own in asked.items():
        before = time.monotonic()
        pictures = {"without": _pictures(model, own, "without", f"{split}, nothing prepended")}
        if retrieves:
            pictures["with"] = _pictures(model, own, "with", f"{split}, a document prepended")
        seconds += time.monotonic() - before
        tokens += sum(map(len, pictures.values())) * int(
            np.prod(model.components.image_tokenizer.grid)
        )
        shown = {"ceiling": reconstructed(model, own), **pictures}
        if retrieves:
            shown["copy"] = copies(model, own)
        drawn["splits"][split] = {
            "num_prompts": len(own),
            "prompt": own[0].text,
            **{f"nats_{name}": _nats(model, own, name) for name in pictures},
            **judging.scores(own, shown),
        }
        _table(out / f"pictures-{split}.png", own[: NUM_SHOWN[split]], pictures)
    drawn["generation_tokens_per_second"] = tokens / max(seconds, 1e-9)
    held_out = next((asked[split] for split in ("comp", "valid", "unseen") if split in asked), None)
    subjects = {
        name: own for name, own in (("held_out", held_out), ("trained", asked.get("train"))) if own
    }
    if model.components.serializer.max_spans:  # else it was never trained to fill anything
        _fill(model, out, subjects, share, judging, drawn)
    drawn["drawing_seconds"] = time.monotonic() - started
    return drawn


def _fill(
    model: Model,
    out: Path,
    subjects: dict[str, list[Asked]],
    share: float,
    judging: Judging,
    drawn: dict[str, Any],
) -> None:
    """Caption and inpaint the subjects; adds to `drawn`."""
    drawn["captions"] = {
        name: _captions(model, own[: limited(NUM_CAPTIONS, share)])
        for name, own in subjects.items()
    }
    _caption_table(
        out / "captions.png",
        next(iter(subjects.values())),
        next(iter(drawn["captions"].values())),
    )
    few = {name: own[: limited(NUM_INFILLED, share)] for name, own in subjects.items()}
    repaired = {name: _repaired(model, own, name) for name, own in few.items()}
    _repair_table(out / "infilled.png", few, repaired)
    drawn["repairs"] = {
        name: judging.scores(own, {"ceiling": reconstructed(model, own), **repaired[name]})
        for name, own in few.items()
    }


def _nats(model: Model, asked: Sequence[Asked], condition: str) -> float:
    """Nats a code of the real pictures, the mean."""
    return float(np.mean(nats_of_codes(model, asked, condition)))


def _pictures(model: Model, asked: Sequence[Asked], condition: str, what: str) -> list[PixelArray]:
    """A picture for each prompt, uint8 [H, W, 3]."""
    pixels: list[PixelArray] = []
    with make_bar(desc=f"  {what}", total=len(asked), unit="picture", file=sys.stderr) as bar:
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            completions = model.complete(
                [(Text(one.text), ImageHole()) for one in part],
                retrieved=[one.front(condition) for one in part],
                seed=1,
                truncate=True,
            )
            codes = [
                segment
                for completion in completions
                for segment in completion.document
                if isinstance(segment, Codes)
            ]
            pixels += model.decode(codes)
            bar.update(len(part))
    return pixels


def _table(path: Path, asked: Sequence[Asked], pictures: dict[str, list[PixelArray]]) -> None:
    """Prompt, then: real, the prepended document and the picture with it, the picture without."""
    retrieved = "with" in pictures
    header = [
        "real",
        *(["retrieved", "with it"] if retrieved else []),
        "without" if retrieved else "generated",
    ]
    rows: list[Row] = []
    for place, one in enumerate(asked):
        front = one.copied(one.pixels.shape[:2])
        tiles: list[PixelArray | None] = [one.pixels]
        if retrieved:
            tiles += [front, pictures["with"][place]]
        rows.append((one.text, [*tiles, pictures["without"][place]]))
    write_table(path, header, rows)


def _captions(model: Model, subjects: Sequence[Asked]) -> list[dict[str, str]]:
    """Caption pictures: the true text and the written one of each."""
    # documents are retrieved by the picture
    written = model.captions([one.pixels for one in subjects])
    return [
        {"real": one.text, "written": text.text}
        for one, text in zip(subjects, written, strict=True)
    ]


def num_named(captions: Sequence[dict[str, str]]) -> int:
    """The number of captions that name the right thing.

    They contain the true text up to its first comma, as whole words.

    >>> num_named([{"real": "duck, noto style", "written": "a duck in twemoji style"}, {"real": "owl", "written": "a bowl"}])
    1
    """
    return sum(
        f" {_words(caption['real'].split(',')[0])} " in f" {_words(caption['written'])} "
        for caption in captions
    )


def _words(text: str) -> str:
    """Lower-case words with one blank between them."""
    return " ".join("".join(char if char.isalnum() else " " for char in text.lower()).split())


def _caption_table(
    path: Path, subjects: Sequence[Asked], captions: Sequence[dict[str, str]]
) -> None:
    """Pictures under their written and true captions."""
    rows: list[Row] = [
        (f"{caption['written']}   (real: {caption['real']})", [one.pixels, *([None] * 2)])
        for caption, one in zip(captions, subjects, strict=False)
    ]
    write_table(path, ["picture", "", ""], rows[:NUM_CAPTIONS_SHOWN], num_blocks=3)


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (x0, y0, x1, y1) that is cut out: a quarter of the picture, in its middle."""
    height, width = size
    return width // 4, height // 4, width * 3 // 4, height * 3 // 4


def _repaired(model: Model, subjects: Sequence[Asked], name: str) -> dict[str, list[PixelArray]]:
    """Pictures with a box cut out of their middle, and with that box inpainted."""
    x0, y0, x1, y1 = box = _middle(model.image_size)
    pictures: dict[str, list[PixelArray]] = {"cut": [], "repaired": []}
    for one in make_bar(
        subjects, desc=f"  inpainting, {SUBJECTS[name]}", unit="picture", file=sys.stderr
    ):
        cut = one.pixels.copy()
        cut[y0:y1, x0:x1] = 160
        pictures["cut"].append(cut)
        pictures["repaired"].append(
            model.infill(one.pixels, box, one.text, seed=1, truncate=True, num_retrieved=0).pixels
        )
    return pictures


def _repair_table(
    path: Path, subjects: dict[str, list[Asked]], repaired: dict[str, dict[str, list[PixelArray]]]
) -> None:
    """Real, cut out, inpainted; trained pictures first."""
    rows: list[Row] = []
    for name in sorted(subjects, reverse=True):
        triples = zip(
            subjects[name], repaired[name]["cut"], repaired[name]["repaired"], strict=False
        )
        own: list[Row] = [
            (f"{one.text} ({SUBJECTS[name]})", [one.pixels, cut, whole])
            for one, cut, whole in triples
        ]
        rows += own[: NUM_INFILLED_SHOWN // len(subjects)]
    write_table(path, ["real", "cut out", "inpainted"], rows, num_blocks=2)
