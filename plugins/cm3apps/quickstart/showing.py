"""The tasks of the quickstart for the trained model, and the measurement of their results.

For each split it measures the loss on the real pictures, draws, and ranks the results, all with and without a prepended
document. Then it captions and inpaints training pictures and held-out pictures.

For icons it uses the samples and the judge of `cm3 experiment icons`, so that the figures are comparable to those of other
icon models. For other data sets it uses documents of the splits, with the documents that the recipe's retriever finds for
their captions; results are compared with the real pictures of the same split. A prompt's own picture is never prepended
to it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from cm3apps.evaluation.icons.drawing import AskedPicture, Samples, draw, nats_of_codes, order
from cm3apps.evaluation.icons.experiment import mean_and_error
from cm3apps.evaluation.icons.ranking import NUM_CANDIDATES, RealPictures, blurred, judges
from cm3apps.evaluation.icons.report import write_sheet
from cm3apps.quickstart.pictures import Row, write_table
from cm3core.document import Document, Image, PixelArray, Text, text_of
from cm3core.errors import CM3Error
from cm3core.interfaces import DocumentSource
from cm3plugins.datasets.icons import IconSourceConfig
from cm3plugins.metrics.ranking import chance_among_first, distances
from cm3run.model import Model
from cm3run.model.jobs import results
from cm3run.training.neighbours import own_names

KS = (1, 5)


class Subjects(Protocol):
    """The available prompts.

    splits: names of splits, those with held-out documents first.
    documents: the condition for the prepended document; None: the model reads none.
    """

    splits: tuple[str, ...]
    documents: str | None

    def of(self, split: str, num: int) -> Sequence[AskedPicture]:
        """At most `num` pictures of a split, in a fixed random order; none if the split does not exist."""
        ...

    def ranks(
        self, asked: Sequence[AskedPicture], pictures: Sequence[PixelArray] | PixelArray
    ) -> dict[str, float]:
        """`r1` and `r5`: how often the real picture is among the first of `among` pictures."""
        ...


class IconSubjects:
    """Icons with another version, and that version.

    Args:
        model: a model trained on icons.
        dataset: the config of the icons.
    """

    splits: tuple[str, ...] = ("comp", "compose", "unseen", "train")

    def __init__(self, model: Model, dataset: IconSourceConfig) -> None:
        self.documents: str | None = "version" if reads_documents(model) else None
        self._samples = Samples(model, retrieved=False)
        real = RealPictures(
            self._samples.everything.corpus,
            dataset.image_size,
            model.image_size,
            dataset.cache_dir,
        )
        self._judge = judges(["pixels"], real)["pixels"]

    def of(self, split: str, num: int) -> Sequence[AskedPicture]:
        """See `Subjects`."""
        try:
            return self._samples.of(split, num)
        except CM3Error as error:
            print(f"note: split {split!r} is skipped: {error.cause}", file=sys.stderr)
            return []

    def ranks(
        self, asked: Sequence[Any], pictures: Sequence[PixelArray] | PixelArray
    ) -> dict[str, float]:
        """See `Subjects`; the ranking is among real pictures of the same set and style."""
        found = self._judge.chances(pictures, [one.entry for one in asked], KS)
        return {**{f"r{k}": value for k, value in found.items()}, "among": NUM_CANDIDATES}


class OtherSubjects:
    """Documents from the splits of any data set.

    Args:
        model: a model trained on it.
    """

    splits: tuple[str, ...] = ("comp", "unseen", "valid", "train")

    def __init__(self, model: Model) -> None:
        self._model = model
        self.documents: str | None = "retrieved" if reads_documents(model) else None

    def of(self, split: str, num: int) -> Sequence[AskedPicture]:
        """See `Subjects`."""
        components = self._model.components
        try:
            source = components.source if split == "train" else components.split(split)
        except CM3Error:
            return []  # the data set does not have this split
        chosen = sorted(range(len(source)), key=lambda index: order(source.id(index)))
        documents = [(index, source.document(index)) for index in chosen[: 2 * num]]
        shown = [
            (index, document)
            for index, document in documents
            if text_of(document) and any(isinstance(segment, Image) for segment in document)
        ][:num]
        in_front = self._found(source, shown)
        return [
            AskedPicture(text_of(document), document, {"none": (), "retrieved": front})
            for (_, document), front in zip(shown, in_front, strict=True)
        ]

    def _found(
        self, source: DocumentSource, shown: Sequence[tuple[int, Document]]
    ) -> list[tuple[Document, ...]]:
        """The retrieved documents for each caption, as many as the recipe retrieves."""
        retriever = self._model.components.retriever
        if retriever is None or self.documents is None:
            return [()] * len(shown)
        config = self._model.recipe.retriever
        number = 1 if config is None else config.num_retrieved
        queries: list[Document] = [(Text(text_of(document)),) for _, document in shown]
        own = [own_names(source, index) for index, _ in shown]
        return [
            tuple(retriever.memory.document(found.index) for found in results)
            for results in retriever.retrieve(queries, number, own)
        ]

    def ranks(
        self, asked: Sequence[AskedPicture], pictures: Sequence[PixelArray] | PixelArray
    ) -> dict[str, float]:
        """See `Subjects`; the ranking is among the real pictures of all prompts."""
        real_ND = blurred(np.stack([one.pixels(self._model.image_size) for one in asked]))
        total = dict.fromkeys(KS, 0.0)
        for place, drawn_D in enumerate(blurred(np.stack(list(pictures)))):
            others = [*range(place), *range(place + 1, len(asked))]
            distances_N = distances(drawn_D, real_ND[[place, *others]], centred=False)
            for k in KS:
                total[k] += chance_among_first(distances_N, k) / len(asked)
        return {**{f"r{k}": value for k, value in total.items()}, "among": len(asked)}


def subjects_of(model: Model) -> Subjects:
    """The available prompts for a model."""
    dataset = model.recipe.dataset and model.recipe.dataset.memory_config()
    if isinstance(dataset, IconSourceConfig):
        return IconSubjects(model, dataset)
    return OtherSubjects(model)


def reads_documents(model: Model) -> bool:
    """Whether the model was trained with prepended documents."""
    config = model.recipe.retriever
    return config is not None and config.retrieves and config.num_retrieved > 0


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


#: Number of pictures per split to measure and draw, and number of them to show.
NUM_DRAWN = {"comp": 96, "compose": 96, "unseen": 96, "valid": 48, "train": 48}
NUM_SHOWN = 24
NUM_CAPTIONS = 48
NUM_CAPTIONS_SHOWN = 12
NUM_INPAINTED = 48
NUM_INPAINTED_SHOWN = 12
#: Minimum of each of these numbers if time is short.
LEAST = 2
SEED = 1
_GREY = 160

Pictures: TypeAlias = Sequence[PixelArray] | PixelArray


def show(model: Model, out: Path, share: float = 1.0) -> dict[str, Any]:
    """Generate, caption and inpaint; write tables of pictures into `out`; return the measurements.

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
    if model.components.serializer.max_spans:  # otherwise it was never trained to fill gaps
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
    """Counts drawn pictures and the time for them."""

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
    """The first split of held-out documents, if there is one, and the training split."""
    held_out = [split for split in splits if split != "train"]
    return [*held_out[:1], *(split for split in splits if split == "train")]


