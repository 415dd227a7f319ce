"""The base of every kind's config; range checks; laws that are checked while components run; the description of a
kind.

Imports no torch."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from glob import has_magic, iglob
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from cm3core.arguments import check_fields
from cm3core.errors import MissingPackageError, PluginError, RecipeError
from cm3core.files import user_path
from cm3core.interfaces.reach import READS, Outside, Reach

#: Default ranges of numbers: 64-bit integers, and 32-bit floats with room for a product.
_INT_RANGE, _FLOAT_RANGE = (-(2**63), 2**63 - 1), (-1e30, 1e30)


@dataclass(kw_only=True)
class ComponentConfig:
    """Base of every component's config: a dataclass whose fields are a recipe section's keys.

    Fields may be `bool`, `int`, `float`, `str`, optional forms of these, lists and dicts of them,
    nested dataclasses, and other components (annotated with the base of a kind's configs, such as
    `dict[str, RetrieverConfig]`), which the recipe names; OmegaConf checks the types. A recipe must set every field
    without a default. Check conditions that types can't express (ranges, combinations) in `check`, so that
    `cm3 recipe check` finds errors without building.
    """

    # the name by which a recipe chose a component inside another one; not part of a config's `vars`
    __slots__ = ("__dict__", "__weakref__", "_chosen_name")

    #: Recipe name of the kind, e.g. "image_tokenizer"; set by each kind's base.
    kind: ClassVar[str] = ""
    #: Other sections that a recipe with this component must have, e.g. ("embedder",);
    #: `cm3 recipe check` requires them. Needs that depend on values, or on what another component can do: `requires`.
    needs: ClassVar[tuple[str, ...]] = ()
    #: Packages that `build` imports and an extra of this distribution installs: import name -> the line that installs it,
    #: e.g. {"usearch": "pip install 'cm3leon[usearch]'"}.
    packages: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: Whether this component is used when its kind is needed but none is named, such as the
    #: retriever over a bank that a model without one is given. Not inherited by subclasses.
    is_default: ClassVar[bool] = False
    #: Keys of earlier versions: old name -> the field that replaced it. Recipes and checkpoints
    #: with an old name still work, with a warning that gives the new name.
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: New key -> its value in recipes and protocols that were stored without it, if not the default.
    earlier: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    #: Smallest and largest value of each numeric key: wider than any use, but narrow enough
    #: to prevent overflow. Nested keys are dotted ("training.batch_size"). A subclass adds to
    #: its bases' keys. Other integers must fit 64 bits, other floats must be finite in 32 bits.
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = MappingProxyType({})
    #: Declares the external resources that each text key names: `TEXT` (none), or `Outside(READS, "its
    #: pictures")`. Nested keys are dotted. A subclass adds to its bases' keys. A model from someone else
    #: may use declared resources only if the user allows them; the same applies to undeclared values that look like a
    #: path or an address.
    outside: ClassVar[Mapping[str, Outside]] = MappingProxyType({})

    def needed(self) -> tuple[str, ...]:
        """Return the other sections that a recipe with these values must have; by default `needs`."""
        return self.needs

    def reaches(self) -> list[Reach]:
        """Return external resources that `outside` can't express: those named by several keys together,
        or used when a key is left out. None by default."""
        return []

    def in_short(self) -> list[str]:
        """Return sentences about the component with these values, which `cm3 describe` shows for the defaults. By
        default none."""
        return []

    #: Keys that don't affect the component's output: they set speed, memory, devices, file
    #: locations, or training. The conformance kits require that every other key affects it. A
    #: subclass adds to its bases' keys.
    not_in_outputs: ClassVar[tuple[str, ...]] = ()

    #: What a torch module computes otherwise after `train()` than after `eval()`, in words, such as "drops whole blocks";
    #: "", the default: nothing but dropout (`torch.nn.functional.dropout`), which need not be declared.
    differs_in_training: ClassVar[str] = ""

    #: Keys that came after recipes were hashed: with their defaults they are not written, so hashes stay. A subclass adds
    #: to its bases' keys.
    later_keys: ClassVar[tuple[str, ...]] = ()

    def offers(self) -> Mapping[str, bool]:
        """Return what a model with this component can do, or can't because of it: the name of an ability
        (`cm3core.recipe.abilities`) -> whether. Leave out abilities that the component has no part in. A model has an
        ability if one of its components offers it and none rules it out."""
        return {}

    def requires(self) -> tuple[str, ...]:
        """Return the abilities that a model with this component must have, whatever is asked of it."""
        return ()

    def check_ready(self) -> None:
        """Raise `RecipeError` for what `build` can't do without: a key that is null, a file that doesn't exist.

        `check` accepts such values, since a component may be configured before its weights are trained. Light: files
        are looked for, not read. This method looks for the files and folders of keys that `outside` declares as `READS`."""
        for key, declared, value in _read_keys(self):
            if value is None:
                check_given(f"{self.kind}.{key}", value, declared.needed, why=declared.why)
            else:
                check_exists(f"{self.kind}.{key}", value)

    def check_machine(self, device: str) -> None:
        """Raise `DeviceError` or `MissingPackageError` if the component can't be used on this machine.

        Must stay light: no torch. This method looks for `packages`.

        Args:
            device: type of the device, such as "cpu" or "cuda".
        """
        for package, install in self.packages.items():
            if find_spec(package) is None:
                raise MissingPackageError(
                    f"{self.kind}", f"the package {package!r} is not installed", install
                )

    def check(self) -> None:
        """Raise `RecipeError` if the values can't work together.

        Must stay light: no torch, no reading of files. This method checks the fields' types and `ranges`: an override
        must begin with `super().check()`. Components in its fields are checked afterwards."""
        check_numbers(self.kind, self, ranges_of(type(self)))


def ranges_of(config_class: type[Any]) -> dict[str, tuple[float, float]]:
    """Return the `ranges` of a config class and of its bases."""
    ranges: dict[str, tuple[float, float]] = {}
    for parent in reversed(config_class.__mro__):
        ranges |= vars(parent).get("ranges", {})
    return ranges


def keys_not_in_outputs(config_class: type[ComponentConfig]) -> set[str]:
    """`not_in_outputs` of a config class and of its bases."""
    return {
        key for parent in config_class.__mro__ for key in vars(parent).get("not_in_outputs", ())
    }


def chosen_name(config: ComponentConfig) -> str:
    """The name by which a recipe chose a component inside another one; "" for any other config."""
    name: str = getattr(config, "_chosen_name", "")
    return name


def choose(config: ComponentConfig, name: str) -> None:
    """Record the name by which a recipe chose the component."""
    object.__setattr__(config, "_chosen_name", name)


def check_value(
    place: str,
    value: object,
    holds: bool,
    next_step: str = "",
    *,
    must_be: str = "",
    instead: str = "",
) -> None:
    """Raise `RecipeError` unless `holds`; for range checks in a config's `check`.

    Args:
        place: the key, "section.key".
        value: the key's value.
        holds: whether the value is allowed; write comparisons so that nan fails.
        next_step: what the user should do; "": write another value.
        must_be: the rule, if `next_step` does not state it: completes "must be ...".
        instead: a value that is allowed, as YAML: the nearest one, or the default.
    """
    if not holds:
        rule = f", must be {must_be}" if must_be else ""
        another = f"write {place}={instead or 'VALUE'}"
        if must_be and not instead:
            another += f", which must be {must_be}"
        raise RecipeError(place, f"is {value!r}{rule}", next_step or another)


def check_given(place: str, value: object, next_step: str, *, why: str = "") -> None:
    """Raise `RecipeError` for a key that is null where a value is needed; for a config's `check_ready`.

    Args:
        place: the key, "section.key".
        value: the key's value.
        next_step: what to type.
        why: what the key names: "its weights".
    """
    if value is None:
        raise RecipeError(place, f"is null{f', and has to name {why}' if why else ''}", next_step)


def check_exists(place: str, path: str, what: str = "file or folder") -> None:
    """Raise `RecipeError` unless there is a file or folder, or one that matches a pattern (`*`, `?`, `[...]`, and the
    `{...}` of tar shards); for a config's `check_ready`.

    Args:
        place: the key, "section.key".
        path: as the user wrote it; `~` is expanded. Addresses such as "hf://USER/NAME" are not looked up.
        what: what it should be, as the message calls it.
    """
    if re.match(r"[A-Za-z][\w+.-]+:", path):
        return
    found = user_path(path, place)
    pattern = re.sub(r"\{[^{}]*\}", "*", str(found))
    try:
        there = found.exists() or (has_magic(pattern) and any(True for _ in iglob(pattern)))  # noqa: PTH207 (patterns may be in any part)
    except (OSError, ValueError):  # not a possible name of a file
        there = False
    if not there:
        known = next((str(one) for one in found.parents if _is_folder(one)), "")
        hint = (
            f"{known} exists; correct the rest of the path"
            if known not in ("", ".", "/")
            else ("correct the path: it is read from the folder in which the command runs")
        )
        raise RecipeError(place, f"is {path!r}, and there is no such {what}", hint)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _read_keys(config: ComponentConfig) -> Iterator[tuple[str, Outside, str | None]]:
    """(key, declaration, value) of each key that names a file or folder to read. Values that the plugin ships, and null
    where it is a choice of its own, are left out."""
    declared: dict[str, Outside] = {}
    for parent in reversed(type(config).__mro__):
        declared |= vars(parent).get("outside", {})
    for key, one in declared.items():
        if one.how != READS:
            continue
        value: object = config
        for name in key.split("."):
            value = getattr(value, name, None)
        if value is None and one.needed:
            yield key, one, None
        for text in value if isinstance(value, (list, tuple)) else [value]:
            if (
                isinstance(text, str)
                and text
                and not (one.shipped and text.startswith(one.shipped))
            ):
                yield key, one, text


def check_device(place: str, device: str) -> None:
    """Raise `RecipeError` for a text that is not a device name. Whether the device exists is checked when it is
    used."""
    known = re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d{1,3})?", device) is not None
    check_value(place, device, known, "use auto, cpu, cuda, or cuda:1 for the second")


def check_numbers(place: str, values: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise `RecipeError` for a field of the wrong type, or a number out of range.

    Args:
        place: the section.
        values: its dataclass; the numbers in lists, dicts and dataclasses in it are checked too.
        ranges: see `ComponentConfig.ranges`.
    """
    check_fields(values, RecipeError, f"{place}.")
    for key, value, below in _numbers(values, ""):
        usual = _INT_RANGE if isinstance(value, int) else _FLOAT_RANGE
        least, most = ranges.get(key, usual)
        if isinstance(value, int):  # there are whole numbers beyond the largest float
            most = min(most, sys.float_info.max)
        low = value < least
        rule = f"at least {least:,}" if low else f"at most {most:,}"
        bound = least if low else most
        nearest = str(int(bound) if isinstance(value, int) and abs(bound) < 2**64 else bound)
        if isinstance(value, float) and not math.isfinite(value):
            rule, nearest = "finite", ""
        check_value(
            f"{place}.{key}{below}", value, least <= value <= most, must_be=rule, instead=nearest
        )


