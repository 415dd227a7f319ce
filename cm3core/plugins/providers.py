"""Which plugin a component came from when a text was written, and whom a bare name in it means.

A recipe may write `sampler: {name: cfg}` without a plugin, and then a plugin is installed that
provides a `cfg` too. The name keeps its meaning: a checkpoint stores who provided each component
(`components.json`), and a recipe that a distribution ships means that distribution's components.
Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cm3core._version import DISTRIBUTION, is_ours
from cm3core.errors import CM3Error
from cm3core.files import read_text

#: The files beside a stored recipe: who provided its components; the plugins that were in use.
COMPONENTS, PLUGINS = "components.json", "plugins.json"
#: What may be shown as part of a command: the text may come from anybody.
_PLAIN = {
    "name": re.compile(r"([\w-]{1,100}/)?[\w-]{1,100}"),
    "plugin": re.compile(r"[\w.-]{1,100}"),
    "distribution": re.compile(r"([A-Za-z0-9][\w.-]{0,99})?", re.ASCII),
    "version": re.compile(r"[\w.+!-]{0,100}", re.ASCII),
}


@dataclass(frozen=True)
class Provider:
    """Who provided a component.

    Args:
        name: the component's, as the recipe writes it.
        plugin: the plugin's name.
        distribution, version: what `pip` knows it by, "" for a plugin given as a file.
    """

    name: str
    plugin: str
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        """For messages.

        >>> str(Provider("ul2", "ul2", "cm3-ul2", "0.1.0"))
        'ul2 0.1.0 (pip install cm3-ul2)'
        >>> str(Provider("ul2", "my_parts"))
        'my_parts (cm3 --plugin my_parts.py)'
        """
        if not self.distribution:
            return f"{self.plugin} (cm3 --plugin {self.plugin}.py)"
        return f"{self.plugin} {self.version}".rstrip() + f" (pip install {self.distribution})"

    def among(self, owners: Mapping[str, str]) -> str | None:
        """Return which plugin this provider is now, None if it is none of them.

        Args:
            owners: plugin -> distribution, of those that provide the component now.
        """
        same = [
            plugin
            for plugin, distribution in owners.items()
            if self.distribution and _same(distribution, self.distribution)
        ]
        if self.plugin in same or (self.plugin in owners and not same):
            return self.plugin
        if same:
            return same[0]
        # a file has no name of its own: it may have been renamed, or become a package
        return next(iter(owners)) if not self.distribution and len(owners) == 1 else None


@dataclass(frozen=True)
class Writer:
    """Whom bare names mean in a text.

    Args:
        providers: kind, or key of a component inside another one -> who provided the component when
            the text was written.
        plugins: name -> version of the plugins that were in use then.
        distribution: whose components are meant if several plugins provide the name; "": no one's.
    """

    providers: Mapping[str, Provider] = field(default_factory=dict)
    plugins: Mapping[str, str] = field(default_factory=dict)
    distribution: str = ""

    def provider(self, key: str, name: str) -> Provider | None:
        """Return who provided the component, None if that is not known."""
        known = self.providers.get(key)
        return known if known is not None and known.name == name else None

    def prefers(self, owners: Mapping[str, str]) -> str | None:
        """Return which of several plugins a bare name means, None if that is not known.

        Args:
            owners: plugin -> distribution.
        """
        then = [plugin for plugin in owners if plugin in self.plugins]
        own = [
            plugin
            for plugin, distribution in owners.items()
            if self.distribution and _same(distribution, self.distribution)
        ]
        for meant in (then, own):
            if len(meant) == 1:
                return meant[0]
        return None


#: Nothing is known: a recipe of the user's, the command line.
ANYONE = Writer()
#: What this distribution ships.
OURS = Writer(distribution=DISTRIBUTION)


def _same(one: str, other: str) -> bool:
    """Whether two distributions are the same, or both ours: a component may have moved."""
    one, other = _normal(one), _normal(other)
    return one == other or (is_ours(one) and is_ours(other))


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def dump_providers(providers: Mapping[str, Provider]) -> str:
    """Return the text of `components.json`; see `Writer.providers`."""
    values = {key: asdict(provider) for key, provider in providers.items()}
    return json.dumps(values, indent=1) + "\n"


def read_writer(folder: Path, refuse: Callable[[Path, str], CM3Error]) -> Writer:
    """Return whom bare names mean in the recipe that was stored in `folder`.

    Of folders from before providers were stored, only the plugins that were in use are known, or
    not even those.

    Args:
        folder: a run, a checkpoint or an exported model.
        refuse: makes the error of a file that can't be used, from its path and the cause.
    """
    try:
        plugins = _read(folder / PLUGINS)
    except (OSError, ValueError, RecursionError):
        plugins = {}  # no more than a hint
    try:
        stored = _read(folder / COMPONENTS)
    except FileNotFoundError:
        stored = {}
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(folder / COMPONENTS, f"can't be read ({error})") from error
    for key, values in stored.items():
        if not _is_provider(values):
            raise refuse(
                folder / COMPONENTS, f"does not say who provided the component {key[:100]!r}"
            )
    return Writer(
        {key: Provider(**values) for key, values in stored.items()},
        {name: version for name, version in plugins.items() if isinstance(version, str)},
        DISTRIBUTION,
    )


def _read(path: Path) -> dict[str, Any]:
    values = json.loads(read_text(path))
    if not isinstance(values, dict):
        raise ValueError("is not a mapping")
    return values


def _is_provider(values: object) -> bool:
    return (
        isinstance(values, dict)
        and values.keys() == _PLAIN.keys()
        and all(
            isinstance(values[key], str) and plain.fullmatch(values[key])
            for key, plain in _PLAIN.items()
        )
    )
