"""Licences by their SPDX names: the address of a licence's text."""

from __future__ import annotations

import re
from functools import cache

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

#: Creative Commons' names: what follows "CC-" and the version; a port to a country's law may follow.
_CREATIVE_COMMONS = re.compile(r"CC-(BY(?:-NC)?(?:-SA|-ND)?)-(\d\.\d)")


@cache
def licence_link(licence: str) -> str:
    """Return where a licence can be read; "" for a text that is not the SPDX name of one.

    >>> licence_link("CC-BY-4.0"), licence_link("cc0-1.0")
    ('https://creativecommons.org/licenses/by/4.0/', 'https://creativecommons.org/publicdomain/zero/1.0/')
    >>> licence_link("MIT"), licence_link("MIT OR Apache-2.0"), licence_link("unknown")
    ('https://spdx.org/licenses/MIT.html', '', '')
    """
    try:
        name = canonicalize_license_expression(licence)
    except InvalidLicenseExpression:
        return ""
    if " " in name or "(" in name or name.startswith("LicenseRef-"):
        return ""
    if name == "CC0-1.0":
        return "https://creativecommons.org/publicdomain/zero/1.0/"
    if (common := _CREATIVE_COMMONS.fullmatch(name)) is not None:
        return f"https://creativecommons.org/licenses/{common[1].lower()}/{common[2]}/"
    return f"https://spdx.org/licenses/{name.removesuffix('+')}.html"
