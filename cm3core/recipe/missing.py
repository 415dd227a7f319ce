"""A component of a stored recipe that is not installed: an error only for what needs it.

A run's recipe names all that it was trained with. Who draws with it needs neither its objective nor
its data; whoever asks for those is told who provided them.
"""

from __future__ import annotations

from typing import Any, NoReturn

from cm3core.errors import PluginError
from cm3core.interfaces.component import ComponentConfig
from cm3core.recipe.choosing import Section


class MissingComponent(ComponentConfig):
    """Stands for the config of a component that can't be had.

    It keeps the section's `name` and `values`, so that the recipe is shown, compared and hashed as
    it was stored. Any other use raises the `PluginError` that looking the name up gave.
    """

    def __init__(self, name: str, values: dict[str, Any], error: PluginError) -> None:
        self.name, self.values = name, values
        self._error = error

    @classmethod
    def of(cls, section: Section) -> MissingComponent:
        """Return what stands for a section whose component can't be had."""
        assert section.error is not None
        return cls(str(section.component), section.values, section.error)

    def refuse(self) -> NoReturn:
        """Raise the error."""
        # a new one each time: raising collects tracebacks
        raise PluginError(self._error.place, self._error.cause, self._error.next_step)

    def check(self) -> None:
        """Raise the error: nobody knows which values are allowed."""
        self.refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # as copy, pickle and inspect expect
        self.refuse()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MissingComponent) and self.values == other.values

    __hash__ = None  # type: ignore[assignment]  # as of every config: its values can change
