"""The shipped recipes: where they are, their descriptions, and how a name or path becomes a file.

Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cm3core.errors import RecipeError, close_match
from cm3core.files import user_path

SUFFIX = ".yaml"


@dataclass(frozen=True)
class RecipeFile:
    """A shipped recipe: `name`, `path`, and the one-line `description` from its header."""

    name: str
    description: str
    path: Path


def recipes_directory() -> Path:
    """`cm3core/recipes` inside the wheel, else `../recipes` in a checkout (an editable install)."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def list_recipes() -> list[RecipeFile]:
    """Return all shipped recipes that can be run, by name.

    The recipes that they extend are in the subfolder `base`."""
    return [
        RecipeFile(path.stem, description(path), path)
        for path in sorted(recipes_directory().glob(f"*{SUFFIX}"))
    ]


def header(path: Path) -> list[str]:
    """Return the comment lines at the top of a recipe, without their `# `."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return lines


def description(path: Path) -> str:
    """Return the header's first line without the recipe's name: "tiny: a ..." -> "a ..."."""
    first = (header(path) or [""])[0]
    return first.removeprefix(f"{path.stem}:").strip()


def find(name_or_path: str, *, relative_to: Path | None = None, place: str | None = None) -> Path:
    """Return the file of a recipe.

    Args:
        name_or_path: a shipped recipe's name, or a path (it has a `/` or ends with `.yaml`).
        relative_to: folder that paths are relative to; None: the working directory.
        place: where the name was written, for the error.

    Raises:
        RecipeError: there is no such recipe.
    """
    if name_or_path.endswith((SUFFIX, ".yml")) or "/" in name_or_path:
        path = Path(relative_to or ".") / user_path(name_or_path, place)
        if not _is_file(path):
            raise RecipeError(
                place or f"recipe {name_or_path}",
                f"there is no file {path}",
                "correct the path, or name a shipped recipe (cm3 recipe list)",
            )
        return path
    for folder in (recipes_directory(), recipes_directory() / "base"):
        if _is_file(path := folder / (name_or_path + SUFFIX)):
            return path
    known = [recipe.name for recipe in list_recipes()]
    raise RecipeError(
        place or f"recipe {name_or_path!r}",
        f"no shipped recipe is called {name_or_path!r}",
        close_match(name_or_path, known) + "; a file is given by its path (./mine.yaml)",
    )


def _is_file(path: Path) -> bool:
    """Whether there is such a file; also false for a name that no file can have (too long)."""
    try:
        return path.is_file()
    except OSError:
        return False


def label(path: Path) -> str:
    """Return a layer's name in messages: a shipped recipe's file name, otherwise the path."""
    return path.name if is_shipped(path) else str(path)


def is_shipped(path: Path) -> bool:
    """Whether it is the file of a shipped recipe, or of one that those extend."""
    folder = recipes_directory()
    return path.parent in (folder, folder / "base")
