"""Laws that are checked while components work, and whose component broke one.

The conformance kits test all laws (`cm3 plugin check`). Those whose breach would end in a puzzling
error far away, or in wrong results, are also checked where the component is called: each interface
checks what its implementation returns.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from cm3core.errors import PluginError

#: Attribute of a built component.
_ORIGIN = "_cm3_origin"


class BrokenLawError(PluginError):
    """A component broke a law. `cm3 plugin check`, which its next step names, must tell it from others."""


@dataclass(frozen=True)
class ComponentOrigin:
    """The plugin that provides a component, and the component's kind and name."""

    plugin: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r}, {self.kind} {self.name!r}"


def set_origin(component: object, origin: ComponentOrigin) -> None:
    """Keep where a component comes from, for errors."""
    with suppress(AttributeError):  # it has slots: errors then name its class
        object.__setattr__(component, _ORIGIN, origin)


def broken(component: object, law: str, cause: str) -> BrokenLawError:
    """Return the error of a component that breaks a law.

    Args:
        component: the object, or the config that should have built it.
        law: as the kind's conformance kit calls it; "build" of `build` itself.
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
    """Return what a plugin gave, for `broken`: an array's dtype and shape, else the type.

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
