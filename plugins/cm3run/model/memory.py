"""A model's memory: the data set it was trained on, or a bank in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, cast

from cm3core.config.overrides import named_config, with_options
from cm3core.config.schema import needs_of
from cm3core.errors import GenerationError
from cm3core.files import user_path
from cm3core.interfaces.retriever import RetrieverConfig
from cm3core.plugins.registry import default_name, finder
from cm3run.bank import Memory, MemoryBank, memory_of
from cm3run.bank_tools import config_of
from cm3run.evaluation.quality import LEAST_PSNR
from cm3run.trust import Trust, check_links, named_by_user, same_guard

if TYPE_CHECKING:
    from pathlib import Path

    from cm3core.interfaces.embedder import EmbedderConfig
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.build import Components


def with_memory(
    recipe: Recipe,
    components: Components,
    bank: str | Path | None,
    settings: Mapping[str, Any],
    retriever: str | None = None,
    split: str | None = None,
    embedder: str | Mapping[str, Any] | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> tuple[Recipe, Components]:
    """A recipe and its components with another memory or other retriever settings.

    See `Model.with_memory`. Decoder and tokenizers stay the same objects; so does the embedder if its config is
    unchanged. `told` is called with what the user should know before the memory is read.
    """
    before = recipe.retriever
    names = dict(recipe.component_names)
    if not _retrieves(before) and bank is None and retriever is None:
        raise GenerationError(
            "retriever",
            f"the model's recipe {recipe.name!r} has none",
            "name a retriever, such as 'bm25', or a memory bank (bank)",
        )
    names["retriever"], config = _retriever(recipe, components.registry, retriever, settings)
    if bank is not None:
        folder = user_path(bank)
        check_links(folder, (components.trust or Trust()).of_folder(folder))
    options = {**settings, **({} if bank is None else {"bank": str(bank)})}
    config = with_options(config, options, find=finder(components.registry))
    config = named_by_user(config, options)
    if split is not None:
        _check_split(recipe, split, config.bank)
    own = recipe.embedder
    if embedder is not None:
        names["embedder"], own = _named_embedder(recipe, components.registry, embedder, config)
    elif own is None and "embedder" in needs_of(config):
        names["embedder"], own = _embedder(components, config, names["retriever"], told)
    recipe = replace(
        recipe,
        retriever=config,
        embedder=own,
        component_names=names,
        generate=replace(
            recipe.generate,
            retrieve=True,
            memory_split=recipe.generate.memory_split if split is None else split,
        ),
    )
    kept = ["source"]
    if own is components.recipe.embedder:
        kept.append("embedder")
    had_its_own = before is not None and before.own_memory
    if bank is None and split is None and not (config.own_memory or had_its_own):
        kept.append("memory")
    return recipe, _changed(components, recipe, split, kept)


def _retrieves(config: RetrieverConfig | None) -> bool:
    return config is not None and config.retrieves


def _retriever(
    recipe: Recipe, registry: Registry, name: str | None, settings: Mapping[str, Any]
) -> tuple[str, RetrieverConfig]:
    """Name and config of the retriever: the named one, the recipe's, or the default if the recipe has none."""
    config, own = recipe.retriever, recipe.component_names.get("retriever", "")
    if name is not None:
        wanted = name
    elif _retrieves(config):
        wanted = own
    else:
        wanted = default_name(registry, "retriever", place="bank")
    if config is not None and wanted == own:
        return wanted, config
    place = "bank" if name is None else "retriever"
    config_class = cast(
        "type[RetrieverConfig]", registry.config_class("retriever", wanted, place=place)
    )
    shared = {}
    if config is not None and config.retrieves and config_class.retrieves:
        shared = {item.name: getattr(config, item.name) for item in fields(RetrieverConfig)}
    if config_class.own_memory:
        shared.pop("bank", None)
    return wanted, same_guard(config, named_config(config_class, shared, "retriever", settings))


def _embedder(
    components: Components, config: RetrieverConfig, retriever: str, told: Callable[[str], None]
) -> tuple[str, EmbedderConfig]:
    """Name and config of the embedder that the retriever's bank was built with; without a bank, the retriever's default
    one, which the user is told."""
    memory = memory_of(config)
    if not isinstance(memory, Memory):
        name, default = _default_embedder(components.registry, config)
        told(
            f"the model has no embedder, so {retriever!r} uses {name!r} (embedder.name names another)"
        )
        return name, default
    maker = memory.manifest.embedder
    found = config_of(
        components.registry, "embedder", maker, place=memory.place, trust=components.trust
    )
    return maker.name, cast("EmbedderConfig", found)


def _default_embedder(registry: Registry, config: RetrieverConfig) -> tuple[str, EmbedderConfig]:
    name = config.default_embedder or default_name(registry, "embedder", place="retriever")
    config_class = cast(
        "type[EmbedderConfig]", registry.config_class("embedder", name, place="embedder")
    )
    return name, named_config(config_class, {}, "embedder")


def _named_embedder(
    recipe: Recipe, registry: Registry, given: str | Mapping[str, Any], config: RetrieverConfig
) -> tuple[str, EmbedderConfig]:
    """Name and config of the embedder that the user names, or the model's with other keys.

    Args:
        recipe: the model's.
        registry: has the embedders.
        given: a name, or keys with or without "name".
        config: the retriever that it is for.
    """
    keys = {"name": given} if isinstance(given, str) else dict(given)
    name = keys.pop("name", None)
    if name is None and recipe.embedder is not None:
        name, own = recipe.component_names["embedder"], recipe.embedder
    elif name is None:
        name, own = _default_embedder(registry, config)
    else:
        config_class = cast(
            "type[EmbedderConfig]", registry.config_class("embedder", name, place="embedder")
        )
        own = named_config(config_class, {}, "embedder", keys)
    changed = with_options(own, keys, find=finder(registry))
    return name, named_by_user(changed, keys)


def _changed(
    components: Components, recipe: Recipe, split: str | None, kept: Sequence[str]
) -> Components:
    """The components of the changed recipe; those in `kept` are reused."""
    changed = replace(
        components,
        recipe=recipe,
        memory_split=components.memory_split if split is None else split,
    )
    for name in kept:
        if name in vars(components):
            setattr(changed, name, getattr(components, name))
    if _retrieves(recipe.retriever):
        # report an unusable memory now rather than at the first picture
        assert changed.retriever is not None
    return changed


def note_on_bank(components: Components) -> str | None:
    """A warning for users about the model's bank; None: no warning."""
    memory = components.memory
    if not isinstance(memory, MemoryBank):
        return None
    psnr = memory.manifest.codes_psnr
    if psnr is None or psnr >= LEAST_PSNR:
        return None
    return (
        f"the codes of the memory bank {memory.place} keep little of its pictures: median PSNR {psnr:.1f} dB over "
        "non-blank areas of a sample measured when the bank was built. Pictures generated from them are no better; see "
        "docs/data.md, 'What the codes keep of your pictures', for training an image tokenizer on them"
    )


def _check_split(recipe: Recipe, split: str, bank: str | None) -> None:
    if bank is not None:
        raise GenerationError(
            "split",
            f"{split!r} is a split of the data set, but documents are retrieved from the memory bank {bank}",
            "give only one of the two",
        )
    known = recipe.dataset.memory_config().splits if recipe.dataset else ()
    if split not in known:
        raise GenerationError(
            "split",
            f"the model's data set has no split {split!r}",
            f"use one of {', '.join(known)}" if known else "name a memory bank (bank)",
        )
