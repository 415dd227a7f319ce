"""What a config class says of itself: its summary, and the type, default and documentation of each
key. Imports no torch.

A key is documented by the `Args:` section of a docstring, of the class itself or of a class that it
inherits from:

    Args:
        temperature: divides the logits; 0 takes the most probable code.
        top_k, top_p: what is kept of the distribution.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any

from cm3core.config.schema import (
    default,
    hints,
    init_fields,
    nested_dataclass,
    shown_type,
    to_plain,
)

#: An entry of an `Args:` section: one name, or several, and the beginning of the text.
_ENTRY = re.compile(r"(?P<names>\w+(?:, *\w+)*): *(?P<text>.*)")


@dataclass(frozen=True)
class Key:
    """A key of a recipe's section.

    Args:
        name: the key; "training.steps" is a key of the nested dataclass `training`.
        type: its annotation as a reader would write it, see `shown_type`.
        default: its default as YAML holds it; None when there is none, see `required`.
        required: the recipe must give it.
        text: what its documentation says, in one line; "" when it has none.
        documented_by: name of the class whose docstring that is, "" when there is none.
    """

    name: str
    type: str
    default: Any
    required: bool
    text: str
    documented_by: str


def keys_of(config_class: type[Any]) -> list[Key]:
    """Every key that a recipe may give, in the order of the dataclass's fields. The keys of a
    nested dataclass follow it."""
    return list(_keys(config_class, None, ""))


def _keys(config_class: type[Any], instance: object, prefix: str) -> Iterator[Key]:
    annotations = hints(config_class)
    for item in init_fields(config_class):
        annotation, text, owner = annotations[item.name], "", ""
        for parent in config_class.__mro__:
            documented = arguments(parent)
            if item.name in documented:
                text, owner = documented[item.name], parent.__name__
                break
        start = default(item) if instance is None else getattr(instance, item.name)
        required = start is MISSING
        yield Key(
            prefix + item.name,
            shown_type(annotation),
            None if required else to_plain(start),
            required,
            text,
            owner,
        )
        inner = nested_dataclass(annotation)
        if inner is not None:
            yield from _keys(
                inner, start if isinstance(start, inner) else None, f"{prefix}{item.name}."
            )


def docstring(config_class: type[Any]) -> str:
    """The class's own docstring, "" when it has none (the one that `dataclass` makes up counts as
    none)."""
    text = config_class.__dict__.get("__doc__") or ""
    return "" if text.startswith(f"{config_class.__name__}(") else inspect.cleandoc(text)


def summary(text: str) -> str:
    """The first paragraph of a docstring, in one line.

    >>> summary('''Bytes\\n    of UTF-8.\\n\\n    More.''')
    'Bytes of UTF-8.'
    """
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


def arguments(config_class: type[Any]) -> dict[str, str]:
    """Name -> text of the `Args:` section of the class's own docstring; texts in one line."""
    return arguments_in(docstring(config_class))


def arguments_in(text: str) -> dict[str, str]:
    """The same of a docstring.

    >>> arguments_in('''Samples.
    ...
    ...     Args:
    ...         temperature: divides the logits,
    ...             0 takes the most probable.
    ...         top_k, top_p: kept.
    ... ''')
    {'temperature': 'divides the logits, 0 takes the most probable.', 'top_k': 'kept.', 'top_p': 'kept.'}
    """
    lines = inspect.cleandoc(text).splitlines()
    if "Args:" not in lines:
        return {}
    found: dict[str, list[str]] = {}
    current: list[list[str]] = []
    margin: int | None = None
    for line in lines[lines.index("Args:") + 1 :]:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        margin = indent if margin is None else margin
        if indent == 0 or indent < margin:
            break  # another section
        entry = _ENTRY.fullmatch(line.strip()) if indent == margin else None
        if entry is not None:
            names = entry["names"].replace(" ", "").split(",")
            current = [found.setdefault(name, []) for name in names]
            line = entry["text"]
        for text_lines in current:
            text_lines.append(line.strip())
    return {name: " ".join(part for part in parts if part) for name, parts in found.items()}
