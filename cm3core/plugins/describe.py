"""Describe one plugin: whether it suits this API, whether its hooks exist, and what they provide.

Imports no torch. Every function takes the plugin's name as `owner` and raises `PluginError` if
something is wrong with it.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import types
import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pluggy

from cm3core import hookspecs
from cm3core import interfaces as base
from cm3core._version import CM3_API, OLDEST_CM3_API
from cm3core.config.schema import check_schema
from cm3core.errors import PluginError, close_match
from cm3core.plugins.kinds import KINDS, Kind

COMMANDS_HOOK = "cm3_commands"
BENCHMARKS_HOOK = "cm3_benchmarks"
MODELS_HOOK = "cm3_models"
KINDS_HOOK = "cm3_kinds"
#: Names of recipe sections and keys that a kind can't use.
RESERVED = ("vocabulary", "train", "tune", "data", "generate", "extends", "name", "sweep")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def check_api(owner: str, plugin: object) -> None:
    """Check that the plugin states the API version it was written for, and that we support it."""
    stated = getattr(plugin, "CM3_API", None)
    if stated is None:
        raise PluginError(
            owner, "does not state CM3_API", f"write `CM3_API = {CM3_API}` in its module"
        )
    if type(stated) is not int:
        raise PluginError(
            owner,
            f"states CM3_API = {stated!r}, which is not an integer",
            f"write `CM3_API = {CM3_API}`",
        )
    if not OLDEST_CM3_API <= stated <= CM3_API:
        served = (
            f"has {CM3_API}"
            if OLDEST_CM3_API == CM3_API
            else f"supports {OLDEST_CM3_API} to {CM3_API}"
        )
        raise PluginError(
            owner,
            f"is written for plugin API {stated}, but this cm3leon {served}",
            "update cm3leon" if stated > CM3_API else "update the plugin",
        )


def register(owner: str, plugin: object, pluggy_manager: pluggy.PluginManager) -> list[str]:
    """Register the plugin with pluggy; return its deprecated uses, one line each.

    These are: stating an older API, or implementing a hook or taking an argument that its `hookspec`
    marks as deprecated (`warn_on_impl`, `warn_on_impl_args`). Python would hide these warnings, or
    attribute them to this module."""
    stated = getattr(plugin, "CM3_API", CM3_API)
    lines = (
        []
        if stated == CM3_API
        else [
            f"is written for plugin API {stated}; this cm3leon has {CM3_API} and still supports it"
        ]
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pluggy_manager.register(plugin, owner)
        except pluggy.PluginValidationError as error:
            if (
                pluggy_manager.get_plugin(owner) is not None
            ):  # some releases keep plugins that they refuse
                pluggy_manager.unregister(name=owner)
            raise PluginError(owner, *_refused(plugin, pluggy_manager, error)) from error
    return lines + [str(warning.message) for warning in caught]


def _refused(
    plugin: object, pluggy_manager: pluggy.PluginManager, error: pluggy.PluginValidationError
) -> tuple[str, str]:
    """Return cause and next step of a refusal by pluggy, usually because of an unknown argument."""
    for name, caller in vars(pluggy_manager.hook).items():
        known, implementation = (
            caller.spec.argnames if caller.has_spec() else (),
            getattr(plugin, name, None),
        )
        taken = inspect.signature(implementation).parameters if callable(implementation) else ()
        if unknown := [argument for argument in taken if argument not in known]:
            return (
                f"{name} takes {', '.join(map(repr, unknown))}, which the hook does not have",
                f"write def {name}({', '.join(known)})",
            )
    return (
        f"is refused by pluggy: {' '.join(str(error).split())}",
        "write hooks as plain functions, as cm3core.hookspecs does",
    )


def new_manager(kinds: Mapping[str, Kind] = KINDS) -> pluggy.PluginManager:
    """A manager without plugins that knows the hooks of the core and of kinds defined by plugins."""
    pluggy_manager = pluggy.PluginManager(hookspecs.PROJECT)
    pluggy_manager.add_hookspecs(hookspecs)
    for name, kind in kinds.items():
        if name not in KINDS:
            pluggy_manager.add_hookspecs(_specification(kind))
    return pluggy_manager


def _specification(kind: Kind) -> Any:
    """The specification of a kind's hook."""

    def hook() -> Mapping[str, type[base.ComponentConfig]]:
        raise NotImplementedError

    hook.__name__, hook.__doc__ = kind.hook, kind.summary
    return types.SimpleNamespace(**{kind.hook: hookspecs.hookspec(hook)})