def _numbers(value: object, key: str, below: str = "") -> Iterator[tuple[str, int | float, str]]:
    """The numbers in a value, each with its dotted key, and where it is in the value of that key."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value, below
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from _numbers(getattr(value, item.name), f"{key}.{item.name}".lstrip("."))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, key, f"{below}.{name}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _numbers(item, key, f"{below}[{number}]")


# Laws that are checked while components run, and the component that broke one.
#
# The conformance kits test all laws (`cm3 plugin check`). Violations that would cause an obscure
# error elsewhere, or wrong results, are also checked when the component is called: each interface
# checks the return values of its implementation.


#: Attribute of a built component.
_ORIGIN = "_cm3_origin"


class BrokenLawError(PluginError):
    """A component broke a law. A class of its own, so that `cm3 plugin check`, which its next step names, recognises
    it."""


@dataclass(frozen=True)
class ComponentOrigin:
    """The plugin that provides a component, and the component's kind and name."""

    plugin: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r}, {self.kind} {self.name!r}"


def set_origin(component: object, origin: ComponentOrigin) -> None:
    """Record where a component comes from, for errors."""
    with suppress(AttributeError):  # it has slots: errors then name its class
        object.__setattr__(component, _ORIGIN, origin)


def broken(component: object, law: str, cause: str) -> BrokenLawError:
    """Return the error for a component that broke a law.

    Args:
        component: the object, or the config that should have built it.
        law: its name in the kind's conformance kit; "build" for `build` itself.
        cause: what it did, in a sentence.
    """
    origin = getattr(component, _ORIGIN, None)
    place = str(origin) if isinstance(origin, ComponentOrigin) else _class_of(component)
    plugin = f" {origin.plugin}" if isinstance(origin, ComponentOrigin) else ""
    return BrokenLawError(
        place,
        f"breaks the law {law!r}: {cause}",
        f"update the plugin, or report it to its author; `cm3 plugin check{plugin}` tests all laws",
    )


