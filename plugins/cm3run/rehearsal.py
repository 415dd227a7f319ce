"""A recipe tried on the first documents of its data set: `cm3 recipe check --data`.

Everything that training builds is built, except for weights and caches; sequences are made, masked and measured, and the
prompts of each command are written as its sampler asks for them. What can only be known from the data is found here in
seconds, with the errors that training and the commands would raise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from cm3core.document import Codes, Document, Image, MaskedText, Text, TextHole
from cm3core.errors import CM3Error, RecipeError
from cm3core.sequence.grammar import num_new_tokens
from cm3run.build import Components, build
from cm3run.life import METHODS, Verdict, choice_of, embeds, most_new_tokens, prompt_of, ranks
from cm3run.training.data_notes import check_licences

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

#: Documents that are tried.
NUM_DOCUMENTS = 8
#: What a user types into a prompt.
TYPED = "What is in the picture?"


def rehearse(recipe: Recipe, registry: Registry, life: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Try training and prompts on the first documents of a recipe's data set.

    Args:
        recipe: composed.
        registry: the plugins that it was composed with.
        life: the answers of `cm3run.life.life_of`.

    Returns:
        The answers, corrected by what was found.

    Raises:
        CM3Error: training would be refused: the data set can't be read or has no usable document, documents don't fit
            the context, have other licences than `train.licences`, or a component can't be built.
    """
    if not life["train"].runs:  # this machine lacks something, so nothing can be built
        return dict(life)
    assert recipe.decoder is not None
    without_weights = torch.device("meta") if recipe.decoder.builds_without_weights else None
    components = build(recipe, registry, stage="train", decoder_device=without_weights)
    check_licences(components.source, recipe.train.licences)
    documents = list(_encoded(components))
    _try_sequences(components, documents)
    built = ["upscaler", "finisher", "prompt_rewriter"]
    if life["generate"].runs:
        built += ["reranker"] if ranks(recipe) else []
        built += ["embedder"] if embeds(recipe, reranks=ranks(recipe)) else []
    for part in built:
        getattr(components, part)
    return {
        command: verdict if not verdict.runs else _tried(components, command, documents, verdict)
        for command, verdict in life.items()
    }


def _encoded(components: Components) -> Iterator[Document]:
    """The first documents, with pictures as codes."""
    source, tokenizer = components.source, components.image_tokenizer
    for index in range(min(NUM_DOCUMENTS, len(source))):
        yield tuple(
            Codes(tokenizer.encode_image(segment), tokenizer.grid)
            if isinstance(segment, Image)
            else segment
            for segment in source.document(index)
        )


def _try_sequences(components: Components, documents: list[Document]) -> None:
    """Make training sequences; raises the error of the first that can't be written, or if none fits the context."""
    sequences = [
        components.serializer.sequence(
            document, max_text_tokens=components.recipe.data.max_text_tokens
        )
        for document in documents
    ]
    errors = []
    for number, sequence in enumerate(sequences):
        try:
            components.objective.mask(
                sequence, np.random.default_rng(number), components.context_length
            )
            return
        except CM3Error as error:
            errors.append(error)
    raise RecipeError(
        f"dataset, document {components.source.id(0)}", errors[0].cause, errors[0].next_step
    )


def _tried(
    components: Components, command: str, documents: list[Document], verdict: Verdict
) -> Verdict:
    """The answer for a command after writing its prompt."""
    try:
        if command == "infill":
            picture = next(_of_kind(documents, Codes), None)
            prompt: Document = () if picture is None else (_without_a_code(picture),)
        elif command in METHODS:
            task = choice_of(components.recipe, components.registry).task_for(METHODS[command])
            prompt = prompt_of(task)
            _check_words(components, command, prompt_of(task, TYPED))
            prompt = _of_data(prompt, documents)
        else:
            return verdict
        if prompt:
            _check_prompts(components, command, prompt)
    except CM3Error as error:
        return Verdict(error)
    return verdict


def _without_a_code(picture: Codes) -> Codes:
    """A picture whose first code is missing."""
    missing = np.zeros(len(picture.codes), np.bool_)
    missing[0] = True
    return replace(picture, missing=missing)


def _check_words(components: Components, command: str, prompt: Document) -> None:
    """Raise `RecipeError` if texts of a prompt with a task's own words are longer than texts were in training, see
    `Preparer.prepare`."""
    most = components.recipe.data.max_text_tokens
    for segment in prompt:
        parts = segment.parts if isinstance(segment, MaskedText) else (segment,)
        known = [
            part if isinstance(part, str) else part.text
            for part in parts
            if isinstance(part, (str, Text))
        ]
        if all(text.strip() in ("", TYPED) for text in known):
            continue
        length = sum(len(components.serializer.text_tokens(text)) for text in known)
        length += sum(isinstance(part, TextHole) for part in parts)
        if length > most:
            raise RecipeError(
                command,
                f"its prompts have a text of {length:,} tokens, and data.max_text_tokens is {most:,}",
                f"train with data.max_text_tokens={length + most}",
            )


T = TypeVar("T", Codes, Text)


def _of_kind(documents: list[Document], kind: type[T]) -> Iterator[T]:
    """The segments of a kind in the documents."""
    return (one for document in documents for one in document if isinstance(one, kind))


def _of_data(prompt: Document, documents: list[Document]) -> Document:
    """A prompt with the texts and pictures of a document."""
    picture, text = next(_of_kind(documents, Codes), None), next(_of_kind(documents, Text), None)
    return tuple(
        picture
        if isinstance(segment, Codes) and picture is not None
        else Text(text.text)
        if isinstance(segment, Text) and text is not None
        else segment
        for segment in prompt
    )


def _check_prompts(components: Components, command: str, prompt: Document) -> None:
    """Write the prompt of each guidance stream; raises an error if one doesn't fit the context."""
    context, recipe = components.context_length, components.recipe
    limit = most_new_tokens(recipe)
    prompt = tuple(
        replace(part, max_tokens=limit) if isinstance(part, TextHole) else part for part in prompt
    )
    modality = (
        "text" if any(isinstance(part, (TextHole, MaskedText)) for part in prompt) else "image"
    )
    for stream in components.sampler.plan(modality).streams:
        written = components.serializer.prompt(
            prompt, (), stream.variant, max_text_tokens=recipe.data.max_text_tokens
        )
        needed = len(written.tokens) + num_new_tokens(written.holes)
        if needed > context:
            raise RecipeError(
                command,
                f"a prompt and what it asks for take {needed:,} tokens, and decoder.context_length is {context:,}",
                f"train with decoder.context_length={needed}",
            )
