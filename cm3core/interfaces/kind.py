"""A kind of component, as a row of the table of kinds. Imports no torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from cm3core.interfaces.component import ComponentConfig


@dataclass(frozen=True)
class Kind:
    """A component kind. Its name, the recipe's section, is its config's `kind`.

    Args:
        hook: the hook that provides its components, "cm3_" and what they are.
        config: the base of their configs.
        interface: name of the class that they build, in the same module as `config`.
        kit: "module:Class" of its conformance kit (importing it needs torch, pytest and
            hypothesis); "": it has none.
        words: what such a component is called in a sentence.
        key: the key of a recipe that lists such components, "section.key"; "": they have a section of
            their own.
        summary: what its components are, in a sentence. Of the core's own kinds the hook's documentation
            says it.
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
