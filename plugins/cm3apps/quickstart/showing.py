"""What the quickstart shows besides scores: answers to prompts, captions, and inpainted pictures.

The documents are the first of each split by a hash of their ids; nothing is selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.evaluation.tasks.documents import order
from cm3apps.quickstart.judged import judged_of, limited, splits_of
from cm3apps.quickstart.pictures import Row, write_table
from cm3core.document import Document, Image, PixelArray, text_of
from cm3core.errors import CM3Error
from cm3core.images import fit, save_png
from cm3run.model import Model
from cm3run.model.jobs import results
from cm3run.model.results import GeneratedImage
from cm3run.sheets import grid

#: Prompts of each split for the three answers; captions and inpainted pictures, and how many are shown.
NUM_ANSWERS = 4
NUM_READ, NUM_SHOWN = 48, 12
SEED = 1
_GREY = 160


@dataclass(frozen=True)
class Shown:
    """A document that is shown.

    Args:
        text: its caption.
        pixels: its picture at the model's size, uint8 [H, W, 3].
    """

    text: str
    pixels: PixelArray


def shown_of(model: Model, split: str, number: int) -> list[Shown]:
    """At most `number` documents of a split, one of each group; none if the split does not exist."""
    config = model.recipe.dataset
    assert config is not None
    try:
        source = replace(config, split=split).build()
    except CM3Error:
        return []
    chosen: dict[str, Shown] = {}
    for index in sorted(range(len(source)), key=lambda index: order(source.id(index))):
        if len(chosen) == number:
            break
        found = _shown(model, source.document(index))
        if found is not None:
            chosen.setdefault(source.group(index) or source.id(index), found)
    return list(chosen.values())


def _shown(model: Model, document: Document) -> Shown | None:
    pictures = [segment for segment in document if isinstance(segment, Image)]
    if not pictures or not text_of(document):
        return None
    return Shown(text_of(document), fit(pictures[0].load(), model.image_size))


def show(model: Model, out: Path, share: float = 1.0) -> dict[str, Any]:
    """Answer prompts, caption (unless captions are judged) and inpaint; write sheets into `out`; return what is told of them.

    Args:
        model: the trained model.
        out: the quickstart's folder.
        share: of the usual numbers of pictures, for a short run.
    """
    config = model.recipe.dataset
    assert config is not None
    found: dict[str, Any] = {"answers": [], "captions": {}, "repairs": {}}
    prompts = {
        split: shown_of(model, split, limited(NUM_ANSWERS, share)) for split in _prompted(model)
    }
    asked = [one.text for own in prompts.values() for one in own]
    if asked:
        pictures = model.generate(asked, 1, seed=SEED, force=True)
        save_png(out / "answers.png", _answer_sheet(model, pictures))
        found["answers"] = [
            {"prompt": one.prompt, "told": one.told, "kind": one.answer and one.answer.kind}
            for one in pictures
        ]
    if not model.components.serializer.max_spans:  # it was never trained to fill gaps
        return found
    are_captioned = any(one.makes == "captions" for one in judged_of(config))
    for split in dict.fromkeys([*splits_of(config)[:1], config.split]):
        some = shown_of(model, split, limited(NUM_READ, share))
        if not some:
            continue
        if not are_captioned:
            captions = model.captions([one.pixels for one in some], num_retrieved=0)
            found["captions"][split] = [
                {"real": one.text, "written": text.text}
                for one, text in zip(some, captions, strict=True)
            ]
            _caption_table(out / f"captions-{split}.png", some, found["captions"][split])
        if model.components.serializer.form.is_sequence:  # without places to cut out
            continue
        pictures_of = _inpainted(model, some)
        found["repairs"][split] = {"num": len(some), **_errors(model, pictures_of)}
        _repair_table(out / f"inpainted-{split}.png", some, pictures_of)
    return found


def _prompted(model: Model) -> tuple[str, ...]:
    """The splits whose captions are prompts: for icons, things of the memory, things of other hands, and neither."""
    config = model.recipe.dataset
    assert config is not None
    composed = ("compose",) if "compose" in config.splits else ()
    return tuple(dict.fromkeys([config.split, *splits_of(config)[:1], *composed]))


def _answer_sheet(model: Model, pictures: Sequence[GeneratedImage]) -> PixelArray:
    """Each picture with the documents before it, and what is told of it."""
    rows: list[list[PixelArray | None]] = []
    for one in pictures:
        before = [] if one.original is not None else [doc.pixels for doc in one.retrieved[:2]]
        documents = [None if own is None else fit(own, model.image_size) for own in before]
        rows.append([fit(one.pixels, model.image_size), *documents])
    return grid(
        rows,
        row_labels=[f"{one.prompt!r}: {one.told or 'drawn'}" for one in pictures],
        column_labels=["answer", "document", "document"],
        label_width=420,
    )


def num_named(captions: Sequence[Mapping[str, str]], key: str = "written") -> int:
    """The number of captions that name the right object, that is, contain the real text up to its first comma
    as whole words.

    >>> num_named([{"real": "duck, noto style", "written": "a duck in twemoji style"}, {"real": "owl", "written": "a bowl"}])
    1
    """
    return sum(
        f" {_words(caption['real'].split(',')[0])} " in f" {_words(caption[key])} "
        for caption in captions
    )


def _words(text: str) -> str:
    """The words of a text in lower case, separated by single blanks."""
    return " ".join("".join(char if char.isalnum() else " " for char in text.lower()).split())


def _caption_table(path: Path, shown: Sequence[Shown], captions: Sequence[dict[str, str]]) -> None:
    """Pictures under their generated and real captions."""
    rows: list[Row] = [
        (f"{caption['written']}   (real: {caption['real']})", [one.pixels, None, None])
        for caption, one in zip(captions, shown, strict=True)
    ]
    write_table(path, ["picture", "", ""], rows[:NUM_SHOWN], num_blocks=3)


def _box(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (x0, y0, x1, y1) to cut out: a quarter of the picture, in its middle."""
    height, width = size
    return width // 4, height // 4, width * 3 // 4, height * 3 // 4


