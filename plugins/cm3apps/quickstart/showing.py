"""The tasks that the quickstart gives the trained model, and how their results are measured.

The tasks are generating, captioning and inpainting. Pictures are measured by the judge's rank of
the right text among the subset's texts (`cm3apps.judge`); it uses a network that no part of the
training used. A prompt's own picture is never among the documents prepended to it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.quickstart.pictures import Row, write_table
from cm3core.document import Codes, Document, Image, ImageHole, PixelArray, Text, text_of
from cm3core.errors import CM3Error
from cm3core.images import fit
from cm3core.interfaces import DocumentSource, Retriever
from cm3core.model import Model
from cm3core.progress import make_bar
from cm3core.training.neighbours import own_names

#: Prompts of each split that are generated and judged, and how many of them are shown.
NUM_JUDGED = {"train": 100, "comp": 48, "unseen": 40, "valid": 48}
NUM_SHOWN = {"train": 24, "comp": 12, "unseen": 9, "valid": 12}
NUM_CAPTIONS = 24
NUM_CAPTIONS_SHOWN = 12
NUM_INFILLED = 24
NUM_INFILLED_SHOWN = 8
#: Least of each that is left of these numbers where time is short.
LEAST = 2
BATCH = 50
#: The pictures that are captioned and inpainted.
SUBJECTS = {"held_out": "held-out pictures", "trained": "training pictures"}


@dataclass(frozen=True, eq=False)
class Asked:
    """One document of a split: the prompt, the right answer, the prepended documents."""

    text: str
    concept: str
    pixels: PixelArray
    picture: Image
    in_front: tuple[Document, ...]


def show(model: Model, out: Path, share: float = 1.0) -> dict[str, Any]:
    """Generate, caption and inpaint; write tables of pictures into `out`; return the measures.

    `share` is the fraction of the usual numbers of prompts and pictures, for a short run.
    """
    started = time.monotonic()
    retrieves = model.components.retriever is not None and _number(model) > 0
    drawn: dict[str, Any] = {"splits": {}, "captions": {}, "repairs": {}, "retrieves": retrieves}
    texts = sorted(
        {model.components.source.group(index) for index in range(len(model.components.source))}
    )
    judge = _judge(texts)
    drawn["judged_among"] = len(texts) if judge is not None else 0
    tokens, seconds = 0, 0.0
    held_out: list[Asked] = []
    trained: list[Asked] = []
    for split in ("train", "comp", "unseen", "valid"):
        asked = _asked(model, split, share)
        if not asked:
            continue
        before = time.monotonic()
        pictures = {"without": _pictures(model, asked, False, f"{split}, nothing prepended")}
        if drawn["retrieves"]:
            pictures["with"] = _pictures(model, asked, True, f"{split}, a document prepended")
        seconds += time.monotonic() - before
        tokens += sum(map(len, pictures.values())) * int(
            np.prod(model.components.image_tokenizer.grid)
        )
        drawn["splits"][split] = {
            "num_prompts": len(asked),
            **_scores(judge, asked, pictures, texts),
        }
        _table(out / f"pictures-{split}.png", asked[: NUM_SHOWN[split]], pictures)
        if split == "train":
            trained = asked
        elif split != "unseen" or not held_out:
            held_out = asked
    drawn["generation_tokens_per_second"] = tokens / max(seconds, 1e-9)
    subjects = {
        name: asked for name, asked in (("held_out", held_out), ("trained", trained)) if asked
    }
    if model.components.serializer.max_spans:  # else it was never trained to fill anything
        drawn["captions"] = {
            name: _captions(model, asked[: _limited(NUM_CAPTIONS, share)])
            for name, asked in subjects.items()
        }
        _caption_table(
            out / "captions.png",
            next(iter(subjects.values())),
            next(iter(drawn["captions"].values())),
        )
        num_infilled = _limited(NUM_INFILLED, share)
        repaired = {
            name: _repaired(model, asked[:num_infilled], name) for name, asked in subjects.items()
        }
        _repair_table(out / "infilled.png", subjects, repaired)
        drawn["repairs"] = {
            name: _scores(judge, asked[:num_infilled], repaired[name], texts)
            for name, asked in subjects.items()
        }
    drawn["drawing_seconds"] = time.monotonic() - started
    return drawn


def _limited(number: int, share: float) -> int:
    """A share of a number, at least `LEAST`.

    >>> _limited(100, 1.0), _limited(100, 0.45), _limited(48, 0.01), _limited(0, 0.01)
    (100, 45, 2, 0)
    """
    return max(min(number, LEAST), round(number * share))


def _number(model: Model) -> int:
    config = model.recipe.retriever
    return 0 if config is None else config.num_retrieved


def _judge(texts: Sequence[str]) -> Any:
    """The judge if it knows every text, else None (a data set that it was not made for)."""
    from cm3apps.judge.judge import Judge

    try:
        judge = Judge.load()
    except CM3Error as error:
        print(f"note: pictures are not judged: {error}", file=sys.stderr)
        return None
    known = set(judge.concepts)
    return judge if texts and all(text in known for text in texts) else None


def _order(names: Iterable[str]) -> list[int]:
    """A fixed shuffle that doesn't depend on the number of names."""
    keyed = [(hashlib.sha256(name.encode()).digest(), index) for index, name in enumerate(names)]
    return [index for _, index in sorted(keyed)]


