"""Checks for leaks that would make scores worthless: reference pictures in the memory for retrieval,
and a metric's network that also chose the pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cm3apps.evaluation.looks import MOST_LOOKED_AT, Looks
from cm3apps.evaluation.made import num_retrieved
from cm3apps.evaluation.tasks.base import OF_PICTURES, Sample, Task
from cm3core.document import Codes, Image, PixelArray, content_keys
from cm3core.errors import DataError
from cm3core.images import fit
from cm3core.interfaces import DocumentSourceConfig, Extractor
from cm3run.model import Model
from cm3run.progress import make_bar

#: Maximum number of references that a message names.
_MOST_NAMED = 3


def check_memory(
    model: Model, task: Task, options: Mapping[str, Any], *, allowed: bool
) -> dict[str, Any]:
    """Check whether the memory has reference pictures, by their keys, their codes, and their appearance.

    Args:
        model: the model with the memory.
        task: the task with the references.
        options: options of the model's methods.
        allowed: report leaks instead of refusing them.

    Returns:
        the checks and their results, as JSON.

    Raises:
        DataError: there are leaks.
    """
    if task.makes not in OF_PICTURES or not num_retrieved(model, options):
        return {"retrieves": False}
    memory = model.components.memory
    references = {one.picture_key: one.key for one in task.samples if _expected(task, one)}
    if not references:  # prompts of a benchmark whose scorer has no pictures either
        none = {"compared_by_appearance": False, "leaks": []}
        return {"retrieves": True, "documents": len(memory), **none}
    by_appearance = len(memory) <= MOST_LOOKED_AT
    leaks = list(_leaks(model, task, references, by_appearance=by_appearance))
    if leaks and not allowed:
        # the memory may have a reference more than once
        of_reference: dict[str, tuple[str, str]] = {}
        for own, key, why in leaks:
            of_reference.setdefault(key, (own, why))
        first = list(of_reference.items())[:_MOST_NAMED]
        shown = "; ".join(f"{own} and {key} ({why})" for key, (own, why) in first)
        raise DataError(
            "the model's memory",
            f"has {len(of_reference)} of the {len(references)} reference pictures: {shown}",
            f"retrieve from a memory without them ({_other_memories(model)}), or nothing (--num-retrieved 0), or give "
            "--allow-leaks, which the scores will mention",
        )
    if not by_appearance:
        print(
            f"note: the memory's {len(memory):,} pictures were compared with the references by name and "
            "not by appearance",
            file=sys.stderr,
        )
    return {
        "retrieves": True,
        "documents": len(memory),
        "compared_by_appearance": by_appearance,
        "leaks": [list(leak) for leak in leaks],
    }


def _leaks(
    model: Model, task: Task, references: Mapping[str, str], *, by_appearance: bool
) -> Iterator[tuple[str, str, str]]:
    """Each document of the memory that has a reference (content key -> key of its sample): its id, the sample's key,
    and the reason."""
    memory = model.components.memory
    looks = Looks((one.key, load()) for one in task.samples if (load := _expected(task, one)))
    codes: dict[str, str] = {}
    for index in make_bar(
        range(len(memory)), desc="looking for references in the memory", unit="document"
    ):
        document = memory.document(index)
        if not codes and any(isinstance(segment, Codes) for segment in document):
            codes = _codes(model, task)
        keys = content_keys(document)
        for key in keys & (references.keys() | codes.keys()):
            yield memory.id(index), references.get(key) or codes[key], "the same picture"
        if by_appearance and not keys & references.keys():
            for segment in document:
                if isinstance(segment, Image):
                    like = looks.like(segment.load())
                    if like is not None:
                        yield memory.id(index), like, "looks the same"


def _expected(task: Task, sample: Sample) -> Callable[[], PixelArray] | None:
    """Loads the picture that the model should make; None: it is unknown."""
    return sample.picture if task.makes == "pictures" else sample.edited


def _other_memories(model: Model) -> str:
    """The options that choose another memory, without the current split."""
    data, retriever = model.recipe.dataset, model.recipe.retriever
    is_other = retriever is not None and (retriever.bank or getattr(retriever, "own_memory", False))
    if is_other or not isinstance(data, DocumentSourceConfig):
        return "--bank"
    searched = model.components.memory_split or data.split
    known = data.memory_config().splits
    return (
        "--bank" if searched == "train" or "train" not in known else "--memory-split train, --bank"
    )


def check_extractors(
    model: Model, extractors: Sequence[Extractor], options: Mapping[str, Any], *, allowed: bool
) -> None:
    """Raise `DataError` if a metric's network also chose or retrieved the measured pictures."""
    candidates = options.get("num_candidates") or model.recipe.generate.num_candidates
    if allowed or (candidates == 1 and not num_retrieved(model, options)):
        return
    needs = {
        name
        for kind in ("reranker", "retriever")
        for name in getattr(getattr(model.recipe, kind), "needs", ())
    }
    embedder = model.components.embedder if "embedder" in needs or candidates > 1 else None
    for extractor in extractors:
        if embedder is not None and extractor.embedder_fingerprint == embedder.fingerprint:
            raise DataError(
                f"extractor {extractor.label!r}",
                "is also the embedder with which the model retrieves or chooses candidates, so the score would "
                "measure only how well they satisfy it",
                "measure with another network, generate without candidates and documents, or give "
                "--allow-reranker",
            )


def _codes(model: Model, task: Task) -> dict[str, str]:
    """Content key of each reference's codes, at the model's size, -> the sample's key."""
    found: dict[str, str] = {}
    for sample in task.samples:
        if (load := _expected(task, sample)) is not None:
            coded = model.encode([fit(load(), model.image_size)])
            found |= dict.fromkeys(content_keys((coded[0],)), sample.key)
    return found
