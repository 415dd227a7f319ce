"""Task `documents`: the captions of a data set's documents, whose pictures are the references.

The samples are the first documents by a hash of their ids, at most one per group (the versions of a thing
form a group), so they are the same for every model.

For the metric `judge`, the picture of a document is ranked among the same real pictures for every model: those that its data
set names (`DocumentSource.alternatives`), or else documents of its `train` with other objects, one per group.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from cm3apps.evaluation.looks import MOST_LOOKED_AT, Looks
from cm3apps.evaluation.tasks.base import (
    Baselines,
    Candidates,
    Sample,
    Task,
    TrainingPictures,
    enough,
    known_keys,
)
from cm3core.document import Document, Image, PixelArray, Text, text_of
from cm3core.errors import DataError
from cm3core.images import fit
from cm3core.interfaces.dataset import DocumentSource, DocumentSourceConfig
from cm3core.interfaces.retriever import Retriever
from cm3core.plugins.registry import ANYONE, Writer
from cm3core.recipe.merge import stored_recipe
from cm3run.progress import make_bar

#: Pictures among which a drawing is ranked.
NUM_CANDIDATES = 100
#: Names of the training pictures that could be copied, for data that name none themselves.
NEAREST, RANDOM = "nearest caption copied", "random copied"
#: The first of so many nearest captions that has a picture.
_MOST_NEAREST = 8
#: Document -> its candidates.
Find = Callable[[int], Candidates]


def candidates_of(source: DocumentSource, config: DocumentSourceConfig, size: int) -> Find:
    """The candidates of a data set's documents.

    Args:
        source: the data set, in the protocol's split.
        config: its config; its training data are opened on first use.
        size: side of the pictures, in pixels.
    """
    others = _others(source, config, size)

    def find(index: int) -> Candidates:
        own = source.alternatives(index, size, NUM_CANDIDATES)
        return _of_document(source, others, size, index) if own is None else own

    return find


def _others(
    source: DocumentSource, config: DocumentSourceConfig, size: int
) -> Callable[[], list[tuple[str, str, Callable[[], PixelArray]]]]:
    """(group, id, picture) of one training document of each group, in a fixed random order."""

    def find() -> list[tuple[str, str, Callable[[], PixelArray]]]:
        train = _training(source, config)
        return [
            (group, train.id(index), cache(partial(_picture, train, index, size)))
            for group, index in order_of_groups(train)
        ]

    return cache(find)


def _of_document(
    source: DocumentSource,
    others: Callable[[], list[tuple[str, str, Callable[[], PixelArray]]]],
    size: int,
    index: int,
) -> Candidates:
    own = source.group(index) or source.id(index)
    found = [(name, load) for group, name, load in others() if group != own]
    first = (source.id(index), partial(_picture, source, index, size))
    return [first, *found[: NUM_CANDIDATES - 1]]


def _picture(source: DocumentSource, index: int, size: int) -> PixelArray:
    return fit(first_picture(source.document(index)).load(), (size, size))


def open_documents(
    values: Mapping[str, Any],
    *,
    size: int | None,
    data: Path | None,
    model: Any,
    registry: Any,
    writer: Writer = ANYONE,
) -> Task:
    """See `open_task`. `dataset` is a recipe's section, or null for the model's own; `num` is the number of
    documents, or null for all; `one_of_a_group` keeps only the first document of each group; `baselines`: what copying
    would score."""
    keys = dataset_keys("documents", values)
    if size is None:
        raise DataError("protocol: size", "is null, but pictures are compared", "give a number")
    source, config, rule = open_source(keys, data, model, registry, writer)
    find = candidates_of(source, config, size)
    copied = _copied(source, config, size) if keys["baselines"] else None
    chosen: dict[str, int] = {}
    own = apart(source, _training(source, config)) if keys["apart"] else None
    for index in in_order(source, own):
        group = source.group(index) if keys["one_of_a_group"] else ""
        chosen.setdefault(group or source.id(index), index)
        if len(chosen) == keys["num"]:
            break
    samples = [
        replace(sample, baselines=None if copied is None else partial(copied, index))
        for index in chosen.values()
        if (sample := _sample(source, index, size, find))
    ]
    enough(f"split {keys['split']!r}", len(samples), keys["num"])
    rule |= {"split": keys["split"], "size": size}
    return Task("documents", "pictures", samples, rule, training=_pictures(source, config, size))


def _pictures(
    source: DocumentSource, config: DocumentSourceConfig, size: int
) -> Callable[[], TrainingPictures]:
    """The training pictures, in order; their data set is opened on first use."""

    @cache
    def find() -> TrainingPictures:
        train = _training(source, config)
        found = [i for i in range(len(train)) if _has_picture(train.document(i))]
        loads = [partial(_picture, train, index, size) for index in found]
        return TrainingPictures(loads, train.content_fingerprint)

    return find


def _copied(
    source: DocumentSource, config: DocumentSourceConfig, size: int
) -> Callable[[int], Baselines]:
    """Document -> the real pictures that could be copied instead of drawing it."""
    found = _copied_documents(source, config, size)

    def find(index: int) -> Baselines:
        own = source.copies(index, size)
        return found(index) if own is None else own

    return find


def _copied_documents(
    source: DocumentSource, config: DocumentSourceConfig, size: int
) -> Callable[[int], Baselines]:
    """Document -> the training document whose caption is nearest in words (BM25; any, if none shares a word), and any
    training document. No model takes part, so every model is compared with the same pictures."""
    from cm3plugins.retrievers.bm25 import BM25RetrieverConfig

    @cache
    def training() -> DocumentSource:
        return _training(source, config)

    @cache
    def usable() -> list[int]:  # opens every document, so only once
        train = training()
        return [index for index in range(len(train)) if _has_picture(train.document(index))]

    @cache
    def nearest() -> Retriever:
        return BM25RetrieverConfig().build(training(), None)

    def find(index: int) -> Baselines:
        train, key = training(), source.id(index)
        random = min(usable(), key=lambda one: order(f"random {key} {train.id(one)}"))
        asked = (Text(text_of(source.document(index))),)
        found = [one.index for one in nearest().retrieve([asked], _MOST_NEAREST)[0]]
        near = next((one for one in found if _has_picture(train.document(one))), random)
        places = {NEAREST: near, RANDOM: random}
        return {name: partial(_picture, train, place, size) for name, place in places.items()}

    return find


def apart(source: DocumentSource, train: DocumentSource) -> list[int]:
    """The documents of a split whose pictures are not in the training split, not even scaled or saved again."""
    known = {key for index in range(len(train)) for key in train.content_keys(index)}
    left = [index for index in range(len(source)) if not known & set(source.content_keys(index))]
    pictured = [index for index in left if _has_picture(source.document(index))]
    if len(train) > MOST_LOOKED_AT or not pictured:
        return left
    looks = Looks((str(one), first_picture(source.document(one)).load()) for one in pictured)
    trained = (train.document(index) for index in range(len(train)))
    bar = make_bar(trained, desc="comparing looks", total=len(train), unit="picture")
    alike = {
        name
        for one in bar
        if _has_picture(one)
        for name in looks.all_like(first_picture(one).load())
    }
    return [index for index in left if str(index) not in alike]


def _has_picture(document: Document) -> bool:
    return any(isinstance(segment, Image) for segment in document)


def _training(source: DocumentSource, config: DocumentSourceConfig) -> DocumentSource:
    """The training documents of a data set, of which `source` is a split."""
    if "train" in config.splits and config.split != "train":
        return replace(config, split="train").build()
    return source


def order(key: str) -> str:
    """A key that sorts names in a fixed random order."""
    return hashlib.sha256(key.encode()).hexdigest()


def in_order(source: DocumentSource, among: Iterable[int] | None = None) -> list[int]:
    """Documents in the fixed order by the hashes of their ids; None: all. None of them is read."""
    indices = range(len(source)) if among is None else among
    return sorted(indices, key=lambda index: order(source.id(index)))


def order_of_groups(source: DocumentSource) -> list[tuple[str, int]]:
    """(group, position) of one document of each group, in a fixed random order."""
    found: dict[str, int] = {}
    for index in in_order(source):
        found.setdefault(source.group(index) or source.id(index), index)
    return list(found.items())


def first_picture(document: Document) -> Image:
    """The first picture of a document that has one."""
    return next(segment for segment in document if isinstance(segment, Image))


def dataset_keys(task: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a task over a data set, with their defaults.

    Raises:
        DataError: see `known_keys`; or `split`, `num`, `task` or `hides` is of another type.
    """
    keys = known_keys(task, values)
    kinds = {"split": (str, False), "num": (int, True), "task": (str, True), "hides": (str, True)}
    for key, (kind, optional) in kinds.items():
        value = keys.get(key)
        if key in keys and not isinstance(value, kind) and not (optional and value is None):
            raise DataError(
                f"protocol: task.{key}",
                f"is {value!r}",
                f"give a value of the type {kind.__name__}",
            )
    return keys