def ask_kinds(owner: str, plugin: object, known: Mapping[str, Kind]) -> list[Kind]:
    """Return the kinds that a plugin defines, checked.

    `known`: the existing kinds."""
    if not callable(getattr(plugin, KINDS_HOOK, None)):
        return []
    pluggy_manager = new_manager()
    register(owner, plugin, pluggy_manager)
    answer = _call(KINDS_HOOK, plugin, pluggy_manager)
    if answer is None:
        return []  # an unmarked function of that name, which `check_hooks` reports
    if not isinstance(answer, (list, tuple)) or not all(isinstance(row, Kind) for row in answer):
        raise PluginError(
            owner,
            f"{KINDS_HOOK} returned {_shown(answer)}",
            "return a list of cm3core.plugins.Kind",
        )
    taken = dict(known)
    for row in answer:
        _check_kind(f"{owner}: {KINDS_HOOK}", row, taken)
        taken[row.name] = row
    return list(answer)


def _check_kind(place: str, kind: Kind, known: Mapping[str, Kind]) -> None:
    """Check a row: all its parts exist, and its name and hook are not used yet."""
    config, name = kind.config, getattr(kind.config, "kind", "")
    base_class = isinstance(config, type) and issubclass(config, base.ComponentConfig)
    if not base_class or not vars(config).get("kind") or not is_dataclass(config):
        raise PluginError(
            place,
            f"{_shown(config)} is not a base of configs",
            "derive a dataclass from cm3core.interfaces.ComponentConfig, with its own `kind`",
        )
    hooks = {*(row.hook for row in known.values()), *vars(hookspecs)}
    module, kit = sys.modules.get(config.__module__), re.fullmatch(r"([\w.]+:\w+)?", kind.kit)
    rules = (
        (re.fullmatch(r"[a-z][a-z0-9_]*", name), f"the kind is called {name!r}", "use a-z, 0-9, _"),
        (
            name not in known and name not in RESERVED,
            f"the kind {name!r} exists already",
            "choose another name",
        ),
        (
            re.fullmatch(r"cm3_[a-z0-9_]+", kind.hook),
            f"its hook is called {kind.hook!r}",
            "call it cm3_ and what it provides",
        ),
        (kind.hook not in hooks, f"the hook {kind.hook!r} exists already", "choose another name"),
        (
            isinstance(getattr(module, kind.interface, None), type),
            f"{config.__module__} has no class {kind.interface!r}",
            f"put the interface beside {config.__name__}",
        ),
        (
            callable(getattr(config, "build", None)),
            f"{config.__name__} has no `build`",
            "declare it: its signature states the arguments that components are built from",
        ),
        (kit, f"its kit is {kind.kit!r}", 'name it as "module:Class", or "" for none'),
        (
            kind.words.strip() and kind.summary.strip(),
            f"the kind {name!r} has no words or no summary",
            "describe its components",
        ),
    )
    for holds, cause, step in rules:
        if not holds:
            raise PluginError(place, cause, step)


def check_hooks(
    owner: str,
    plugin: object,
    pluggy_manager: pluggy.PluginManager,
    kinds: Mapping[str, Kind] = KINDS,
) -> None:
    """Check that every function called `cm3_*` is marked as a hook, and that the hook exists."""
    known = [
        *(kind.hook for kind in kinds.values()),
        COMMANDS_HOOK,
        BENCHMARKS_HOOK,
        MODELS_HOOK,
        KINDS_HOOK,
    ]
    callers = {caller.name: caller for caller in pluggy_manager.get_hookcallers(plugin) or []}
    for name, caller in callers.items():
        optional = any(
            impl.optionalhook for impl in caller.get_hookimpls() if impl.plugin is plugin
        )
        if not caller.has_spec() and not optional:
            step = close_match(name, known)
            raise PluginError(
                owner,
                f"implements the hook {name!r}, which does not exist",
                step
                if difflib.get_close_matches(name, known, cutoff=0.9)
                else f"{step}; if it belongs to a kind of another plugin, install that plugin, or "
                "write @hookimpl(optionalhook=True)",
            )
    for name in dir(plugin):
        value = getattr(plugin, name, None)
        own = getattr(value, "__module__", None) in (
            getattr(plugin, "__name__", None),
            type(plugin).__module__,
        )
        if name.startswith("cm3_") and name not in callers and callable(value) and own:
            raise PluginError(
                owner,
                f"has a function {name!r} that is not marked as a hook",
                "write @hookimpl above it (from cm3core.hookspecs import hookimpl)",
            )


