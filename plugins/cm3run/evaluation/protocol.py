"""Evaluation protocols: the description of a measurement, as canonical JSON with a hash.

    {
      "format": "cm3 protocol 1",
      "name": "icons-comp-v1",
      "title": "one line",
      "task": {"name": "documents", ...},            source of prompts and references
      "size": 64,                                    side of the compared pictures, pixels
      "seed": 2023,                                  sample i is drawn with seed + i
      "scores": [{"metric": {"name": "kid", ...}, "extractor": {"name": "lite1"}}, ...],
      "sha256": "..."                                of all other keys
    }

A score's own hash covers everything that it depends on, see `measurement_hash`: two scores are comparable if
and only if their hashes are equal.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core._version import OUR_DISTRIBUTIONS
from cm3core.errors import DataError
from cm3core.files import check_regular
from cm3core.plugins.registry import ANYONE, Writer, provider_of
from cm3core.recipe.merge import stored_recipe
from cm3run.json_text import parse_json

if TYPE_CHECKING:
    from cm3core.interfaces.extractor import ExtractorConfig
    from cm3core.interfaces.metric import MetricConfig
    from cm3core.plugins.registry import Registry


_ABSENT = "(absent)"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> the two values, for the keys in which two JSON objects differ.

    >>> differences({"a": {"b": 1, "c": [2]}}, {"a": {"b": 3, "c": [2]}, "d": 4})
    {'a.b': (1, 3), 'd': ('(absent)', 4)}
    """
    left, right = dict(_flat(one)), dict(_flat(other))
    return {
        key: (left.get(key, _ABSENT), right.get(key, _ABSENT))
        for key in dict.fromkeys([*left, *right])
        if left.get(key, _ABSENT) != right.get(key, _ABSENT)
    }


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, own in value.items():
            yield from _flat(own, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


FORMAT = "cm3 protocol 1"
#: Smallest and largest side of the compared pictures in pixels.
SIZES = (8, 4096)
#: Number of hexadecimal digits of a hash that are printed.
SHOWN = 12
#: Key of a protocol file -> (whether it is required, its meaning).
KEYS: Mapping[str, tuple[bool, str]] = {
    "format": (True, f'"{FORMAT}"'),
    "name": (True, "a word of a-z, 0-9, `.`, `_` and `-`"),
    "title": (True, "one line"),
    "task": (True, "source of prompts and references: `name` and the task's keys"),
    "scores": (
        True,
        "a list of `metric` (`name` and keys) and, if it compares features, `extractor`",
    ),
    "size": (
        False,
        f"side of the compared pictures, {SIZES[0]} to {SIZES[1]} pixels; null: no pictures are compared",
    ),
    "seed": (False, "sample i is drawn with seed + i; the default is 2023"),
    "sha256": (
        False,
        "hash of all other keys, which must match; leave it out of your own files",
    ),
}
_REQUIRED = tuple(key for key, (required, _) in KEYS.items() if required)
_OPTIONAL = tuple(key for key, (required, _) in KEYS.items() if not required)
_SCORES = 'a list of {"metric": {"name": ...}, "extractor": {"name": ...}}'
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol.

    Args:
        name, title, task, size, seed, scores: see the module; `size` is None if no pictures are
            compared.
        writer: resolves bare component names that several plugins provide.
    """

    name: str
    title: str
    task: Mapping[str, Any]
    scores: Sequence[Mapping[str, Any]]
    size: int | None = None
    seed: int = 2023
    writer: Writer = field(default=ANYONE, compare=False, repr=False)

    @property
    def values(self) -> dict[str, Any]:
        """The file's contents, without the hash."""
        return {
            "format": FORMAT,
            "name": self.name,
            "title": self.title,
            "task": dict(self.task),
            "size": self.size,
            "seed": self.seed,
            "scores": [dict(score) for score in self.scores],
        }

    @property
    def sha256(self) -> str:
        """Hash of the values."""
        return sha256_of(self.values)

    def text(self) -> str:
        """The file's text."""
        return json.dumps({**self.values, "sha256": self.sha256}, indent=2) + "\n"


def canonical(value: Any) -> str:
    """Canonical JSON: keys sorted, no spaces, ASCII.

    >>> canonical({"b": 1.0, "a": ["\u00e9"]})
    '{"a":["\\\\u00e9"],"b":1.0}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_of(value: Any) -> str:
    """Hash of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def measurement_hash(measurement: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    """The first digits of the hash of everything besides the model that a score depends on."""
    return sha256_of({"measurement": measurement, "score": score})[:SHOWN]


def read_protocol(path: Path) -> Protocol:
    """Read a protocol's file.

    Raises:
        DataError: it is missing, not a protocol, or was edited without a new name.
    """
    place = str(path)
    check_regular(path, place)
    if not path.is_file():
        raise DataError(place, "there is no such file", "see `cm3 eval protocols`")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(place, f"can't be read ({error})", "correct the file") from error
    values = parse_json(text, place, "correct the file")
    return protocol_of(values, place)


def protocol_of(values: Any, place: str) -> Protocol:
    """A protocol of parsed JSON.

    Raises:
        DataError: see `read_protocol`.
    """
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(place, f"is not of the format {FORMAT!r}", "see docs/evaluation.md")
    unknown = sorted(set(values) - {*_REQUIRED, *_OPTIONAL})
    missing = [key for key in _REQUIRED if key not in values]
    if unknown or missing:
        cause = f"has no key {missing[0]!r}" if missing else f"has the unknown key {unknown[0]!r}"
        raise DataError(place, cause, "see docs/evaluation.md")
    _check(values, place)
    protocol = Protocol(
        values["name"],
        values["title"],
        values["task"],
        values["scores"],
        values.get("size"),
        values.get("seed", 2023),
    )
    stated = values.get("sha256")
    if stated is not None and stated != protocol.sha256:
        raise DataError(
            place,
            f"was edited: its content has the sha256 {protocol.sha256[:SHOWN]}..., but it states "
            f"{str(stated)[:SHOWN]}...",
            "give it another name and remove the line sha256, so that its scores aren't taken for "
            f"those of {protocol.name}",
        )
    return protocol


def _check(values: Mapping[str, Any], place: str) -> None:
    size, seed, scores, task = (values.get(key) for key in ("size", "seed", "scores", "task"))
    name, title = values["name"], values["title"]
    rules = (
        ("name", isinstance(name, str) and bool(_NAME.fullmatch(name)), "a word of a-z, 0-9, ._-"),
        ("title", isinstance(title, str), "a text"),
        (
            "task",
            isinstance(task, dict) and isinstance(task.get("name"), str),
            'an object with a "name"',
        ),
        (
            "size",
            size is None or (_whole(size) and SIZES[0] <= size <= SIZES[1]),
            f"null or {SIZES[0]} to {SIZES[1]}",
        ),
        ("seed", seed is None or (_whole(seed) and 0 <= seed < 2**62), "a whole number, 0 or more"),
        ("scores", isinstance(scores, list) and all(map(_is_score, scores)), _SCORES),
    )
    for key, holds, rule in rules:
        if not holds:
            raise DataError(f"{place}: {key}", f"must be {rule}", "correct the file")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_score(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) in ({"metric"}, {"metric", "extractor"})
        and all(
            isinstance(one, dict) and isinstance(one.get("name"), str) for one in value.values()
        )
    )


def score_configs(
    score: Mapping[str, Any], registry: Registry, place: str, writer: Writer = ANYONE
) -> tuple[MetricConfig, ExtractorConfig | None]:
    """The configs of a score's metric and extractor, as from a recipe's sections.

    `writer`: resolves bare names, see `Protocol`.

    Raises:
        DataError, RecipeError, PluginError: an unknown component, key or value, or a name that
            several plugins provide.
    """
    recipe = stored_recipe(json.dumps(dict(score)), registry, label=place, writer=writer)
    assert recipe.metric is not None
    for config in (recipe.metric, recipe.extractor):
        if config is not None:
            config.check()
    return recipe.metric, recipe.extractor


def measured_name(kind: str, name: str, config: object, registry: Registry) -> str:
    """A component's name in a measurement, which is part of its hash: cm3leon's own by its bare name,
    any other as `plugin/name`, regardless of the protocol's spelling.

    Args:
        kind, name: as in the protocol.
        config: identifies the component.
        registry: knows which plugin provides it.
    """
    provider = provider_of(registry, kind, name, config)
    short = name.rpartition("/")[2]
    if provider is None or provider.distribution in OUR_DISTRIBUTIONS:
        return short
    return f"{provider.plugin}/{short}"
