"""A component of a stored recipe that is not installed: an error only for what needs it.

A run's recipe names all that it was trained with. Who draws with it needs neither its objective nor
its data; whoever asks for those is told who provided them.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from cm3core.errors import CM3Error, PluginError
from cm3core.interfaces.component import ComponentConfig
from cm3core.recipe.choosing import Choice

T = TypeVar("T", bound=ComponentConfig)


class MissingComponent(ComponentConfig):
    """Stands for the config of a component that can't be had.

    It keeps the section's `name` and `values`, so that the recipe is shown, compared and hashed as
    it was stored. Any other use raises the `PluginError` that looking the name up gave, or what
    `explain` put in its place.
    """

    def __init__(self, name: str, values: dict[str, Any], error: CM3Error) -> None:
        self.name, self.values = name, values
        self._error = error

    @classmethod
    def of(cls, choice: Choice, error: PluginError) -> MissingComponent:
        """Return what stands for a section whose component, or one inside it, can't be had."""
        return cls(str(choice.name), choice.keys, error)

    def explain(self, error: CM3Error) -> None:
        """Raise this from now on: it is better known why the component can't be had."""
        self._error = error

    def refuse(self) -> NoReturn:
        """Raise the error."""
        # a new one each time: raising collects tracebacks
        raise type(self._error)(self._error.place, self._error.cause, self._error.next_step)

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


def available(config: T | None) -> T | None:
    """Return a section's config, None if its component can't be had: for what does without it."""
    return None if isinstance(config, MissingComponent) else config
