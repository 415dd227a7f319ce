"""Tasks whose response is a text: grounding, answers, captions; compared with a rule that answers from the texts
retrieved for the parts of a picture, which shows how useful they can be to a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import numpy as np

from cm3core.boxes import boxes_in, quarter_of
from cm3core.document import Image, PixelArray, text_of
from cm3core.images import fit
from cm3core.interfaces.dataset import DocumentSource
from cm3lab.experiments.tasks import asking
from cm3lab.experiments.tasks.asking import chosen, records_of
from cm3lab.experiments.tasks.drawn import Measured, Row, Setting, iou
from cm3plugins.datasets.icons.corpus import IconEntry
from cm3plugins.datasets.icons.sets import STYLE_WORDS
from cm3plugins.metrics.vqa import normalised
from cm3run.model import Model
from cm3run.model.results import GeneratedText
from cm3run.prepending import part_in
from cm3run.training.neighbours import own_names

Box = tuple[int, int, int, int]

_NUMBERS = ("none", "one", "two", "three", "four")


def box_of(phrase: str, texts: Sequence[str]) -> Box | None:
    """Return an object's box from the first text that names it.

    >>> box_of("bell", ["at (0, 0) -> (9, 9), upper left: key", "at (1, 2) -> (3, 4), upper left: filled bell"])
    (1, 2, 3, 4)
    """
    for box, label in filter(None, map(part_in, texts)):
        if _names(label, phrase):
            return box
    return None


def answer_by_parts(question: str, texts: Sequence[str]) -> str:
    """Answer how many, where, and whether something is there; "" for all other questions and without a part's text.

    >>> front = ["at (0, 0) -> (99, 99), upper left: key", "at (130, 4) -> (230, 90), upper right: bell"]
    >>> [answer_by_parts(one, front) for one in ("How many things are there?", "Where is the bell?", "Is there a lock?")]
    ['two', 'upper right', 'no']
    """
    found = list(filter(None, map(part_in, texts)))
    if not found:
        return ""
    if question.startswith("How many"):
        return _NUMBERS[len(found)] if len(found) < len(_NUMBERS) else ""
    if asked := re.fullmatch(r"Is there a (.+)\?", question):
        return "yes" if any(_names(label, asked[1]) for _, label in found) else "no"
    if asked := re.fullmatch(r"Where is the (.+)\?", question):
        for box, label in found:
            if _names(label, asked[1]):
                return quarter_of(box)
    return ""


def _names(label: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", label) is not None


#: Kinds of questions, with the start of their questions.
KINDS = {
    "what": r"What is it",
    "slash": r"Is it crossed out",
    "style": r"In what style",
    "is it": r"Is it ",
    "how many": r"How many",
    "is there": r"Is there",
    "where": r"Where is",
}
#: Columns of sheets: texts are wider than a picture.
HEADER = ["picture", "", ""]
#: Number of training questions counted for the most frequent answers.
_COUNTED = 4000


def kind_of(question: str) -> str:
    """Return the kind of a question; of the last question in a conversation.

    >>> kind_of("Is it filled?"), kind_of("What is it? Assistant: a bell User: Is it crossed out?")
    ('is it', 'slash')
    """
    last = question.rpartition("User: ")[2]
    return next(kind for kind, begin in KINDS.items() if re.match(begin, last))


def find(setting: Setting, split: str) -> Measured:
    """Measure locating an icon of a scene: the IoU of the predicted box."""
    source = records_of(setting.icons, "grounding", split)
    indices = chosen(source, setting.num)
    records = [source.record(index) for index in indices]
    pictures = [_seen(setting, record["image"].load()) for record in records]
    excluded = [own_names(source, index) for index in indices]
    results = asking.written(
        setting.model,
        f"find, {split}",
        [
            partial(_asked, setting, picture, record["phrase"], "grounding", own)
            for picture, record, own in zip(pictures, records, excluded, strict=True)
        ],
    )
    told = [one.text for one in results]
    wanted = [record["objects"].seen()[0][1] for record in records]
    found = [boxes_in(text)[:1] for text in told]
    boxes = [own[0][1] if own else None for own in found]

    def of(values: Sequence[Any]) -> dict[str, float]:
        ious = [iou(one, true) for one, true in zip(values, wanted, strict=True)]
        return {
            "IoU": float(np.mean(ious)),
            "IoU above 0.5": float(np.mean([value > 0.5 for value in ious])),
        }

    figures = {"another": of([*wanted[1:], wanted[0]])}
    in_front = [[own.text for own in one.retrieved] for one in results]
    if any(in_front):
        figures["by parts"] = of(
            [
                box_of(record["phrase"], texts)
                for record, texts in zip(records, in_front, strict=True)
            ]
        )
    figures["told"] = of(boxes)
    rows: list[Row] = [
        (f"{record['phrase']}: {text}", [picture, None, None])
        for record, picture, text in zip(records, pictures, told, strict=True)
    ]
    return Measured(len(indices), figures, HEADER, rows)


def answer(setting: Setting, split: str) -> Measured:
    """Measure questions, half of them about icons and half about scenes."""
    source = records_of(setting.icons, "question", split)
    first_scene = len(source) - source.config.num_scenes
    half = max(1, setting.num // 2)
    indices = chosen(source, half, among=range(first_scene))
    indices += chosen(source, half, among=range(first_scene, len(source)))
    return _answered(setting, split, source, indices, "question", "vqa")


def chat(setting: Setting, split: str) -> Measured:
    """Measure the second of two questions about an icon."""
    source = records_of(setting.icons, "chat", split)
    return _answered(setting, split, source, chosen(source, setting.num), "conversation", "chat")


def _answered(
    setting: Setting, split: str, source: Any, indices: Sequence[int], key: str, task: str
) -> Measured:
    records = [source.record(index) for index in indices]
    pictures = [_seen(setting, record["image"].load()) for record in records]
    white = np.full_like(pictures[0], 255)
    excluded = [own_names(source, index) for index in indices]

    def ask(shown: Sequence[PixelArray], what: str) -> list[GeneratedText]:
        return asking.written(
            setting.model,
            f"{task}, {what}, {split}",
            [
                partial(_asked, setting, picture, record[key], task, own)
                for picture, record, own in zip(shown, records, excluded, strict=True)
            ],
        )

    asked = ask(pictures, "asked")
    told = [one.text for one in asked]
    given = {
        "most frequent": most_frequent(setting, source, key, records),
        "white": [one.text for one in ask([white] * len(records), "a white picture")],
    }
    by_rule = [
        answer_by_parts(record[key], [own.text for own in one.retrieved])
        for record, one in zip(records, asked, strict=True)
    ]
    if any(by_rule):
        given["by parts"] = by_rule
    given["told"] = told
    kinds = [kind_of(record[key]) for record in records]
    of_kind = Counter(kinds)
    figures: dict[str, dict[str, float]] = {
        "questions": {"all": len(kinds), **{kind: of_kind[kind] for kind in KINDS if of_kind[kind]}}
    }
    for name, answers in given.items():
        right = [
            normalised(one) == normalised(record["answer"])
            for one, record in zip(answers, records, strict=True)
        ]
        figures[name] = {"all": float(np.mean(right))}
        for kind in KINDS:
            own = [value for value, other in zip(right, kinds, strict=True) if other == kind]
            if own:
                figures[name][kind] = float(np.mean(own))
    rows: list[Row] = [
        (
            f"{record[key].rpartition('User: ')[2]} {text} ({record['answer']})",
            [picture, None, None],
        )
        for record, text, picture in zip(records, told, pictures, strict=True)
    ]
    return Measured(len(records), figures, HEADER, rows)


def most_frequent(setting: Setting, source: Any, key: str, records: Sequence[Any]) -> list[str]:
    """Return, for each question, the most frequent training answer of its kind."""
    training = records_of(setting.icons, source.config.form, "train")
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for index in np.linspace(0, len(training) - 1, _COUNTED).astype(int).tolist():
        record = training.record(index, np.random.default_rng(index))
        counts[kind_of(record[key])][record["answer"]] += 1
    return [
        next(iter(counts[kind_of(record[key])].most_common(1)), ("", 0))[0] for record in records
    ]


def caption(setting: Setting, split: str) -> Measured:
    """Measure whether captions name the object and the style."""
    source = setting.model.components.memory_of_split(split)
    indices = chosen(source, setting.num, group=source.group)
    entries = [source.entry(index) for index in indices]  # type: ignore[attr-defined]  # of icons
    pictures = [setting.real[setting.real.corpus.index(entry.id)] for entry in entries]
    white = np.full_like(pictures[0], 255)

    def captions(shown: Sequence[PixelArray], what: str) -> list[str]:
        calls = [partial(setting.model.caption_jobs, [picture]) for picture in shown]
        return asking.texts(setting.model, f"caption, {what}, {split}", calls)

    told = captions(pictures, "asked")
    figures = {}
    texts_of = {"white": captions([white] * len(entries), "a white picture")}
    if (copied := _first_retrieved(setting.model, source, indices)) is not None:
        texts_of["first retrieved"] = copied
    for name, texts in {**texts_of, "told": told}.items():
        figures[name] = {
            "name": float(
                np.mean([names(one, text) for one, text in zip(entries, texts, strict=True)])
            ),
            "style": float(
                np.mean(
                    [styles(text) == one.style for one, text in zip(entries, texts, strict=True)]
                )
            ),
        }
    rows: list[Row] = [
        (f"{text} ({entry.words}, {entry.style})", [picture, None, None])
        for text, entry, picture in zip(told, entries, pictures, strict=True)
    ]
    return Measured(len(entries), figures, HEADER, rows)


def _first_retrieved(
    model: Model, source: DocumentSource, indices: Sequence[int]
) -> list[str] | None:
    """Return the caption of the first document retrieved for each picture, never its own; None for a model without a
    retriever."""
    retriever = model.components.retriever
    if retriever is None:
        return None
    queries = [
        tuple(part for part in source.document(index) if isinstance(part, Image))
        for index in indices
    ]
    found = retriever.retrieve(queries, 1, [own_names(source, index) for index in indices])
    return [text_of(retriever.memory.document(own[0].index)) if own else "" for own in found]


def names(entry: IconEntry, text: str) -> bool:
    """Whether a caption has an icon's name, with all its words in order and no extra ones; sets and styles may come
    before or after it."""
    return re.search(rf"(?<![\w-]){re.escape(entry.words)}(?![\w-])", text) is not None


def styles(text: str) -> str:
    """Return the style words of a caption, in order.

    >>> styles("outline rounded bell off, lucide")
    'outline rounded'
    """
    return " ".join(word for word in re.findall(r"[\w-]+", text) if word in STYLE_WORDS)


def _asked(
    setting: Setting, picture: PixelArray, question: str, task: str, exclude: Collection[str]
) -> asking.Made:
    job, total = setting.model.ask_job(picture, question, task=task, exclude=exclude)
    return [job], total


def _seen(setting: Setting, pixels: PixelArray) -> PixelArray:
    return fit(pixels, setting.model.image_size)