def _call(hook: str, plugin: object, pluggy_manager: pluggy.PluginManager) -> object:
    """Return this plugin's own result; None if it does not implement the hook."""
    others = [other for other in pluggy_manager.get_plugins() if other is not plugin]
    answers = pluggy_manager.subset_hook_caller(hook, others)(**hookspecs.ARGUMENTS.get(hook, {}))
    return answers[0] if answers else None


def ask(
    owner: str, plugin: object, kind: Kind, pluggy_manager: pluggy.PluginManager
) -> dict[str, type[base.ComponentConfig]]:
    """Return a plugin's config classes for a kind, checked."""
    hook, expected = kind.hook, kind.config
    answer = _call(hook, plugin, pluggy_manager)
    if answer is None:
        return {}
    wanted = f"return a mapping of names to classes derived from {expected.__name__}"
    if not isinstance(answer, Mapping):
        raise PluginError(owner, f"{hook} returned {type(answer).__name__}, not a mapping", wanted)
    for name, config_class in answer.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise PluginError(
                owner,
                f"{hook} returned the name {name!r}",
                "use lower-case letters, digits, '_' and '-'",
            )
        if not isinstance(config_class, type) or not issubclass(config_class, expected):
            cause = (
                f"{hook}: {name!r} is {_shown(config_class)}, not a subclass of {expected.__name__}"
            )
            raise PluginError(owner, cause, wanted)
        _check_config(f"{owner}: {hook}: {name!r}", config_class, expected)
    return dict(answer)


def _check_config(
    place: str, config_class: type[base.ComponentConfig], expected: type[base.ComponentConfig]
) -> None:
    """Check that a config class is itself a dataclass, has a `build`, and suits a recipe."""
    if "__dataclass_params__" not in config_class.__dict__:
        raise PluginError(
            place,
            f"{config_class.__name__} is not a dataclass",
            "write @dataclass(kw_only=True) above it",
        )
    if config_class.build is expected.build:  # type: ignore[attr-defined]  # every kind's base has one
        raise PluginError(
            place,
            f"{config_class.__name__} does not define its own `build`",
            f"define `build` as {expected.__name__}.build describes",
        )
    keys = check_schema(place, config_class)
    for old, new in config_class.renamed.items():
        if old in keys or new not in keys:
            cause = (
                f"is a field of {config_class.__name__}"
                if old in keys
                else f"became {new!r}, which is not a field"
            )
            raise PluginError(
                place,
                f"{config_class.__name__}.renamed: {old!r} {cause}",
                "write renamed = {'the old key': 'the field that replaced it'}",
            )


def ask_functions(
    owner: str, plugin: object, hook: str, pluggy_manager: pluggy.PluginManager
) -> dict[str, str]:
    """Return the functions that a plugin names in a hook, checked: name -> "module:function".

    The hook is `COMMANDS_HOOK` or `BENCHMARKS_HOOK`."""
    answer = _call(hook, plugin, pluggy_manager)
    if answer is None:
        return {}
    valid = isinstance(answer, Mapping) and all(
        isinstance(name, str)
        and NAME.fullmatch(name)
        and isinstance(target, str)
        and re.fullmatch(r"[\w.]+:\w+", target)
        for name, target in answer.items()
    )
    if not valid:
        raise PluginError(
            owner, f"{hook} returned {answer!r}", 'return a mapping of names to "module:function"'
        )
    assert isinstance(answer, Mapping)
    return dict(answer)


def ask_models(owner: str, plugin: object, pluggy_manager: pluggy.PluginManager) -> dict[str, Path]:
    """Return the models that a plugin ships, checked: name -> folder."""
    answer = _call(MODELS_HOOK, plugin, pluggy_manager)
    if answer is None:
        return {}
    if not isinstance(answer, Mapping) or not all(
        isinstance(name, str) and NAME.fullmatch(name) and isinstance(folder, Path)
        for name, folder in answer.items()
    ):
        raise PluginError(
            owner,
            f"{MODELS_HOOK} returned {answer!r}",
            "return a mapping of names to folders (pathlib.Path)",
        )
    return dict(answer)


def _shown(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else repr(value)
