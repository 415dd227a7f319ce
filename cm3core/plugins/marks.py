"""Find components by marks of their config classes, so that the core knows none by name.

The marks are `ComponentConfig.is_default`, `SamplerConfig.edits` and `.structures`, and
`DocumentSourceConfig.reads`."""

from __future__ import annotations

from cm3core.errors import PluginError, close_match
from cm3core.plugins.registry import Registry


def marked(registry: Registry, kind: str, attribute: str) -> dict[str, object]:
    """Return a kind's components whose own config class sets a class variable to a true value.

    Returns name -> its value, sorted by name (`plugin/name` where several plugins provide it).
    Inherited values do not count: a plugin that derives from a bundled config provides another
    component, which takes over no role unasked.
    """
    found: dict[str, object] = {}
    for name in registry.names(kind):
        owners = registry.owners(kind, name)
        for full_name in [name] if len(owners) == 1 else [f"{owner}/{name}" for owner in owners]:
            if value := vars(registry.config_class(kind, full_name)).get(attribute):
                found[full_name] = value
    return found


def default_name(registry: Registry, kind: str, *, place: str) -> str:
    """Return a kind's default component, used if one is needed and none is named.

    It is the first whose config sets `is_default`.

    Raises:
        PluginError: there is none; `place` is where one could be named.
    """
    for name in marked(registry, kind, "is_default"):
        return name
    raise PluginError(
        place,
        f"no {kind} is named, and no plugin in use provides a default one",
        registry.with_reasons(close_match("", registry.names(kind)), kind),
    )
