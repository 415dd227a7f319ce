"""What a config's values reach outside: as its class declares, and what looks like it where it doesn't."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, Final, Literal, get_args, get_origin

from cm3core.config.schema import all_parts, component_field, default, hints, init_fields
from cm3core.interfaces.component import ComponentConfig
from cm3core.interfaces.reach import (
    CONNECTS,
    CREDENTIALS,
    READS,
    UNDECLARED,
    WRITES,
    Outside,
    Reach,
)

#: s3://bucket/folder, as it is written and as a `Path` spells it.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+(?=[^/])")
#: Parts of a key's name that say that its value is outside.
_NAMES = re.compile(
    r"host|ur[il]|endpoint|server|address|service|socket|port|proxy|path|file|dir|folder|root|bank|"
    r"weights|checkpoint|cache|bucket|database|dsn|token|secret|password|credential|user|jar|command|env"
)
#: `UNDECLARED` is said of texts up to this length: nobody's path is longer.
_LONGEST = 4096
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")
_HOST = re.compile(r"(\d{1,3}(\.\d{1,3}){3}|localhost|([\w-]+\.)+[A-Za-z]{2,24}\.?)")
#: What libpq and others take for environment or home: never words of a text.
_HOW: Final = (READS, WRITES, CONNECTS, CREDENTIALS)


def reaches_of(config: ComponentConfig) -> list[Reach]:
    """What the values of a component's config, and of the components in it, reach outside.

    Values that its class has by default are the plugin's own, and are left out.
    """
    found = _own_reaches(config)
    for path, part in all_parts(config):
        found += [
            Reach(one.how, one.target, f"{path}.{one.key}", one.why, one.value)
            for one in _own_reaches(part)
        ]
    return found


def declared(config_class: type[Any]) -> dict[str, Outside]:
    """What a config class, and its bases, declare of each key."""
    found: dict[str, Outside] = {}
    for parent in reversed(config_class.__mro__):
        found |= vars(parent).get("outside", {})
    return found


def undeclared_keys(config_class: type[Any]) -> list[str]:
    """The keys of a config class that hold free texts and declare nothing."""
    known = declared(config_class)
    return [key for key, _ in _text_fields(config_class, "") if key not in known]


def _text_fields(config_class: type[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, annotation in hints(config_class).items():
        if component_field(annotation) is not None:
            continue
        for inner in (annotation, *get_args(annotation)):
            if isinstance(inner, type) and is_dataclass(inner):
                yield from _text_fields(inner, f"{prefix}{name}.")
        if holds_text(annotation):
            yield f"{prefix}{name}", annotation


def holds_text(annotation: Any) -> bool:
    """Whether a field of that annotation may hold any text, alone or in a list or mapping."""
    if get_origin(annotation) is Literal:
        return False
    if annotation is str or annotation is Any:
        return True
    arguments = get_args(annotation)
    if get_origin(annotation) is dict and component_field(annotation) is None:
        # keys of a mapping to numbers are names of parts
        return holds_text(arguments[1])
    return any(holds_text(argument) for argument in arguments)


def _own_reaches(config: ComponentConfig) -> list[Reach]:
    known = declared(type(config))
    found: list[Reach] = []
    for key, text in _texts(config, ""):
        one = known.get(key)
        reach = _undeclared(key, text) if one is None else _declared(key, text, one)
        found += [] if reach is None else [reach]
    return found + config.reaches()


def _texts(config: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, text) of what a config's fields hold, but for values that they have by default."""
    annotations = hints(type(config))
    for item in init_fields(type(config)):
        value, annotation = getattr(config, item.name), annotations[item.name]
        key = f"{prefix}{item.name}"
        if component_field(annotation) is not None or get_origin(annotation) is Literal:
            continue
        if is_dataclass(value) and not isinstance(value, type):
            yield from _texts(value, f"{key}.")
        elif not _equal(value, default(item)):
            yield from ((key, text) for text in _texts_in(value))


def _equal(value: object, usual: object) -> bool:
    return type(value) is type(usual) and value == usual


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _texts_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts_in(inner)


def _declared(key: str, text: str, one: Outside) -> Reach | None:
    if one.how not in _HOW or _is_shipped(text, one.shipped):
        return None
    if one.how in (CONNECTS, CREDENTIALS):
        return Reach(one.how, text, key, one.why, text)
    address = address_of(text)
    how = one.how if address is None else CONNECTS
    return Reach(how, address or path_of(text), key, one.why, text)


def _is_shipped(text: str, prefix: str) -> bool:
    name = text.removeprefix(prefix)
    return bool(prefix) and name != text and re.fullmatch(r"[\w.-]+", name) is not None


def _undeclared(key: str, text: str) -> Reach | None:
    named = _NAMES.search(key.rpartition(".")[2].lower()) is not None
    if not text or not (named or looks_outside(text)):
        return None
    why = "its class does not say what for"
    target = address_of(text) or (path_of(text) if looks_like_path(text) else text)
    return Reach(UNDECLARED, target, key, why, text)


def address_of(text: str) -> str | None:
    """An address (s3://bucket/folder) in one spelling; None for any other text.

    >>> address_of("s3:/bucket/a"), address_of("C:relative"), address_of("/folder")
    ('s3://bucket/a', None, None)
    """
    found = _ADDRESS.match(text)
    if found is None:
        return text if "://" in text else None  # a chain of them: simplecache::s3://bucket
    scheme = found[0].partition(":")[0].lower()
    rest = text[found.end() :]
    return f"{scheme}:///{rest}" if found[0].count("/") > 2 else f"{scheme}://{rest}"


def path_of(text: str) -> str:
    """The absolute path that a text means, a `~` replaced; links are not followed."""
    return os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111  # any text, `~nobody` too


def looks_like_path(text: str) -> bool:
    """Whether a text looks like a path, or names something that lies in the working folder."""
    if len(text) > _LONGEST or "\n" in text:
        return False
    if text.startswith(("/", "~", "\\")) or text in (".", ".."):
        return True
    if {"..", "."} & set(re.split(r"[/\\]", text)):
        return True
    if "/" in text and " " not in text and not set("<>|*?()[]{}") & set(text):
        return True
    return "\0" not in text and os.path.lexists(text)


def looks_outside(text: str) -> bool:
    """Whether a text looks like a path, an address or a host.

    >>> [looks_outside(text) for text in ("a red/green bell", "db.example", "10.0.0.1:5432", "s3://a/b")]
    [False, True, True, True]
    """
    return (
        _ADDRESS.match(text) is not None
        or "://" in text
        or "${" in text
        or _HOST_AND_PORT.fullmatch(text) is not None
        or _HOST.fullmatch(text) is not None
        or looks_like_path(text)
    )