def _inpainted(model: Model, shown: Sequence[Shown]) -> dict[str, list[PixelArray]]:
    """Real pictures, the same with a box cut out of their middle, and the same with that box inpainted."""
    x0, y0, x1, y1 = box = _box(model.image_size)
    cut = [one.pixels.copy() for one in shown]
    for pixels in cut:
        pixels[y0:y1, x0:x1] = _GREY
    jobs = [
        model.infill_job(one.pixels, box, one.text, seed=SEED, truncate=True, num_retrieved=0)[0]
        for one in shown
    ]
    made = [one.pixels for one in results(model.engine, jobs)]
    return {"real": [one.pixels for one in shown], "cut": cut, "inpainted": made}


def _errors(model: Model, pictures: Mapping[str, Sequence[PixelArray]]) -> dict[str, float]:
    """Mean absolute error in the box, 0..1: of inpainted pictures, and of a white box."""
    x0, y0, x1, y1 = _box(model.image_size)
    real, made = (
        np.stack([one[y0:y1, x0:x1] for one in pictures[name]]).astype(float) / 255
        for name in ("real", "inpainted")
    )
    return {"inpainted": float(np.abs(real - made).mean()), "white": float((1 - real).mean())}


def _repair_table(
    path: Path, shown: Sequence[Shown], pictures: Mapping[str, Sequence[PixelArray]]
) -> None:
    """Real, cut out, inpainted."""
    rows: list[Row] = [
        (one.text, [made[place] for made in pictures.values()])
        for place, one in enumerate(shown[:NUM_SHOWN])
    ]
    write_table(path, ["real", "cut out", "inpainted"], rows, num_blocks=3)
