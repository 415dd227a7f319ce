"""Trained parts for recipes: `image_tokenizer=runs/codes`.

A place holds parts of three sorts:

    the folder of a command that trains one part    the part whose keys name files in it
    a model: a run, a checkpoint, an exported one   every section of its recipe; tokenizers with the files saved there
    a memory bank                                   a retriever over it, its embedder and its image tokenizer

Values of a model from somebody else can't use resources outside its folder without permission (`cm3run.trust`). Imports
no torch for folders, unless they are banks.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cm3core.errors import CM3Error, PluginError, RecipeError
from cm3core.files import user_path
from cm3core.interfaces.component import ComponentConfig
from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
from cm3core.interfaces.text_tokenizer import TextTokenizerConfig
from cm3core.plugins.registry import OURS, Writer, default_name, read_writer
from cm3core.recipe.layers import STORED, parse, read
from cm3core.recipe.merge import stored_recipe
from cm3core.recipe.places import Part
from cm3run.checkpoint.layout import STATE, complete_checkpoints, find_checkpoint
from cm3run.checkpoint.naming import find_model, lasting_name
from cm3run.trust import Trust, check_links, guard_layer, reaches_of, trust_of

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry

#: Configs of components whose files are in a model, in the folder named after their kind.
_SAVING = (TextTokenizerConfig, ImageTokenizerConfig)
#: The sections that decide what a decoder's ids mean.
_MEANING = ("text_tokenizer", "image_tokenizer", "layout", "vocabulary")
#: Of a memory bank and of token shards.
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class _Source:
    """What a place holds.

    Args:
        folder: where it is.
        described: the file that describes it.
        sections: kind -> the values of its section.
        writer: resolves bare names in them.
        trust: outside resources that they may use.
        is_model: whether it is a whole model or a bank, so that every section is usable, with the files in the folder
            named after its kind.
        needed: kind -> the other sections that a part of this kind can't do without, and their values; None: it has
            none.
    """

    folder: Path
    described: Path
    sections: Mapping[str, Any]
    writer: Writer
    trust: Trust
    is_model: bool
    needed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def part_at(
    place: str,
    kind: str,
    registry: Registry,
    *,
    origin: str,
    trust_endpoints: Sequence[str] = (),
) -> Part:
    """Return the trained part of a kind at a place.

    Args:
        place: a folder, a file in it, "PLUGIN:NAME" or "hf://USER/NAME[@REVISION]".
        kind: the part's.
        registry: the available components.
        origin: where the place is written, for errors.
        trust_endpoints: outside resources that a part made by somebody else may use, see `trust_of`.

    Raises:
        CM3Error: there is no such place, it holds no such part, or it is damaged.
        TrustError: a link in its folder points outside it.
    """
    shown = f"{origin}={place}"
    try:
        return _part_at(place, kind, registry, shown, trust_endpoints)
    except OSError as error:
        cause = f"can't be read: {error.strerror or error}"
        raise RecipeError(shown, cause, "correct the path or its permissions") from error


def _part_at(
    place: str, kind: str, registry: Registry, shown: str, trust_endpoints: Sequence[str]
) -> Part:
    path = _path(place, kind, registry, shown)
    file = path if path.is_file() and path.name not in (STORED, _MANIFEST) else None
    source = _source(path if path.is_dir() else path.parent, registry, shown, trust_endpoints)
    values = _values(source, kind, registry, shown, file)
    # a decoder's weights are no key of its own
    named = {"train": {"start_from": lasting_name(place, registry)}} if kind == "decoder" else {}
    label = str(source.described)
    guard = partial(guard_layer, trust=source.trust, label=label)
    return Part(label, values, source.writer, guard, source.needed.get(kind, {}), named)


def _path(place: str, kind: str, registry: Registry, shown: str) -> Path:
    """The existing path of a place."""
    path = user_path(find_model(place, registry), shown)
    if path.exists():
        return path
    plugin, slash, _ = place.rpartition("/")
    is_name = slash and "/" not in plugin and plugin.strip(".~")
    no_plugin = f", and no plugin {plugin!r} is loaded" if is_name else ""
    wrong = PluginError if no_plugin else RecipeError
    raise wrong(
        shown,
        f"there is no file or folder {str(path)!r}{no_plugin}",
        registry.with_reasons(
            f"correct the path, or name a component ({', '.join(registry.names(kind))})", kind
        ),
    )


def _source(
    folder: Path, registry: Registry, shown: str, trust_endpoints: Sequence[str]
) -> _Source:
    """What a folder holds. Raises `CM3Error` if it holds no part."""
    is_model = (folder / STATE).is_file() or bool(complete_checkpoints(folder))
    if not is_model and (folder / _MANIFEST).is_file():
        return _bank(folder, registry, trust_endpoints)
    if not is_model and not (folder / STORED).is_file():
        raise _no_part(folder, shown)
    home = find_checkpoint(folder) if is_model else folder
    described = home / STORED
    trust = trust_of(home, registry.models().values(), trust_endpoints)
    check_links(home, trust)
    sections = parse(read(described), str(described))
    # what gives a decoder's ids their meaning
    needed = {"decoder": {one: sections.get(one) for one in _MEANING}}
    writer = read_writer(home, _damaged)
    return _Source(home, described, sections, writer, trust, is_model, needed)


def _damaged(path: Path, cause: str) -> CM3Error:
    return RecipeError(str(path), cause, "copy the whole folder again from its source")


def _no_part(folder: Path, shown: str) -> CM3Error:
    """The error for a folder without a description."""
    try:
        find_checkpoint(folder)  # knows folders of other software
    except CM3Error as error:
        if error.next_step.startswith("convert it"):
            return error
    found = sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))
    holds = f"it holds {', '.join(found[:3])}{', ...' if found[3:] else ''}" if found else "empty"
    return RecipeError(
        shown,
        f"holds no trained part: {folder / STORED} is missing ({holds})",
        "name a folder that a command wrote which trains a part (if it was interrupted, repeat it first), a model or a "
        "memory bank",
    )


def _bank(folder: Path, registry: Registry, trust_endpoints: Sequence[str]) -> _Source:
    """A memory bank: the retriever over it comes with the embedder of its vectors."""
    from cm3run.bank import Manifest

    manifest = Manifest.read(folder)
    makers = {"embedder": manifest.embedder, "image_tokenizer": manifest.image_tokenizer}
    sections: dict[str, Any] = {
        kind: {"name": maker.name, **maker.config} for kind, maker in makers.items()
    }
    retriever = default_name(registry, "retriever", place=str(folder))
    sections["retriever"] = {"name": retriever, "bank": str(folder.absolute())}
    trust = trust_of(folder, (), trust_endpoints)
    check_links(folder, trust)
    needed = {"retriever": {"embedder": sections["embedder"]}}  # only its vectors can be compared
    described = folder / _MANIFEST
    return _Source(folder, described, sections, replace(OURS, stored=True), trust, True, needed)


def _values(
    source: _Source, kind: str, registry: Registry, shown: str, file: Path | None
) -> dict[str, Any]:
    """The values of a part's section, with its own files."""
    if not isinstance(source.sections.get(kind), dict):
        raise _lacks(source, kind, registry, shown)
    config: Any = _config(source, kind, registry)
    saved = source.folder / kind
    if isinstance(config, _SAVING) and source.is_model and saved.is_dir():
        found = config.saved_in(saved.absolute())
        if found is None:
            name = source.sections[kind]["name"]
            raise PluginError(
                shown,
                f"the {kind} {name!r} can't be taken out of a model: it has no keys for the files that are saved there",
                f"write {kind}={name} with its own keys, or tune the whole model (cm3 tune)",
            )
        config = found
    elif not source.is_model:
        own = own_files(config, source.folder)
        if not own:
            raise _lacks(source, kind, registry, shown)
        config = replace(config, **own)
    if file is not None and str(file.absolute()) not in vars(config).values():
        raise RecipeError(
            shown,
            f"is not the file that {source.described} names for this {kind}",
            f"write {kind}={shlex.quote(str(source.folder))}",
        )
    return _section(config, source, kind)


