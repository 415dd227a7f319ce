"""`cm3 experiment scaling` and `cm3 experiment settings`: loss and usable icons by size, tokens and documents of training; and
by guidance and documents of generation. Light: the arms of both.

Icons are judged by the metric `usable` (docs/evaluation.md): the asked thing, in the asked hand, and no copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Held-out splits of icons that are judged, and whose losses are measured.
SPLITS = ("restyle", "variant", "unseen", "missing", "strangers")


@dataclass(frozen=True)
class Trained:
    """One way to train.

    Args:
        title: title in tables.
        overrides: overrides of the recipe.
        share: of the steps that the others train.
    """

    title: str
    overrides: tuple[str, ...] = ()
    share: float = 1.0


def _size(layers: int, width: int, heads: int) -> tuple[str, ...]:
    return (
        f"decoder.num_layers={layers}",
        f"decoder.d_model={width}",
        f"decoder.num_heads={heads}",
    )


def _documents(number: int) -> Trained:
    """A context with room for three documents, and as many tokens a step, whatever the number."""
    room = ("decoder.context_length=432", "train.batch_rows=9")
    title = "no documents" if number == 0 else f"{number} document{'' if number == 1 else 's'}"
    return Trained(title, (*room, f"retriever.num_retrieved={number}"))


SMALL, MEDIUM, LARGE = _size(4, 128, 2), _size(5, 192, 3), _size(8, 320, 5)
#: Arm -> how it is trained.
TRAININGS: Mapping[str, Trained] = {
    "1m": Trained("1M parameters", SMALL),
    "3m": Trained("3M parameters", MEDIUM),
    "10m": Trained("10M parameters", LARGE),
    "1m-quarter": Trained("1M, a quarter of the tokens", SMALL, 0.25),
    "3m-quarter": Trained("3M, a quarter of the tokens", MEDIUM, 0.25),
    "10m-quarter": Trained("10M, a quarter of the tokens", LARGE, 0.25),
    **{f"documents-{number}": _documents(number) for number in range(4)},
}


@dataclass(frozen=True)
class Drawn:
    """Settings of generation.

    Args:
        title: title in tables.
        options: keyword arguments of `Model.generate_images`; the others are the recipe's.
    """

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _one(title: str, **options: Any) -> Drawn:
    return Drawn(title, {"num_candidates": 1, **options})


def _best_of(title: str, **options: Any) -> Drawn:
    return Drawn(f"{title}, best of 4", {"num_candidates": 4, **options})


#: Arm -> settings of generation.
DRAWINGS: Mapping[str, Drawn] = {
    "recipe": Drawn("the recipe's settings"),
    "unguided": _one("no guidance", sampler="top_p"),
    **{
        f"cfg-{scale:g}": _one(f"guidance, scale {scale:g}", sampler="cfg", guidance_scale=scale)
        for scale in (1.5, 2.0, 3.0, 5.0)
    },
    "cd-k": _one("contrastive, CD-K", sampler="cd_k"),
    "contrastive": _one("contrastive, k = 1", sampler="contrastive"),
    "unguided-of-4": _best_of("no guidance", sampler="top_p"),
    "cfg-of-4": _best_of("guidance", sampler="cfg"),
    "cfg-3-of-4": _best_of("guidance, scale 3", sampler="cfg", guidance_scale=3.0),
    "cd-k-of-4": _best_of("CD-K", sampler="cd_k"),
    "both-3-of-4": _best_of(
        "half guidance of scale 3, half CD-K", sampler="mixture", guidance_scale=3.0
    ),
    **{
        f"documents-{number}": _one(_documents(number).title, num_retrieved=number)
        for number in range(4)
    },
}


@dataclass(frozen=True)
class JudgedSettings:
    """Settings of the measurement; all results in a folder have the same.

    Args:
        splits: held-out splits whose icons are judged.
        num: icons of each split.
        seed: of drawing.
    """

    splits: tuple[str, ...]
    num: int
    seed: int = 2023


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(JudgedSettings):
    """Those of trainings. With 0 icons only losses are measured.

    Args:
        steps: of each training, before its arm's share.
        overrides: of the recipe, for all arms.
    """

    steps: int
    overrides: tuple[str, ...] = ()