def _asked(model: Model, split: str, share: float = 1.0) -> list[Asked]:
    """The split's prompts, with the documents retrieved for each.

    One document of each group first, then more, in a fixed order; a share of the usual number.
    """
    try:
        source = model.components.source if split == "train" else _held_out(model, split)
    except CM3Error:
        return []  # this data set has no such split
    order = _order(source.id(index) for index in range(len(source)))
    one_of_each = {source.group(index) or source.id(index): index for index in reversed(order)}
    first = [index for index in order if index in set(one_of_each.values())]
    chosen = (first + [index for index in order if index not in set(first)])[: NUM_JUDGED[split]]
    if split == "train":
        chosen = chosen[: max(len(first), NUM_SHOWN[split])]
    chosen = chosen[: _limited(len(chosen), share)]
    if not chosen:
        return []
    documents = [source.document(index) for index in chosen]
    pictures = [
        next(segment for segment in document if isinstance(segment, Image))
        for document in documents
    ]
    in_front = _retrieved(model, source, split, chosen, documents)
    return [
        Asked(
            text_of(document),
            source.group(index),
            fit(picture.load(), model.image_size),
            picture,
            front,
        )
        for index, document, picture, front in zip(
            chosen, documents, pictures, in_front, strict=True
        )
    ]


def _held_out(model: Model, split: str) -> DocumentSource:
    """A held-out split; of the emoji corpus, `unseen` is taken from all concepts.

    The quickstart's subset has none of them.
    """
    from dataclasses import replace

    from cm3plugins.datasets.emoji import EmojiSourceConfig

    config = model.recipe.dataset
    if split == "unseen" and isinstance(config, EmojiSourceConfig):
        return replace(config, split=split, concepts="all").build()
    return model.components.split(split)


def _retrieved(
    model: Model,
    source: DocumentSource,
    split: str,
    chosen: Sequence[int],
    documents: Sequence[Document],
) -> list[tuple[Document, ...]]:
    """The documents prepended to each prompt, never the prompt's own.

    They are from the training data; for unseen concepts from those themselves, since only a memory
    can know them.
    """
    retriever: Retriever | None = model.components.retriever
    if retriever is None or _number(model) == 0:
        return [()] * len(chosen)
    if split == "unseen":
        assert model.recipe.retriever is not None
        retriever = model.recipe.retriever.build(source, model.components.embedder)
    queries: list[Document] = [(Text(text_of(document)),) for document in documents]
    found = retriever.retrieve(
        queries, _number(model), [own_names(source, index) for index in chosen]
    )
    return [
        tuple(retriever.memory.document(result.index) for result in results) for results in found
    ]


def _pictures(model: Model, asked: Sequence[Asked], retrieve: bool, what: str) -> list[PixelArray]:
    """A picture for each prompt, uint8 [H, W, 3]."""
    pixels: list[PixelArray] = []
    with make_bar(desc=f"  {what}", total=len(asked), unit="picture", file=sys.stderr) as bar:
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            completions = model.complete(
                [(Text(one.text), ImageHole()) for one in part],
                retrieved=[one.in_front if retrieve else () for one in part],
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


def _scores(
    judge: Any, asked: Sequence[Asked], pictures: dict[str, list[PixelArray]], texts: Sequence[str]
) -> dict[str, float]:
    """R@1 and R@5 of real and generated pictures.

    Among the subset's texts, and the split's own where they are not among them.
    """
    if judge is None or not all(one.concept in set(judge.concepts) for one in asked):
        return {}
    among = sorted(set(texts) | {one.concept for one in asked})
    concepts = [one.concept for one in asked]
    scores: dict[str, float] = {"num_texts": len(among)}
    for name, images in {"real": [one.pixels for one in asked], **pictures}.items():
        ranks = judge.ranks(np.stack(images), concepts, among)
        scores |= {
            f"{name}_r1": float(np.mean(ranks <= 1)),
            f"{name}_r5": float(np.mean(ranks <= 5)),
        }
    return scores


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
        front = next(
            (
                segment.load()
                for document in one.in_front
                for segment in document
                if isinstance(segment, Image)
            ),
            None,
        )
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