def open_source(
    keys: Mapping[str, Any], data: Path | None, model: Any, registry: Any, writer: Writer
) -> tuple[DocumentSource, DocumentSourceConfig, dict[str, Any]]:
    """The data set, its config, and its name in the measurement."""
    if keys["dataset"] is None:
        if model is None or model.recipe.dataset is None:
            raise DataError(
                "protocol: task.dataset",
                "is null, but there is no model to provide its data set",
                "name a data set",
            )
        source: DocumentSource = model.components.split(keys["split"])
        config = replace(model.recipe.dataset, split=keys["split"])
        return source, config, {"dataset": source.fingerprint}
    if not isinstance(keys["dataset"], dict):
        raise DataError(
            "protocol: task.dataset", f"is {keys['dataset']!r}", 'write {"name": ...} and its keys'
        )
    section = dict(keys["dataset"])
    if data is not None:
        section["path"] = str(data)
    text = json.dumps({"dataset": section})
    recipe = stored_recipe(text, registry, label="protocol", writer=writer)
    assert recipe.dataset is not None
    config = replace(recipe.dataset, split=keys["split"])
    source = config.build()
    return source, config, {"dataset": source.fingerprint}


def _sample(source: DocumentSource, index: int, size: int, find: Find) -> Sample | None:
    """The sample of a document; None without a text or a picture."""
    document = source.document(index)
    pictures = [segment for segment in document if isinstance(segment, Image)]
    text = text_of(document)
    if not text or not pictures:
        return None
    return Sample(
        source.id(index),
        text,
        partial(_load, pictures[0], size),
        f"image:{pictures[0].key}",
        target=_target(source, index),
        candidates=partial(find, index),
        drawing=pictures[0].drawing,
    )


def _target(source: DocumentSource, index: int) -> dict[str, Any]:
    """The object that the picture shows, and what the data set knows of it."""
    return {"group": source.group(index), **source.truth(index)}


def _load(picture: Image, size: int) -> PixelArray:
    return fit(picture.load(), (size, size))
