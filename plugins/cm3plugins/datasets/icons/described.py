"""Sets that are not bundled, as their packages describe themselves: endings and beginnings of names with titles,
mapped to the style words that all sets share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cm3plugins.datasets.icons.sets import IconSet, style_words

_STYLE_OF_WORD = {
    "outline": ("regular", "line", "lined", "lineal", "linear", "outline", "outlined", "stroke"),
    "filled": ("fill", "filled", "solid", "baseline", "glyph"),
    "duotone": ("duotone", "duo", "twotone", "bulk"),
    "colour": ("color", "colour", "colored", "coloured", "multicolor", "flat"),
    "broken": ("broken",),
    "thin": ("thin",),
    "light": ("light",),
    "bold": ("bold",),
    "rounded": ("round", "rounded"),
    "sharp": ("sharp",),
}
_STYLES = {word: style for style, words in _STYLE_OF_WORD.items() for word in words}
_NO_WORD = re.compile(r"[^\w ]+")
_SIZE = re.compile(r"\d+(x\d+)?(px)?")


def set_of_package(
    files: Mapping[str, Any], sha256: str, licence: str
) -> tuple[IconSet, list[str]]:
    """Return a set with the rules of its package, and the endings and beginnings whose title holds a word that
    is no style: these stay words of the names, so that nothing is taken for a style that is none.

    Args:
        files: what `read_tarball` returned.
        sha256: of the tarball.
        licence: that the package states.
    """
    info, metadata = files["info.json"], files.get("metadata.json", {})
    unknown: list[str] = []
    rules: dict[str, dict[str, str]] = {"suffixes": {}, "prefixes": {}}
    for kind, known in rules.items():
        for word, title in metadata.get(kind, {}).items():
            style = _style_of(title)
            if style is not None:
                known[word] = style
            elif word:
                unknown.append(word)
    author = info.get("author")
    author = author if isinstance(author, dict) else {}
    default = rules["suffixes"].pop("", rules["prefixes"].pop("", ""))
    name = files["icons.json"]["prefix"]
    icon_set = IconSet(
        name=name,
        title=" ".join(_NO_WORD.sub(" ", _cell(info.get("name")).lower()).split())
        or name.replace("-", " "),
        version=version_of(files),
        sha256=sha256,
        licence=licence,
        author=_cell(author.get("name")),
        url=_cell(author.get("url")),
        default=default,
        endings=rules["suffixes"],
        beginnings=rules["prefixes"],
        always="colour" if info.get("palette") is True else "",
    )
    return icon_set, unknown


def version_of(files: Mapping[str, Any]) -> str:
    """Return the version that a package states, or ``unknown``."""
    version = files.get("package.json", {}).get("version")
    stated = isinstance(version, str) and re.fullmatch(r"[\w.+-]{1,40}", version)
    return str(version) if stated else "unknown"


def _style_of(title: str) -> str | None:
    """Style words of a title, ``Two-Tone`` or ``24 Regular``; None if it holds another word, or none."""
    words = re.sub(r"two[- ]tone", "twotone", title.lower()).replace("-", " ").split()
    words = [word for word in words if not _SIZE.fullmatch(word)]
    if not words or not all(word in _STYLES for word in words):
        return None
    return " ".join(style_words(" ".join(_STYLES[word] for word in words)))


def _cell(text: object) -> str:
    """A text from the package as a cell of the attribution's table."""
    plain = text[:200] if isinstance(text, str) else ""
    kept = (letter for letter in plain if letter.isspace() or letter.isprintable())
    return " ".join("".join(letter for letter in kept if letter not in "|`<>").split())
