"""What a card says of a model beside its scores: what it is, what it learned from, what that took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cm3apps.evaluation.model_keys import weights_sha256
from cm3core.plugins.registry import Registry
from cm3run.checkpoint import WEIGHTS, find_checkpoint, find_model, read_state
from cm3run.model import Model
from cm3run.training.data_notes import counted, stored_provenance


@dataclass(frozen=True)
class ModelFacts:
    """A model.

    Args:
        name: as `cm3` commands are given it.
        recipe, recipe_hash: its recipe's name and hash.
        weights_sha256: of the decoder's tensors, see `weights_sha256`.
        components: kind -> the recipe's component of it.
        num_parameters: of the decoder.
        num_bytes: of its file of weights.
        image_size: (height, width) of its pictures, in pixels.
        num_codes, codebook_size: of a picture, and of the image tokenizer.
        context_length, max_text_tokens: in tokens.
        steps, tokens, seconds: of training; 0 where the checkpoint does not say.
        tasks: that it was tuned for.
        data_set, split: the names of its data set and split.
        trained_on: licences, sources and attributions of its documents with their numbers.
        retrieves_from: the same of its memory; empty where it retrieves nothing.
    """

    name: str
    recipe: str
    recipe_hash: str
    weights_sha256: str
    components: Mapping[str, str]
    num_parameters: int
    num_bytes: int
    image_size: tuple[int, int]
    num_codes: int
    codebook_size: int
    context_length: int
    max_text_tokens: int
    steps: int
    tokens: int
    seconds: float
    tasks: Sequence[str]
    data_set: str
    split: str
    trained_on: Sequence[Mapping[str, Any]]
    retrieves_from: Sequence[Mapping[str, Any]]


def facts_of(name: str, model: Model, registry: Registry) -> ModelFacts:
    """What a loaded model and its folder say.

    Raises:
        CheckpointError: the folder's state can't be read.
    """
    folder = find_checkpoint(find_model(name, registry))
    state = read_state(folder)
    recipe, components = model.recipe, model.components
    tokenizer = components.image_tokenizer
    rows, columns = tokenizer.grid
    parameters = components.decoder.module.parameters()
    retrieves = recipe.retriever is not None and recipe.retriever.num_retrieved > 0
    known = stored_provenance(folder)
    trained_on = known.get("trained_on") or counted(components.source)
    # what the run wrote is the memory of training; `generate.memory_split` is another one
    same = known.get("memory") if components.memory_split is None else None
    memory = (same or counted(components.memory)) if retrieves else []
    return ModelFacts(
        name=name,
        recipe=recipe.name,
        recipe_hash=recipe.hash,
        weights_sha256=weights_sha256(model),
        components=dict(recipe.component_names),
        num_parameters=sum(one.numel() for one in parameters),
        num_bytes=(folder / WEIGHTS).stat().st_size,
        image_size=tokenizer.image_size,
        num_codes=rows * columns,
        codebook_size=tokenizer.codebook_size,
        context_length=int(getattr(recipe.decoder, "context_length", 0)),
        max_text_tokens=recipe.data.max_text_tokens,
        steps=state.step,
        tokens=state.tokens,
        seconds=float(state.elapsed_s),
        tasks=tuple(model.tasks.names),
        data_set=recipe.component_names.get("dataset", ""),
        split="" if recipe.dataset is None else recipe.dataset.split,
        trained_on=trained_on,
        retrieves_from=memory,
    )
