"""Whether a checkpoint belongs to a recipe and to the components that were built from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.errors import CheckpointError
from cm3core.plugins.kinds import KINDS
from cm3core.plugins.registry import class_name
from cm3core.recipe import diff
from cm3core.recipe.recipe import MEASURING, MissingComponent, available
from cm3run.checkpoint.state import CheckpointState

if TYPE_CHECKING:
    from cm3core.recipe import Recipe
    from cm3run.build import Components

#: Keys that may differ between a checkpoint's recipe and the one it is resumed with; everything
#: after a dot included.
CHANGEABLE_KEYS = (
    "name",
    "generate",
    "sampler",
    "prompt_rewriter",
    "finisher",
    "data.cache_dir",
    *MEASURING,  # older runs may have them, and no recipe may now
    # a longer or shorter run; the schedule follows the new length from here on
    "train.steps",
    "train.minutes",
    "train.checkpoint_every_minutes",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.save_in_background",
    "train.log_every_steps",
    "train.validate_every_steps",
    "train.validation_splits",
    "train.validation_documents",
    "train.sample_every_steps",
    "train.trackers",
    "train.num_threads",
)


def check_recipe(folder: Path, stored: Recipe, recipe: Recipe) -> None:
    """Raise `CheckpointError`, with the differences, when a run can't resume under `recipe`."""
    changed = [
        entry
        for entry in diff(stored, recipe)
        if not _is_changeable(entry[0]) and not _names_the_same(entry[0], stored, recipe)
    ]
    changed += [
        (f"{kind}'s plugin", *classes)
        for kind in {**KINDS, **stored.brought, **recipe.brought}
        if not _is_changeable(kind)
        and not any(entry[0] == f"{kind}.name" for entry in changed)
        and (classes := _classes(kind, stored, recipe))[0] != classes[1]
    ]
    if changed:
        lines = "".join(
            f"\n    {key}: {before!r} in the checkpoint, {now!r} now"
            for key, before, now in changed
        )
        raise CheckpointError(
            str(folder),
            f"was made under another recipe:{lines}",
            "start in another folder (-o), or resume with the recipe unchanged",
        )


def check_decoder(folder: Path, stored: Recipe, recipe: Recipe) -> None:
    """Raise `CheckpointError`, with the differences, when a run can't start from a model because the
    recipe's decoder computes something else. Keys of `DecoderConfig.training_keys` may differ."""
    decoder = available(recipe.decoder)
    if decoder is None or isinstance(stored.decoder, MissingComponent):
        return
    free = {f"decoder.{key}" for key in decoder.training_keys}
    changed = [
        (key, there, here)
        for key, there, here in diff(stored, recipe)
        if key.partition(".")[0] == "decoder"
        and key not in free
        and not _names_the_same(key, stored, recipe)
    ]
    # with another component, every key is another one
    changed = [entry for entry in changed if entry[0] == "decoder.name"] or changed
    if changed:
        lines = "".join(
            f"\n    {key}: {there!r} in the model, {here!r} in the recipe"
            for key, there, here in changed
        )
        raise CheckpointError(
            f"train.start_from, {folder}",
            f"has another decoder than the recipe:{lines}",
            "leave the section decoder out of the recipe: 'cm3 tune MODEL RECIPE' takes the model's",
        )


def another_tokenizer(folder: Path, stored: Recipe, recipe: Recipe) -> CheckpointError | None:
    """The error for a tokenizer of the recipe that can't read the files of the model's, which another
    component wrote; None: both have the same components."""
    for kind in ("text_tokenizer", "image_tokenizer"):
        there, here = _classes(kind, stored, recipe)
        if there == here:
            continue
        names = [one.component_names.get(kind) for one in (stored, recipe)]
        return CheckpointError(
            f"train.start_from, {folder}",
            f"has another {kind.replace('_', ' ')} than the recipe:"
            f"\n    {kind}.name: {names[0]!r} in the model, {names[1]!r} in the recipe",
            f"leave the section {kind} out of the recipe: 'cm3 tune MODEL RECIPE' takes the model's",
        )
    return None


def _is_changeable(key: str) -> bool:
    return any(
        key == changeable or key.startswith(changeable + ".") for changeable in CHANGEABLE_KEYS
    )


def _classes(kind: str, stored: Recipe, recipe: Recipe) -> tuple[str | None, str | None]:
    """Who makes a component: its config's class, what is not installed, None without a section."""

    def told(config: object) -> str | None:
        if isinstance(config, MissingComponent):
            return "one that is not in use"
        return None if config is None else class_name(type(config))

    return told(stored.section(kind)), told(recipe.section(kind))


def _names_the_same(key: str, stored: Recipe, recipe: Recipe) -> bool:
    """Whether it is a component's name that differs only in its plugin, which is the same."""
    kind, _, rest = key.partition(".")
    if rest != "name" or stored.section(kind) is None or recipe.section(kind) is None:
        return False
    there, here = _classes(kind, stored, recipe)
    return (
        there == here
        and not isinstance(stored.section(kind), MissingComponent)
        and len({other.component_names[kind].rpartition("/")[2] for other in (stored, recipe)}) == 1
    )


def check_fingerprints(folder: Path, state: CheckpointState, components: Components) -> None:
    """Raise `CheckpointError` when ids mean something else here than where the checkpoint was
    made."""
    if state.vocabulary != components.vocabulary.to_dict():
        here = components.vocabulary.to_dict()
        changed = [
            f"{name} {state.vocabulary.get(name)} there, {here.get(name)} here"
            for name in dict.fromkeys([*here, "control"])
            if state.vocabulary.get(name) != here.get(name)
        ]
        raise CheckpointError(
            str(folder),
            f"has another vocabulary ({'; '.join(changed) or 'other keys'})",
            "use the tokenizers and the section 'vocabulary' that it was trained with",
        )
    for part, value in components.fingerprints().items():
        if state.fingerprints.get(part) != value:
            name = part.replace("_", " ")
            there = state.fingerprints.get(part)
            raise CheckpointError(
                str(folder),
                f"was made with another {name} (fingerprint {there}, here {value})",
                f"use the {name} that it was trained with",
            )
