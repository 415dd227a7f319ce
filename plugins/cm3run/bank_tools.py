"""Build the embedder and image tokenizer of a memory bank: as a recipe specifies, or as the bank's manifest
records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.arguments import checked
from cm3core.config.schema import check_config, to_plain
from cm3core.errors import DataError
from cm3core.files import user_path
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3core.plugins.registry import OURS, built
from cm3core.recipe.merge import stored_recipe
from cm3run.bank import Manifest, MemoryBank, Tools
from cm3run.bank.manifest import MANIFEST
from cm3run.build import image_tokenizer_of, section
from cm3run.trust import Trust, check_links, guard, reaches_of, refused_by, trust_of

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.bank.manifest import Maker


def config_of(
    registry: Registry, kind: str, maker: Maker, *, place: str, trust: Trust | None = None
) -> Any:
    """The config of a component named in a bank's manifest, with its values checked like a recipe's.

    Args:
        registry: the available components.
        kind, maker: of the component.
        place: the bank's folder or address.
        trust: resources that the bank's model may use; None: nothing outside the bank except what the user named
            when building it.
    """
    values = {kind: {"name": maker.name, **maker.config}}
    recipe = stored_recipe(json.dumps(values), registry, label=place, writer=OURS)
    config = getattr(recipe, kind)
    guard(config, (trust or Trust()).of_folder(Path(place)), place)
    return config


def tools_of(recipe: Recipe, image_tokenizer_folder: Path | None = None) -> Tools:
    """The tools that a recipe specifies for memory banks.

    Args:
        recipe: has sections embedder and image_tokenizer.
        image_tokenizer_folder: see `cm3run.build.build`.
    """
    embedder, tokenizer = section(recipe, "embedder"), section(recipe, "image_tokenizer")
    check_config(embedder)
    check_config(tokenizer)
    named = [one for config in (embedder, tokenizer) for one in reaches_of(config)]
    refused = [one for config in (embedder, tokenizer) for one in refused_by(config)]
    return Tools(
        built(embedder.build(), embedder),
        image_tokenizer_of(tokenizer, image_tokenizer_folder),
        recipe.component_names["embedder"],
        to_plain(embedder),
        recipe.component_names["image_tokenizer"],
        to_plain(tokenizer),
        reaches=tuple(one for one in named if one not in refused),
    )


@checked(DataError)
def bank_tools(
    folder: str | Path, registry: Registry, *, trust_endpoints: Sequence[str] = ()
) -> Tools:
    """Rebuild a bank's tools from its manifest and files.

    Args:
        folder: the bank's.
        registry: the available components.
        trust_endpoints: resources outside the bank that it may use, see `open_checkpoint`.

    Raises:
        TrustError: it needs an untrusted resource outside the bank.
        DataError: not a bank, or the rebuilt tools differ from those it was made with.
        PluginError, RecipeError: a component is not installed, or its keys have changed.
    """
    folder = user_path(folder)
    manifest = Manifest.read(folder)
    makers = {"embedder": manifest.embedder, "image_tokenizer": manifest.image_tokenizer}
    values = {kind: {"name": maker.name, **maker.config} for kind, maker in makers.items()}
    place = str(folder / MANIFEST)
    recipe = stored_recipe(json.dumps(values), registry, label=place, writer=OURS)
    trust = trust_of(folder, (), trust_endpoints)
    check_links(folder, trust)
    for kind in makers:
        guard(getattr(recipe, kind), trust, place)
    tools = tools_of(recipe, folder / IMAGE_TOKENIZER)
    bank = MemoryBank.open(folder)
    bank.check_embedder(tools.embedder)
    bank.check_tokenizer(tools.image_tokenizer)
    return tools
