"""From a name to a model that is ready to generate: its folder, its recipe, its components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cm3core.files import read_text
from cm3core.plugins.registry import Writer, read_writer
from cm3core.recipe.merge import stored_recipe
from cm3core.recipe.recipe import MissingComponent
from cm3core.vocab import Vocabulary
from cm3run.build import Components, build
from cm3run.checkpoint.adapters import load_model
from cm3run.checkpoint.carried import refusal, with_trusted
from cm3run.checkpoint.checks import check_fingerprints
from cm3run.checkpoint.layout import IMAGE_TOKENIZER, RECIPE, TOKENIZER, damaged, find_checkpoint
from cm3run.checkpoint.mapped_weights import map_model, maps
from cm3run.checkpoint.state import read_state
from cm3run.checkpoint.words import TrainingWords
from cm3run.devices import choose_device
from cm3run.trust import check_links, guard, trust_of

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe


_FROM_A_BANK = "or retrieve from a bank of your own (--bank FOLDER) or nothing (--num-retrieved 0)"
_WITHOUT = "or retrieve nothing (--num-retrieved 0)"
#: Other ways out of a refusal.
_HINTS = {"dataset": _FROM_A_BANK, "retriever": _FROM_A_BANK}


@dataclass(eq=False)
class OpenedCheckpoint:
    """A checkpoint ready to draw from: decoder in eval mode. Weights are float32; on a CPU large ones
    are mapped from their file, in float32 or bfloat16 as they are stored."""

    recipe: Recipe
    components: Components
    vocabulary: Vocabulary
    step: int
    folder: Path
    words: TrainingWords | None = None


def read_recipe(folder: Path, registry: Registry, *, trust_endpoints: Sequence[str] = ()) -> Recipe:
    """The recipe stored in a checkpoint.

    Bare names in it mean the plugins that provided them when it was stored. A component that is not
    available is an error only for what needs it, and so is one that names what is outside of the checkpoint
    and may not be used, see `cm3run.trust`.

    Args:
        folder: the checkpoint's.
        registry: the components that the recipe may name.
        trust_endpoints: see `open_checkpoint`.

    Raises:
        CheckpointError: it can't be read.
        TrustError: a link in the folder leads out of it.
    """
    trust = trust_of(folder, registry.models().values(), trust_endpoints)
    check_links(folder, trust)
    try:
        text = read_text(folder / RECIPE)
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(folder / RECIPE, f"can't be read ({error})") from error
    writer = read_writer(folder, damaged)
    recipe = stored_recipe(text, registry, label=str(folder / RECIPE), writer=writer, lenient=True)
    for kind, (_, config) in recipe.components.items():
        if isinstance(config, MissingComponent):
            refused = refusal(registry, folder, _plugins_of(writer, kind))
            if refused is not None:
                config.explain(refused)
        else:
            has_its_own = getattr(config, "own_memory", False)  # which no bank takes the place of
            hint = _WITHOUT if has_its_own else _HINTS.get(kind, "")
            guard(config, trust, str(folder / RECIPE), hint=hint)
    return recipe


def _plugins_of(writer: Writer, kind: str) -> set[str] | None:
    """Return the plugins that provided a section's components; None if that is not known."""
    providers = writer.providers.items()
    return {who.plugin for key, who in providers if key.partition(".")[0] == kind} or None


def open_checkpoint(
    path: str | Path,
    registry: Registry,
    *,
    device: torch.device | str | None = "cpu",
    trust_plugins: Sequence[str] = (),
    trust_endpoints: Sequence[str] = (),
    base: str | Path | None = None,
) -> OpenedCheckpoint:
    """Open a run's newest checkpoint, a checkpoint folder or an exported model, to generate with
    it.

    Args:
        path: where it is.
        registry: the components that its recipe may name.
        device: of the decoder and the image tokenizer; None: the GPU when there is one.
        trust_plugins: SHA-256 of plugin files in the checkpoint that may be run.
        trust_endpoints: what is outside of it that it may use, if this user's commands did not make it:
            hosts (`HOST` or `HOST:PORT`), addresses (`s3://BUCKET`), paths, or what a refusal names.
        base: the model that an adapter was trained on, where it is not in its place any more. An
            adapter is merged into that model's weights in memory.

    Raises:
        CheckpointError: nothing is there, a file is damaged, a tokenizer is another one than in
            training, it needs a plugin file that it carries and that is not trusted, or an adapter's
            base model is missing or another one.
        TrustError: it needs what is outside of it and may not be used.
        MissingPackageError: an adapter without peft.
        RecipeError, PluginError: its recipe needs what is not installed.
    """
    folder = find_checkpoint(path)
    state = read_state(folder)
    if trust_plugins:
        registry = with_trusted(registry, folder, trust_plugins)
    recipe = read_recipe(folder, registry, trust_endpoints=trust_endpoints)
    if isinstance(recipe.objective, MissingComponent) and state.vocabulary.get("control"):
        recipe.objective.refuse()  # it knows where in a prompt its control tokens belong
    chosen = choose_device(device)
    mapped = base is None and maps(folder, recipe, chosen)
    components = build(
        recipe,
        registry,
        stage="generate",
        tokenizer_folder=folder / TOKENIZER,
        image_tokenizer_folder=folder / IMAGE_TOKENIZER,
        device=chosen,
        decoder_device=torch.device("meta") if mapped else None,
        max_spans=state.max_spans,
    )
    components.memory_split = recipe.generate.memory_split
    components.trust = trust_of(folder, registry.models().values(), trust_endpoints)
    check_fingerprints(folder, state, components)
    decoder = components.decoder.module
    if mapped:
        map_model(decoder, folder)
    else:
        load_model(decoder, folder, recipe, registry, base=base, trust_endpoints=trust_endpoints)
    decoder.eval()
    words = TrainingWords.read(folder)
    return OpenedCheckpoint(recipe, components, components.vocabulary, state.step, folder, words)
