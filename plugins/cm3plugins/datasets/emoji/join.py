"""Join the pictures of five Iconify packages with English names, categories and keywords, one
concept per emoji.

A concept is one base emoji: no skin-tone variants, no flags of countries. Code points join noto,
fluent and twemoji; noto-v1 and emojione carry none and are joined by name, old names and aliases
included.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cm3plugins.datasets.emoji.packages import OLD_NAMES
from cm3plugins.datasets.vector.render import square_svg

Json = Mapping[str, Any]

_KEPT_FLAGS = frozenset(
    {
        "chequered flag",
        "triangular flag",
        "crossed flags",
        "black flag",
        "white flag",
        "rainbow flag",
        "transgender flag",
        "pirate flag",
    }
)
_SPELLED = {"keycap #": "keycap hash", "keycap *": "keycap asterisk"}
_REGIONAL_INDICATOR_A = 0x1F1E6


@dataclass(frozen=True)
class Concept:
    """One base emoji.

    Args:
        concept: stable identifier, ``red-apple``.
        label: English name in lower case, without odd punctuation, ``red apple``.
        tags: keywords, lower case, without the label itself.
        category: Unicode group in lower case, ``food and drink``.
    """

    concept: str
    label: str
    tags: tuple[str, ...]
    category: str


def clean_label(name: str) -> str:
    """Return a Unicode emoji name in lower case without quotation marks, brackets, commas, colons
    and the like.

    Example:
        >>> clean_label("A button (blood type)")
        'a button blood type'
    """
    name = name.lower()
    name = _SPELLED.get(name, name).replace("’", "'").replace("&", "and")
    return " ".join(re.sub(r"[^\w' -]", " ", name).split())


def slug(name: str) -> str:
    """Return a name as Iconify writes it: lower case words joined by hyphens, without
    apostrophes."""
    return re.sub(r"[^a-z0-9*#]+", "-", re.sub(r"[’']", "", name.lower()).replace("ñ", "n")).strip(
        "-"
    )


def codepoint_key(codepoints: list[int]) -> str:
    """Return the join key of a code point sequence: hexadecimal, hyphens, no variation selector."""
    return "-".join(f"{point:x}" for point in codepoints if point != 0xFE0F)


def read_concepts(names: Json, keywords: Json) -> dict[str, Concept]:
    """Build the concepts from the two metadata packages.

    Args:
        names: ``data-by-emoji.json`` of unicode-emoji-json.
        keywords: ``emoji-en-US.json`` of emojilib.

    Returns:
        code point key -> concept, in the order of the Unicode emoji list, the 26 letters last.
    """
    concepts: dict[str, Concept] = {}
    for emoji, facts in names.items():
        group = facts["group"]
        if group == "Flags" and facts["name"] not in _KEPT_FLAGS:
            continue
        label = clean_label(facts["name"])
        key = codepoint_key([ord(char) for char in emoji])
        tags = _clean_tags(keywords.get(emoji, ()), label)
        concepts[key] = Concept(slug(label), label, tags, group.lower().replace("&", "and"))
    for index in range(26):
        letter = chr(ord("a") + index)
        key = codepoint_key([_REGIONAL_INDICATOR_A + index])
        concepts[key] = Concept(
            f"letter-{letter}", f"letter {letter}", ("alphabet", "letter"), "symbols"
        )
    return concepts


def _clean_tags(words: Any, label: str) -> tuple[str, ...]:
    cleaned = (" ".join(word.lower().replace("_", " ").split()) for word in words)
    kept = (word for word in cleaned if re.fullmatch(r"[a-z0-9][\w' -]*", word) and word != label)
    return tuple(dict.fromkeys(kept))


def match_icons(icons: Json, codepoints: Json, names: Mapping[str, str]) -> dict[str, str]:
    """Find the picture of each concept in one package.

    Args:
        icons: the package's ``icons.json``.
        codepoints: its ``chars.json``: code points -> icon name; empty when the package has none.
        names: icon name as any package or Unicode writes it -> code point key.

    Returns:
        code point key -> icon name, without skin tones and whatever else has no concept.
    """
    if codepoints:
        listed = {
            codepoint_key([int(part, 16) for part in key.split("-")]): n
            for key, n in codepoints.items()
        }
        wanted = set(names.values())
        return {key: name for key, name in listed.items() if key in wanted}
    aliases: dict[str, list[str]] = defaultdict(list)
    for alias, target in icons.get("aliases", {}).items():
        aliases[target["parent"]].append(alias)
    matched: dict[str, str] = {}
    for icon in icons["icons"]:
        for name in (icon, OLD_NAMES.get(icon, icon), *aliases[icon]):
            key = names.get(slug(name))
            if key is not None:
                matched.setdefault(key, icon)
                break
    return matched


def names_of_concepts(
    names: Json, concepts: Mapping[str, Concept], packages: list[Json]
) -> dict[str, str]:
    """Collect every name by which a concept is known.

    Args:
        names: ``data-by-emoji.json`` of unicode-emoji-json.
        concepts: what ``read_concepts`` returns.
        packages: the ``chars.json`` of the packages that have one, most trusted first.

    Returns:
        name as ``slug`` writes it -> code point key.
    """
    known: dict[str, str] = {}
    for emoji, facts in names.items():
        key = codepoint_key([ord(char) for char in emoji])
        if key in concepts:
            known[slug(facts["name"])] = key
            known[slug(facts["slug"].replace("_", "-"))] = key
    for key, concept in concepts.items():
        known.setdefault(concept.concept, key)
    for codepoints in packages:
        for points, name in codepoints.items():
            key = codepoint_key([int(part, 16) for part in points.split("-")])
            if key in concepts:
                known.setdefault(name, key)
    return known


def icon_svg(icons: Json, name: str) -> str:
    """Return one icon of a package as a square SVG document, resolving an alias and its
    mirroring."""
    alias = icons.get("aliases", {}).get(name)
    icon = icons["icons"][alias["parent"] if alias else name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    body = icon["body"]
    if alias:
        assert set(alias) <= {"parent", "hFlip"}, alias
        if alias.get("hFlip"):
            body = f'<g transform="matrix(-1 0 0 1 {2 * left + width:g} 0)">{body}</g>'
    return square_svg(body, left=left, top=top, width=width, height=height)
