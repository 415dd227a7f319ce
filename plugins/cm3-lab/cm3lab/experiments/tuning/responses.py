"""Loss on held-out responses, given their prompts (teacher forcing).

Each document has the form of a request: a response at its end is predicted in its place, a response before the end is
predicted after the document, for its hole. Losses are sums over a response's tokens and its end, in nats, so they
compare models that write a response in another place or with other tokens. For plain documents all tokens count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from cm3core.document import MaskedSequence
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource, DocumentSourceConfig
from cm3core.interfaces.objective import MaskingObjective
from cm3core.interfaces.task import TaskConfig
from cm3lab.experiments.tasks.asking import chosen
from cm3plugins.datasets.mixture import MixtureConfig
from cm3plugins.objectives.cm3 import CM3ObjectiveConfig
from cm3run.training.metrics import batch_loss_sums
from cm3run.training.packing import NUM_MODALITIES, Packer, TrainingBatch, collate
from cm3run.training.validation import UnmaskedObjective

if TYPE_CHECKING:
    from cm3core.recipe import Recipe
    from cm3core.vocab import Vocabulary
    from cm3run.model import Model

#: Name of a data set that is not a mixture and has no task.
PLAIN = "documents"


@dataclass(frozen=True, eq=False)
class Asked:
    """A held-out document.

    Args:
        part: part of the mixture.
        split: split of the data set.
        name: name of the document.
        sequence: its tokens, with weights on the response alone; `sequence.part` is its number.
    """

    part: str
    split: str
    name: str
    sequence: MaskedSequence


def parts_of(recipe: Recipe) -> dict[str, tuple[DocumentSourceConfig, TaskConfig | None]]:
    """Return part of the recipe's mixture -> its data set and task; a single data set is one part."""
    config = recipe.dataset
    if isinstance(config, MixtureConfig):
        return {name: (part, config.tasks.get(name)) for name, part in config.parts.items()}
    assert config is not None, "a recipe for training has a data set"
    name = recipe.component_names.get("task", PLAIN) if recipe.task is not None else PLAIN
    return {name: (config, recipe.task)}


def asked(recipe: Recipe, model: Model, splits: Sequence[str], num: int) -> list[Asked]:
    """Return at most `num` held-out documents per part and split; skips those that don't fit in the context.

    Args:
        recipe: recipe of the tuning: parts, tasks and their layouts, objective.
        model: its tokenizers encode the documents.
        splits: held-out splits.
        num: maximum number of each.

    Raises:
        DataError: no part has one of the splits.
    """
    parts = model.components
    masking = _as_asked(recipe, parts.vocabulary)
    room = parts.context_length + 1
    found: list[Asked] = []
    for split in splits:
        before = len(found)
        for part, (config, task) in parts_of(recipe).items():
            if split not in config.splits:
                continue
            source, form = _source(config, split), None if task is None else task.build()
            for index in chosen(source, num):
                document = (
                    source.document(index)
                    if form is None
                    else form.document(source.record(index), place=f"record {source.id(index)}")
                )
                sequence = parts.serializer.sequence(
                    model.coded(document), [], recipe.data.max_text_tokens
                )
                if len(sequence) <= room:
                    masked = masking.mask(sequence, np.random.default_rng(index), room)
                    numbered = replace(masked, part=len(found))
                    found.append(Asked(part, split, source.id(index), numbered))
        if len(found) == before:
            raise DataError(
                f"split {split!r}",
                "has no document that fits the decoder's context",
                "choose another one (--splits), or lower data.max_text_tokens",
            )
    return found


def _as_asked(recipe: Recipe, vocabulary: Vocabulary) -> MaskingObjective:
    """Return an objective that only moves responses to their holes."""
    config = recipe.objective
    if not isinstance(config, CM3ObjectiveConfig):
        return UnmaskedObjective()
    alone = replace(
        config,
        response_only=True,
        hide_response=1.0,
        lambda_spans=0.0,
        segment_mask_probability=0.0,
        box_mask_probability=0.0,
        mask_sentinel_loss=False,
        text_loss_weight=1.0,
    )
    return alone.build(vocabulary)


def _source(config: DocumentSourceConfig, split: str) -> DocumentSource:
    held_out = replace(config, split=split)
    held_out.check()
    source: DocumentSource = held_out.build()
    return source


def batches(
    documents: Sequence[Asked], model: Model, num_rows: int
) -> Iterator[tuple[TrainingBatch, list[int]]]:
    """Yield batches of `num_rows` rows, and the indices of the documents in each, in the order of their parts' numbers in
    the batch."""
    length, vocabulary = model.components.context_length, model.components.vocabulary
    packer: Packer[int] = Packer(length)
    for number, one in enumerate(documents):
        packer.add(number, replace(one.sequence, part=number))
    rows: list[list[MaskedSequence]] = []
    while row := packer.next_row():
        rows.append(row)
    for start in range(0, len(rows), num_rows):
        own = rows[start : start + num_rows]
        numbers = [sequence.part for row in own for sequence in row]
        places = {number: place for place, number in enumerate(numbers)}
        numbered = [[replace(one, part=places[one.part]) for one in row] for row in own]
        yield collate(numbered, length, vocabulary), numbers


@torch.inference_mode()
def losses(documents: Sequence[Asked], model: Model, num_rows: int) -> list[float]:
    """Return the nats of each document's response, in order; computed in the weights' precision."""
    decoder = model.components.decoder
    decoder.module.eval()
    device = decoder.head_weight().device
    found = [0.0] * len(documents)
    for batch, numbers in batches(documents, model, num_rows):
        moved = batch.to(device)
        hidden_BTE = decoder.hidden_states(
            moved.tokens_BT,
            positions_BT=moved.positions_BT,
            cells_BT=moved.cells_BT,
            kv_start_BT=moved.kv_start_BT,
        )
        sums_G2 = batch_loss_sums(decoder, hidden_BTE, moved, num_parts=len(numbers))[1]
        own = sums_G2.cpu().double().reshape(len(numbers), NUM_MODALITIES, 2)[:, :, 0].sum(1)
        for number, value in zip(numbers, own.tolist(), strict=True):
            found[number] = value
    return found


def by_part(documents: Sequence[Asked], values: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return split/part -> document -> nats of its response."""
    found: dict[str, dict[str, float]] = {}
    for one, value in zip(documents, values, strict=True):
        found.setdefault(f"{one.split}/{one.part}", {})[one.name] = value
    return found


def difference(
    values: Mapping[str, float], others: Mapping[str, float]
) -> tuple[float, float, int]:
    """Return the mean of value - other over common documents, its standard error, and their number.

    >>> difference({"a": 3.0, "b": 1.0, "c": 9.0}, {"a": 2.0, "b": 2.0})
    (0.0, 1.0, 2)
    """
    pairs = [(value, others[name]) for name, value in values.items() if name in others]
    if not pairs:
        return float("nan"), float("nan"), 0
    deltas = np.array([one - other for one, other in pairs])
    error = float(deltas.std(ddof=1) / np.sqrt(len(deltas))) if len(deltas) > 1 else float("nan")
    return float(deltas.mean()), error, len(deltas)
