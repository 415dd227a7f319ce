"""Which interpolations a recipe may hold: `${section.key}`, and nothing that reads from elsewhere.

OmegaConf also knows resolvers (`${oc.env:NAME}`, `${oc.decode:...}`). A recipe may come from anybody,
and what it resolves is written into runs and checkpoints and shown in errors, so that a resolver
would publish the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cm3core.errors import RecipeError

_START = re.compile(r"(\\*)\$\{")
_PLAIN = re.compile(r"\$\{[A-Za-z_][\w-]*(?:\.[\w-]+|\[\w+\])*\}")
_SHOWN = 60


def foreign_interpolations(text: str) -> Iterator[str]:
    r"""The interpolations in a text that are not `${section.key}`, from their `${` on.

    >>> list(foreign_interpolations(r"${train.steps} \${literal} ${oc.env:HOME}"))
    ['${oc.env:HOME}']
    """
    for start in _START.finditer(text):
        begin = start.end() - 2
        escaped = len(start[1]) % 2 == 1
        if not escaped and _PLAIN.match(text, begin) is None:
            end = text.find("}", begin)
            yield text[begin:] if end < 0 else text[begin : end + 1]


def check_interpolations(place: str, value: object) -> None:
    """Raise `RecipeError` for an interpolation in a value, or in anything that it holds, that is not
    `${section.key}`.

    Args:
        place: of the value, for the error; keys of mappings are appended.
        value: text, a number, or lists and mappings of them.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            check_interpolations(
                f"{place}.{key}" if place[-1:] not in ": " else f"{place}{key}", inner
            )
    elif isinstance(value, list):
        for inner in value:
            check_interpolations(place, inner)
    elif (
        isinstance(value, str) and (found := next(foreign_interpolations(value), None)) is not None
    ):
        shown = found if len(found) <= _SHOWN else f"{found[:_SHOWN]}..."
        raise RecipeError(
            place,
            f"holds {shown!r}; a recipe reads other keys of the recipe only, no environment and no "
            "resolvers",
            r"write ${section.key}, or \${ for the characters themselves",
        )
