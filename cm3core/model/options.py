"""The options common to all calls that generate: how results are sampled, chosen and prompted.

The methods of `Model` take them as keywords, together with the keys of the sampler, which only the
sampler's config knows. "These keys, and any others" can't be typed (PEP 728 would allow it; mypy
doesn't support it), so the methods take `**options: Any`, and `GenerationOptions.of` separates the
two in one place; everything after it is typed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any

from cm3core.errors import GenerationError
from cm3core.model.loaded import Picture


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """The options of one call; `Model` describes them.

    Args:
        sampling: keys of the sampler to change. Callers may also pass them directly.
    """

    seed: int = 0
    num_retrieved: int | None = None
    context: Sequence[tuple[Picture, str]] = ()
    num_candidates: int | None = None
    reranker: str | None = None
    sampler: str | None = None
    exclude: Collection[str] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """The options among a call's keyword arguments; all other keys are the sampler's.

        Raises:
            GenerationError: an option has the wrong type (ranges are checked where they are used).
        """
        names = {item.name for item in fields(cls)} - {"sampling"}
        own = {name: options[name] for name in names if name in options}
        for name, value in own.items():
            _check_type(name, value)
        rest = {key: value for key, value in options.items() if key not in names}
        return cls(**own, sampling=sampler_keys(rest))


def _check_type(name: str, value: object) -> None:
    """Refuse a value that isn't of the option's type: it may come from the command line."""
    number = isinstance(value, Integral) and not isinstance(value, bool)
    wanted = ""
    if name == "seed" and not number:
        wanted = "a whole number"
    elif name in ("num_retrieved", "num_candidates") and not (number or value is None):
        wanted = "a whole number or None"
    elif name in ("reranker", "sampler") and not (value is None or isinstance(value, str)):
        wanted = "a name or None"
    elif name == "exclude" and (isinstance(value, str) or not isinstance(value, Collection)):
        wanted = "a list of documents' ids"
    if wanted:
        raise GenerationError(name, f"is {value!r}, must be {wanted}", "correct the value")


def sampler_keys(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the sampler, given as `sampling={...}`, directly, or both.

    >>> sampler_keys({"temperature": 0.9, "sampling": {"guidance_scale": 1.5}})
    {'guidance_scale': 1.5, 'temperature': 0.9}

    Raises:
        GenerationError: a key is given twice.
    """
    loose = {key: value for key, value in options.items() if key != "sampling"}
    grouped: Mapping[str, Any] = options.get("sampling") or {}
    for key in grouped:
        if key in loose:
            raise GenerationError(
                f"sampling[{key!r}]", f"is also given as {key}", "give it in one of the two places"
            )
    return {**grouped, **loose}
