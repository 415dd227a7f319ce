"""Describe one plugin: is it written for this API, do its hooks exist, what do they provide?

Imports no torch. Every function takes the plugin's name as `owner` and raises `PluginError` if
something is wrong with it.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import pluggy

from cm3core import hookspecs
from cm3core import interfaces as base
from cm3core._version import CM3_API, OLDEST_CM3_API
from cm3core.config.schema import check_schema, hints
from cm3core.errors import PluginError, close_match
from cm3core.plugins.kinds import KINDS

COMMANDS_HOOK = "cm3_commands"
BENCHMARKS_HOOK = "cm3_benchmarks"
MODELS_HOOK = "cm3_models"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def check_api(owner: str, plugin: object) -> None:
    """Check that the plugin states the API version it was written for, and that we support it."""
    stated = getattr(plugin, "CM3_API", None)
    if stated is None:
        raise PluginError(owner, "states no CM3_API", f"write `CM3_API = {CM3_API}` in its module")
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
            f"is written for plugin API {stated}, this cm3leon {served}",
            "update cm3leon" if stated > CM3_API else "update the plugin",
        )


def register(owner: str, plugin: object, pluggy_manager: pluggy.PluginManager) -> list[str]:
    """Register the plugin with pluggy; return what it does that is deprecated, a line each.

    That is: stating an older API, or implementing a hook or taking an argument that its `hookspec`
    marks as deprecated (`warn_on_impl`, `warn_on_impl_args`). Python would hide these warnings, or
    blame a line of this module."""
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
            raise PluginError(owner, *_refused(plugin, pluggy_manager, error)) from error
    return lines + [str(warning.message) for warning in caught]


def _refused(
    plugin: object, pluggy_manager: pluggy.PluginManager, error: pluggy.PluginValidationError
) -> tuple[str, str]:
    """Return cause and next step of a refusal by pluggy, mostly an argument of no hook."""
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


def check_hooks(owner: str, plugin: object, pluggy_manager: pluggy.PluginManager) -> None:
    """Check that every function called `cm3_*` is marked as a hook, and that the hook exists."""
    known = [*(kind.hook for kind in KINDS.values()), COMMANDS_HOOK, BENCHMARKS_HOOK, MODELS_HOOK]
    callers = {caller.name: caller for caller in pluggy_manager.get_hookcallers(plugin) or []}
    for name, caller in callers.items():
        optional = any(
            impl.optionalhook for impl in caller.get_hookimpls() if impl.plugin is plugin
        )
        if not caller.has_spec() and not optional:
            raise PluginError(
                owner,
                f"implements the hook {name!r}, which does not exist",
                close_match(name, known),
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
    """Return this plugin's own answer; None if it does not implement the hook."""
    others = [other for other in pluggy_manager.get_plugins() if other is not plugin]
    answers = pluggy_manager.subset_hook_caller(hook, others)(**hookspecs.ARGUMENTS.get(hook, {}))
    return answers[0] if answers else None


def ask(
    owner: str, plugin: object, kind: str, pluggy_manager: pluggy.PluginManager
) -> dict[str, type[base.ComponentConfig]]:
    """Return the config classes that a plugin provides for a kind, checked."""
    hook, expected = KINDS[kind].hook, KINDS[kind].config
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
    """Check that a config class is itself a dataclass, has a `build`, and fits a recipe."""
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
    check_schema(place, config_class)
    keys = hints(config_class)
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
