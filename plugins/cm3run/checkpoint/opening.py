"""From a name to a model that is ready to generate: find its folder, read its recipe, build its components and check
that they fit together.

Large weights are memory-mapped instead of read. A decoder of 7 billion parameters has 14 GB of bfloat16 weights, which
would take 28 GB in float32. It is built without weights, and the file's own tensors become its parameters, in the type
in which they are stored. On a GPU they are loaded for generation alone, see `cm3run.checkpoint.generating`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from cm3core.errors import CheckpointError
from cm3core.files import read_text
from cm3core.plugins.kinds import KINDS
from cm3core.plugins.registry import Writer, class_name, read_writer
from cm3core.recipe import diff
from cm3core.recipe.merge import stored_recipe
from cm3core.recipe.recipe import MEASURING, MissingComponent, available
from cm3core.recipe.sections import FIXED_SECTIONS
from cm3core.vocab import Vocabulary
from cm3run.build import Components, Stored, another_decoder, build
from cm3run.checkpoint.adapters import is_adapter, load_model
from cm3run.checkpoint.carried import refusal, with_trusted
from cm3run.checkpoint.generating import (
    fill,
    load_for_generation,
    one_by_one,
    only_generates,
)
from cm3run.checkpoint.layout import (
    IMAGE_TOKENIZER,
    RECIPE,
    TOKENIZER,
    WEIGHTS,
    CheckpointState,
    check_file,
    damaged,
    find_checkpoint,
    read_state,
)
from cm3run.checkpoint.tensors import check_tensors
from cm3run.checkpoint.words import TrainingWords
from cm3run.devices import check_weights_fit, choose_device
from cm3run.generation.weights import GenerationWeights
from cm3run.mapped import map_tensors
from cm3run.trust import check_links, guard, trust_of

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder
    from cm3core.interfaces.reach import Reach
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe


#: Sections that training doesn't use: recipes that differ only in these train the same model.
ONLY_IN_GENERATION = (
    "generate",
    "sampler",
    "reranker",
    "upscaler",
    "prompt_rewriter",
    "finisher",
)
#: Keys that may differ between a checkpoint's recipe and the recipe it is resumed with, including
#: everything after a dot.
CHANGEABLE_KEYS = (
    "name",
    *ONLY_IN_GENERATION,
    "data.cache_dir",
    "data.num_streams",  # compared with the loader's, which null stands for
    *MEASURING,  # older runs may have these; current recipes can't
    # a longer or shorter run; the schedule follows the new length from then on
    "train.steps",
    "train.minutes",
    "train.decay_fraction",  # so that a run from before its decay can end soon, and from the same place later
    "train.checkpoint_every_minutes",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.save_in_background",
    "train.log_every_steps",
    "train.validate_every_steps",
    "train.validate_every_minutes",
    "train.validation_splits",
    "train.validation_documents",
    "train.sample_every_steps",
    "train.sample_every_minutes",
    "train.patience",
    "train.trackers",
    "train.num_threads",
    "train.compile",
)


def check_recipe(folder: Path, stored: Recipe, recipe: Recipe) -> None:
    """Raise `CheckpointError` with the differences if a run can't resume under `recipe`."""
    changed = [
        entry
        for entry in diff(stored, recipe)
        if not _is_changeable(entry[0])
        and not _names_the_same(entry[0], stored, recipe)
        and not _only_in_generation(entry[0], recipe)
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


def trains_the_same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes train the same model: they differ only in what training doesn't use."""
    return all(
        key.partition(".")[0] in ("name", *ONLY_IN_GENERATION)
        or _names_the_same(key, one, other)
        or _only_in_generation(key, other)
        for key, _, _ in diff(one, other)
    )


def generating_as(recipe: Recipe, other: Recipe) -> Recipe:
    """The recipe of a trained model, with what training doesn't use taken from another recipe that `trains_the_same`."""
    names, brought = dict(recipe.component_names), dict(recipe.brought)
    changed: dict[str, Any] = {}
    for kind in (*ONLY_IN_GENERATION, "retriever"):
        config = getattr(other, kind) if kind in FIXED_SECTIONS else other.section(kind)
        if kind in FIXED_SECTIONS or kind in KINDS:
            changed[kind] = config
        elif config is not None:
            brought[kind] = config
        else:
            brought.pop(kind, None)
        if config is None:
            names.pop(kind, None)
        elif kind in other.component_names:
            names[kind] = other.component_names[kind]
    return replace(recipe, **changed, brought=brought, component_names=names)


def check_decoder(folder: Path, stored: Recipe, recipe: Recipe) -> None:
    """Raise `CheckpointError` with the differences if a run can't start from a model because the
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
    # a different component changes every key, so report only its name
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
    """The error for a recipe's tokenizer that can't read the files of the model's, which another
    component wrote; None: both are the same component."""
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


def _only_in_generation(key: str, recipe: Recipe) -> bool:
    """Whether it is a key of the retriever that changes nothing in training."""
    kind, _, name = key.partition(".")
    keys = getattr(recipe.retriever, "only_in_generation", ())
    return kind == "retriever" and name.partition(".")[0] in keys


def _classes(kind: str, stored: Recipe, recipe: Recipe) -> tuple[str | None, str | None]:
    """A component's config class in each recipe; the missing plugin if it is not installed, None without a section."""

    def told(config: object) -> str | None:
        if isinstance(config, MissingComponent):
            return "one that is not in use"
        return None if config is None else class_name(type(config))

    return told(stored.section(kind)), told(recipe.section(kind))


def _names_the_same(key: str, stored: Recipe, recipe: Recipe) -> bool:
    """Whether it is a component's name that differs only in its plugin prefix, and means the same plugin."""
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
    """Raise `CheckpointError` if ids have another meaning here than where the checkpoint was
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


#: Size in bytes from which a weight file is memory-mapped. Smaller ones are read into float32.
MAPPED_FROM = 256_000_000
#: Types that are computed with in their stored form.
KEPT = (torch.float32, torch.bfloat16)


def maps(folder: Path, recipe: Recipe, device: torch.device) -> bool:
    """Whether a checkpoint's weights are memory-mapped: on a CPU, for a whole model in one large file, if
    the decoder can be built without weights."""
    if device.type != "cpu" or is_adapter(folder) or recipe.decoder is None:
        return False
    path = folder / WEIGHTS
    large = path.is_file() and path.stat().st_size >= MAPPED_FROM
    return large and bool(getattr(recipe.decoder, "builds_without_weights", False))


def map_model(decoder: nn.Module, folder: Path) -> None:
    """Use a checkpoint's tensors as the parameters of a decoder that was built on "meta".

    Types other than bfloat16 and float32 are read into float32.

    Raises:
        CheckpointError: they belong to another decoder, or are damaged.
    """
    path = folder / WEIGHTS
    try:
        stored = map_tensors(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, f"is not a complete safetensors file ({error})") from error
    check_file(folder, WEIGHTS, read_state(folder))
    check_tensors(path, stored, decoder.state_dict())
    kept = {
        name: tensor if tensor.dtype in KEPT else tensor.float() for name, tensor in stored.items()
    }
    decoder.load_state_dict(kept, assign=True)


_FROM_A_BANK = "or retrieve from a bank of your own (--bank FOLDER) or nothing (--num-retrieved 0)"
_WITHOUT = "or retrieve nothing (--num-retrieved 0)"
#: Alternatives to offer in a refusal.
_HINTS = {"dataset": _FROM_A_BANK, "retriever": _FROM_A_BANK}


@dataclass(eq=False)
class OpenedCheckpoint:
    """A checkpoint ready to generate: decoder in eval mode. Weights are float32; on a CPU large ones
    are memory-mapped, in float32 or bfloat16 as stored."""

    recipe: Recipe
    components: Components
    vocabulary: Vocabulary
    step: int
    folder: Path
    words: TrainingWords | None = None


def read_recipe(
    folder: Path,
    registry: Registry,
    *,
    trust_endpoints: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe stored in a checkpoint.

    Bare names refer to the plugins that provided the components when it was stored. A component that is not
    available, or that names external resources without permission (see `cm3run.trust`), raises an error only when it
    is used.

    Args:
        folder: the checkpoint's.
        registry: the components that the recipe may name.
        trust_endpoints: see `open_checkpoint`.
        overrides: `section.key=value` of the user, which may name any resource.

    Raises:
        CheckpointError: it can't be read.
        RecipeError, PluginError: an override is wrong.
        TrustError: a link in the folder points outside it.
    """
    trust = trust_of(folder, registry.models().values(), trust_endpoints)
    check_links(folder, trust)
    try:
        text = read_text(folder / RECIPE)
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(folder / RECIPE, f"can't be read ({error})") from error
    if all(not line or line.startswith("#") for line in map(str.strip, text.splitlines())):
        raise damaged(folder / RECIPE, "is empty: its content was lost after it was written")
    writer = read_writer(folder, damaged)
    recipe = stored_recipe(
        text,
        registry,
        label=str(folder / RECIPE),
        writer=writer,
        lenient=True,
        overrides=overrides,
    )
    given = {one.partition("=")[0] for one in overrides}
    for kind, (_, config) in recipe.components.items():
        if isinstance(config, MissingComponent):
            refused = refusal(registry, folder, _plugins_of(writer, kind))
            if refused is not None:
                config.explain(refused)
        else:
            has_its_own = getattr(config, "own_memory", False)  # a bank can't replace it
            hint = _WITHOUT if has_its_own else _HINTS.get(kind, "")
            stored = partial(_is_stored, kind, given)
            guard(config, trust, str(folder / RECIPE), only=stored, hint=hint)
    return recipe


def _is_stored(kind: str, given: Collection[str], reach: Reach) -> bool:
    """Whether a resource is named by the stored recipe and not by the user's overrides."""
    return f"{kind}.{reach.key}" not in given


def _plugins_of(writer: Writer, kind: str) -> set[str] | None:
    """Return the plugins that provided a section's components; None if unknown."""
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
    """Open a run's newest checkpoint, a checkpoint folder or an exported model for
    generation.

    Args:
        path: where it is.
        registry: the components that its recipe may name.
        device: of the decoder and the image tokenizer; None: the GPU if there is one.
        trust_plugins: SHA-256 hashes of plugin files in the checkpoint that may run.
        trust_endpoints: resources outside it that it may use, if this user's commands did not make it:
            hosts (`HOST` or `HOST:PORT`), addresses (`s3://BUCKET`), paths, or names shown in a refusal.
        base: path of the model that an adapter was trained on, if it has moved. The adapter is merged
            into that model's weights in memory.

    Raises:
        CheckpointError: there is no checkpoint, a file is damaged, a tokenizer differs from the one in
            training, it needs an untrusted plugin file that it contains, or an adapter's
            base model is missing or has changed.
        TrustError: it needs an untrusted resource outside its folder.
        MissingPackageError: it is an adapter and peft is missing.
        RecipeError, PluginError: its recipe needs a component that is not installed.
    """
    return _open(path, registry, _Asked(device, trust_plugins, trust_endpoints, base=base))


def open_for_generation(
    path: str | Path,
    registry: Registry,
    *,
    device: torch.device | str | None = None,
    precision: str = "auto",
    trust_plugins: Sequence[str] = (),
    trust_endpoints: Sequence[str] = (),
) -> OpenedCheckpoint:
    """`open_checkpoint` for generation in a precision of `Decoder.for_inference`: on a GPU in bfloat16, only what
    generation reads is loaded; `Components.decoder` then loads the float32 weights when it is first asked for, which
    likelihoods and training do."""
    asked = _Asked(device, trust_plugins, trust_endpoints, precision=precision)
    return _open(path, registry, asked)


@dataclass(frozen=True)
class _Asked:
    """Arguments of `open_checkpoint` and `open_for_generation`."""

    device: torch.device | str | None
    trust_plugins: Sequence[str]
    trust_endpoints: Sequence[str]
    base: str | Path | None = None
    precision: str | None = None


def _open(path: str | Path, registry: Registry, asked: _Asked) -> OpenedCheckpoint:
    folder = find_checkpoint(path)
    state = read_state(folder)
    if asked.trust_plugins:
        registry = with_trusted(registry, folder, asked.trust_plugins)
    endpoints, base = asked.trust_endpoints, asked.base
    recipe = read_recipe(folder, registry, trust_endpoints=endpoints)
    if isinstance(recipe.objective, MissingComponent) and state.vocabulary.get("control"):
        recipe.objective.refuse()  # it determines where control tokens belong in a prompt
    chosen = choose_device(asked.device)
    mapped = base is None and maps(folder, recipe, chosen)
    narrow = only_generates(folder, recipe, chosen, asked.precision)
    components = build(
        recipe,
        registry,
        stage="generate",
        stored=_stored(folder, state),
        device=chosen,
        decoder_device=torch.device("meta") if mapped or narrow else None,
    )
    components.memory_split = recipe.generate.memory_split
    components.trust = trust_of(folder, registry.models().values(), endpoints)
    check_fingerprints(folder, state, components)
    decoder = components.decoder.module
    if narrow:
        _narrow(components, folder, chosen)
    elif mapped:
        map_model(decoder, folder)
    else:
        load_model(decoder, folder, recipe, registry, base=base, trust_endpoints=endpoints)
    decoder.eval()
    words = TrainingWords.read(folder)
    return OpenedCheckpoint(recipe, components, components.vocabulary, state.step, folder, words)


def _narrow(components: Components, folder: Path, device: torch.device) -> None:
    """Load what generation reads of a checkpoint whose decoder was built on "meta"."""
    decoder, config = components.decoder, components.recipe.decoder
    assert config is not None
    grid = components.image_tokenizer.grid
    check_weights_fit(config, components.vocabulary, grid, device, torch.bfloat16)
    weights = load_for_generation(decoder, folder, device)

    def whole() -> Decoder:
        made = another_decoder(components, device)
        fill(made, weights)
        made.module.eval()
        return made

    components.own_decoder = GenerationWeights(decoder, whole, partial(one_by_one, weights))


def _stored(folder: Path, state: CheckpointState) -> Stored:
    tokenizers = {"text_tokenizer": folder / TOKENIZER, "image_tokenizer": folder / IMAGE_TOKENIZER}
    return Stored(**tokenizers, max_spans=state.max_spans)