def _split(
    model: Model, subjects: Subjects, asked: Sequence[AskedPicture], sheet: Path, clock: _Clock
) -> dict[str, Any]:
    """All measurements of a split; its sheet is written."""
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
    """The prepended document, in the form of `context`."""
    if condition is None:
        return []
    pixels = one.front_pixels(condition, model)
    return [] if pixels is None else [(pixels, text_of(one.front(condition)[0]))]


def _captions(
    model: Model, asked: Sequence[AskedPicture], documents: str | None
) -> list[dict[str, str]]:
    """For each picture, the real text, the generated one, and the one generated with a prepended document."""
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
    """Pictures under their generated and real captions."""
    rows: list[Row] = [
        (
            f"{caption['written']}   (real: {caption['real']})",
            [one.pixels(model.image_size), *([None] * 2)],
        )
        for caption, one in zip(captions, asked, strict=False)
    ]
    write_table(path, ["picture", "", ""], rows[:NUM_CAPTIONS_SHOWN], num_blocks=3)


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (x0, y0, x1, y1) to cut out: a quarter of the picture, in its middle."""
    height, width = size
    return width // 4, height // 4, width * 3 // 4, height * 3 // 4


def _inpainted(
    model: Model, asked: Sequence[AskedPicture], documents: str | None
) -> dict[str, list[PixelArray]]:
    """Real pictures, the same with a box cut out of their middle, and the same with that box inpainted."""
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
    """Real, cut out, inpainted without a document, inpainted with a document."""
    names = {"real": "real", "cut": "cut out", "inpainted": "inpainted", "with_document": "with it"}
    rows: list[Row] = [
        (one.text, [made[place] for made in pictures.values()])
        for place, one in enumerate(asked[:NUM_INPAINTED_SHOWN])
    ]
    write_table(path, [names[name] for name in pictures], rows, num_blocks=3)