def _config(source: _Source, kind: str, registry: Registry) -> Any:
    """The part's config, as its folder describes it."""
    text = OmegaConf.to_yaml(OmegaConf.create({kind: source.sections[kind]}))
    label = str(source.described)
    return getattr(stored_recipe(text, registry, label=label, writer=source.writer), kind)


def _section(config: ComponentConfig, source: _Source, kind: str) -> dict[str, Any]:
    """The section of a recipe with these values, which interpolates nothing."""
    from cm3core.recipe.recipe import Recipe

    name = source.sections[kind]["name"]
    sections: dict[str, Any] = {kind: config}
    made = Recipe(name="part", component_names={kind: name}, **sections)
    values: dict[str, Any] = parse(made.to_yaml(), str(source.described))[kind]
    return values


def own_files(config: ComponentConfig, folder: Path) -> dict[str, str]:
    """The keys of a component that name files in its folder -> the files' present paths: the folder may have been
    moved."""
    named = {one.key: one.value for one in reaches_of(config) if one.value}
    return {
        item.name: str(path.absolute())
        for item in fields(config)
        if item.name in named and (path := folder / Path(named[item.name]).name).is_file()
    }


def _lacks(source: _Source, kind: str, registry: Registry, shown: str) -> CM3Error:
    """The error for a place that holds other parts."""
    held = {
        one: str(values["name"])
        for one, values in source.sections.items()
        if one in registry.kinds
        and isinstance(values, dict)
        and isinstance(values.get("name"), str)
        and _is_held(source, one, registry)
    }
    if not held:
        return RecipeError(
            shown,
            f"{source.described} names no file that is in the folder",
            "copy the whole folder again from its source",
        )
    listed = ", ".join(f"{one} ({name})" for one, name in held.items())
    other = f"write {next(iter(held))}={shlex.quote(shown.partition('=')[2])}, or "
    return RecipeError(
        shown,
        f"has no {kind}; it has {listed}",
        f"{other if len(held) == 1 else ''}name another place, or a component "
        f"({', '.join(registry.names(kind)) or 'there is none'})",
    )


def _is_held(source: _Source, kind: str, registry: Registry) -> bool:
    if source.is_model:
        return True
    try:
        return bool(own_files(_config(source, kind, registry), source.folder))
    except CM3Error:
        return False
