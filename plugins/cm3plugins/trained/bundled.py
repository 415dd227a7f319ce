"""The recipe key `weights`: a file, or weights bundled with this package or another distribution. Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cm3core._version import how_to_install
from cm3core.errors import CheckpointError
from cm3core.files import user_path
from cm3core.plugins.folders import folders_of
from cm3plugins.beside import CM3_BESIDE

#: Prefix of `weights` that names a file of a package, such as "bundled:emoji64".
BUNDLED = "bundled:"


def weights_path(
    weights: str | None,
    bundled: Mapping[str, Path],
    *,
    owner: str,
    section: str,
    component: str,
    trainer: str,
    content: str = "weights",
) -> Path:
    """Return the path for `weights`. The file need not exist.

    Args:
        weights: the recipe's value.
        bundled: files of this package, by name.
        owner: name of the component in recipes, see `bundled_file`.
        section: section of the recipe, for errors.
        component: what it is, for errors.
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
    return bundled_file(
        weights,
        bundled,
        owner,
        place=f"{section}.weights={weights}",
        cause=f"no such bundled {component}",
    )


def bundled_file(
    named: str, own: Mapping[str, Path], owner: str, *, place: str, cause: str
) -> Path:
    """Return the file that "bundled:NAME" names.

    Args:
        named: that name.
        own: files of this package, by name.
        owner: the component that they belong to: other distributions bring more, as OWNER/NAME.safetensors in a folder
            of weights (`cm3core.plugins.folders`).
        place, cause: of the error.

    Raises:
        CheckpointError: there is none.
    """
    name = named.removeprefix(BUNDLED)
    brought = {
        path.stem: path
        for folder in folders_of("weights")
        for path in folder.glob(f"{owner}/*.safetensors")
    }
    if (found := own.get(name) or brought.get(name)) is not None:
        return found
    if distribution := CM3_BESIDE.get(f"weights/{name}"):
        raise CheckpointError(
            place,
            f"the distribution {distribution} has it, but is not installed",
            how_to_install(distribution),
        )
    known = ", ".join(BUNDLED + one for one in sorted({*own, *brought})) or "none"
    raise CheckpointError(place, cause, f"use one of {known}, or a path")


def is_bundled(weights: str | None) -> bool:
    """Whether `weights` names a file of this package, which a checkpoint need not copy."""
    return weights is not None and weights.startswith(BUNDLED)
