"""Metadata written with a model's pictures: how they were made, and the documents that were prepended.

Every `PictureFacts` of a model's pictures is made here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cm3core.config.schema import to_plain
from cm3run.attribution import ADAPTED, ORIGINAL, Credit, PictureFacts, original_files, together
from cm3run.model.results import GeneratedImage, InfilledImage, RetrievedDocument

if TYPE_CHECKING:
    from cm3run.model.model import Model
    from cm3run.model.turns import ReplyPicture


def facts_of(
    model: Model,
    picture: GeneratedImage | InfilledImage,
    *,
    sampler: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    **texts: str,
) -> PictureFacts:
    """The metadata of a picture, sufficient to reproduce it.

    Args:
        model: drew the picture.
        picture: the picture.
        sampler: the sampler that was requested; the picture's own record takes precedence.
        sampling: changed keys of the sampler.
        texts: additional entries, by key.
    """
    prompt = picture.prompt if isinstance(picture, GeneratedImage) else picture.text
    if isinstance(picture, GeneratedImage) and picture.answer is not None:
        texts = {"answer": json.dumps(answer_as_json(picture), ensure_ascii=False)} | texts
        if picture.original is not None:
            made = {"prompt": prompt, "seed": str(picture.seed), "model": model.name}
            made |= {ORIGINAL: picture.retrieved[0].id}
            return PictureFacts(made | texts, picture.credits)
    name = (picture.sampler if isinstance(picture, GeneratedImage) else "") or sampler or ""
    chosen: dict[str, str] = {}
    if (choice := picture.choice) is not None:
        chosen = {
            "score": f"{choice.score:.6g}",
            "measure": choice.measure,
            "candidate": f"{choice.index + 1} of {len(choice.scores)}",
        }
    made = _made_by(model, prompt, picture.seed, name, sampling or {})
    retriever = model.recipe.retriever
    if picture.retrieved and retriever is not None and retriever.bank is not None:
        made["bank"] = retriever.bank
    return PictureFacts(chosen | made | texts, picture.credits)


def answer_as_json(picture: GeneratedImage) -> dict[str, Any] | None:
    """A picture's answer, as in files and the API; None: there is none."""
    answer = picture.answer
    if answer is None:
        return None
    found = None if picture.original is None else picture.retrieved[0].score
    return {
        "kind": answer.kind,
        "asked": answer.asked,
        "thing": answer.thing,
        "similarity": round(answer.score if found is None else found, 3),
        "same_above": answer.same_above,
        "unknown_below": answer.unknown_below,
        "guess": answer.kind == "composed",
        "near": [{"name": name, "similarity": round(score, 3)} for name, score in answer.near],
        "text": picture.told,
    }


def original_of(picture: GeneratedImage) -> list[tuple[str, bytes]]:
    """The original of a picture that was found, with its credits, as (suffix, content) pairs; none: it was drawn."""
    if picture.original is None:
        return []
    [credit] = picture.credits
    return original_files(picture.original, credit)


def marked(picture: GeneratedImage) -> str:
    """What a list of licences says of a picture after its name."""
    return "" if picture.original is None else " (an original, not generated)"


def facts_of_reply(
    model: Model,
    picture: ReplyPicture,
    prompt: str,
    *,
    sampler: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> PictureFacts:
    """The metadata of a picture in a reply to `prompt`; replies use no retrieved documents."""
    return PictureFacts(_made_by(model, prompt, picture.seed, sampler or "", sampling or {}), ())


def facts_of_drawing(
    model: Model,
    prompt: str,
    seed: int,
    credits: Iterable[Credit],
    *,
    sampler: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> PictureFacts:
    """The metadata of a drawing that was made after documents of the caller's choice."""
    return PictureFacts(
        _made_by(model, prompt, seed, sampler or "", sampling or {}), tuple(credits)
    )


def facts_of_adaptation(name: str, credit: Credit) -> PictureFacts:
    """The metadata of a document's drawing in another form, made without a model."""
    return PictureFacts({"prompt": name, ADAPTED: credit.id}, (credit,))


def facts_of_sheet(
    model: Model, pictures: Iterable[GeneratedImage | InfilledImage], **texts: str
) -> PictureFacts:
    """The metadata of a sheet of pictures: all documents that were prepended to any of them."""
    own = {"model": model.name, "recipe_hash": model.recipe_hash}
    return PictureFacts(own | texts, together(one.credits for one in pictures))


def facts_of_preview(pictures: Iterable[Sequence[Credit]]) -> PictureFacts:
    """The metadata of a sheet of growing pictures: the documents of the finished ones."""
    return PictureFacts({}, together(pictures))


def facts_of_documents(documents: Iterable[RetrievedDocument], **texts: str) -> PictureFacts:
    """The metadata of a sheet of documents' own pictures."""
    return PictureFacts(texts, together([Credit(one.id, one.provenance)] for one in documents))


def _made_by(
    model: Model, prompt: str, seed: int, sampler: str, sampling: Mapping[str, Any]
) -> dict[str, str]:
    config = model.sampler_config(sampler or None, **sampling)
    name = sampler or model.recipe.component_names.get("sampler", "")
    return {
        "prompt": prompt,
        "seed": str(seed),
        "model": model.name,
        "step": str(model.step),
        "recipe_hash": model.recipe_hash,
        "sampler": json.dumps({"name": name} | to_plain(config)),
    }
