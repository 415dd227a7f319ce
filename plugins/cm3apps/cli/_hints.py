"""What someone means who gives a recipe's key as an option: `--steps 30` is `train.steps=30`."""

from __future__ import annotations

from collections.abc import Sequence


def override_hint(option: str, arguments: Sequence[str]) -> str | None:
    """The next step for an unknown option that is named like a recipe's key; None: it is not.

    >>> override_hint("--steps", ["tiny", "--steps", "30"])
    'a recipe\'s key is given without dashes: train.steps=30'
    """
    from cm3core.config.schema import init_fields
    from cm3core.plugins.kinds import KINDS
    from cm3core.recipe.sections import FIXED_SECTIONS

    name, equals, value = option.lstrip("-").partition("=")
    name = name.replace("-", "_")
    if not equals:
        place = list(arguments).index(option) + 1
        follows = arguments[place : place + 1]
        value = follows[0] if follows and not follows[0].startswith("-") else "..."
    section, _, key = name.partition(".")
    keys = [
        f"{own}.{item.name}"
        for own, config_class in FIXED_SECTIONS.items()
        for item in init_fields(config_class)
    ]
    if (key and (section in KINDS or name in keys)) or name in KINDS:
        found = name
    else:
        found = next((own for own in keys if own.partition(".")[2] == name), "")
    return f"a recipe's key is given without dashes: {found}={value}" if found else None