def shown(value: object) -> str:
    """Describe a value from a plugin, for `broken`: an array's dtype and shape, otherwise the type.

    >>> shown(np.zeros((2, 3), np.float32)), shown(None), shown([1])
    ('float32 [2, 3]', 'None', 'list')
    """
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "None" if value is None else type(value).__name__


def is_array(value: object, dtype: type[np.generic], shape: tuple[int, ...]) -> bool:
    """Whether a value is an array of this dtype and shape."""
    return isinstance(value, np.ndarray) and value.dtype == dtype and value.shape == shape


def _class_of(component: object) -> str:
    return f"{type(component).__module__}.{type(component).__qualname__}"


@dataclass(frozen=True)
class Kind:
    """A component kind. Its name, the recipe's section, is its config's `kind`.

    Args:
        hook: the hook that provides its components: "cm3_" and their plural.
        config: the base of their configs.
        interface: name of the class that they build, in the same module as `config`.
        kit: "module:Class" of its conformance kit (importing it needs torch, pytest and
            hypothesis); "": it has none.
        words: the name of such a component in a sentence.
        key: the key of a recipe that lists such components, "section.key"; "": they have their own
            section.
        summary: what its components are, in a sentence. For the core's own kinds, the hook's documentation
            states it.
    """

    hook: str
    config: type[ComponentConfig]
    interface: str
    kit: str
    words: str
    key: str = ""
    summary: str = ""

    @property
    def name(self) -> str:
        """The recipe's section."""
        return self.config.kind

    @property
    def interface_class(self) -> type[Any]:
        """The class that `interface` names."""
        found: type[Any] = getattr(sys.modules[self.config.__module__], self.interface)
        return found
