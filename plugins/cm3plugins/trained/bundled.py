"""The recipe key `weights`: a file, or weights bundled with this package. Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cm3core.errors import CheckpointError
from cm3core.files import user_path

#: Prefix of `weights` that names a file of this package, such as "bundled:emoji64".
BUNDLED = "bundled:"


def weights_path(
    weights: str | None,
    bundled: Mapping[str, Path],
    *,
    section: str,
    component: str,
    trainer: str,
    content: str = "weights",
) -> Path:
    """Return the path for `weights`. The file need not exist.

    Args:
        weights: the recipe's value.
        bundled: files of this package, by name.
        section: section of the recipe, for errors.
        component: name of the component, for errors.
        trainer: command that writes such files, for errors.
        content: content of the files, for errors.

    Raises:
        CheckpointError: `weights` is None, a folder, or an unknown bundled name.
    """
    if weights is None:
        raise CheckpointError(
            f"{section}.weights",
            f"is null: there are no {content} to use",
            f"train them with `{trainer}`, then set {section}.weights to the file",
        )
    if not weights.startswith(BUNDLED):
        path = user_path(weights)
        if path.is_dir():
            raise CheckpointError(
                f"{section}.weights={weights}",
                "is a folder, and this key names a file",
                f"write {section}={weights}, which takes the {component} with its weights from there",
            )
        return path
    name = weights.removeprefix(BUNDLED)
    if name not in bundled:
        raise CheckpointError(
            f"{section}.weights={weights}",
            f"no such bundled {component}",
            f"use one of {', '.join(sorted(bundled)) or 'none'}, or a path",
        )
    return bundled[name]


def is_bundled(weights: str | None) -> bool:
    """Whether `weights` names a file of this package, which a checkpoint need not copy."""
    return weights is not None and weights.startswith(BUNDLED)
