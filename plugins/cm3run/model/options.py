"""The options common to all calls that generate: how results are sampled, chosen and prompted.

The methods of `Model` take them as keywords, together with the keys of the sampler, which only the
sampler's config knows. "These keys, and any others" can't be typed (PEP 728 would allow it; mypy
doesn't support it), so the methods take `**options: Any`, and `GenerationOptions.of` separates the
two in one place; everything after it is typed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from cm3core.arguments import Called, Count, CountOrZero, Name, check_fields, check_value
from cm3core.errors import GenerationError
from cm3run.model.loaded import Picture


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """The options of one call; `Model` describes them.

    Args:
        sampling: keys of the sampler to change. Callers may also pass them directly.
    """

    seed: int = 0
    num_retrieved: CountOrZero | None = None
    context: Sequence[tuple[Picture, str]] = ()
    num_candidates: Count | None = None
    reranker: Name | None = None
    sampler: Name | None = None
    exclude: Annotated[Collection[str], Called("a list of documents' ids")] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, GenerationError)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """The options among a call's keyword arguments; all other keys are the sampler's.

        Raises:
            GenerationError: an option has the wrong type or is out of its range.
        """
        names = {item.name for item in fields(cls)} - {"sampling"}
        own = {name: options[name] for name in names if name in options}
        rest = {key: value for key, value in options.items() if key not in names}
        return cls(**own, sampling=sampler_keys(rest))


def sampler_keys(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the sampler, given as `sampling={...}`, directly, or both.

    >>> sampler_keys({"temperature": 0.9, "sampling": {"guidance_scale": 1.5}})
    {'guidance_scale': 1.5, 'temperature': 0.9}

    Raises:
        GenerationError: a key is given twice.
    """
    loose = {key: value for key, value in options.items() if key != "sampling"}
    check_value("sampling", options.get("sampling"), Mapping[str, Any] | None, GenerationError)
    grouped: Mapping[str, Any] = options.get("sampling") or {}
    for key in grouped:
        if key in loose:
            raise GenerationError(
                f"sampling[{key!r}]", f"is also given as {key}", "give it in one of the two places"
            )
    return {**grouped, **loose}
