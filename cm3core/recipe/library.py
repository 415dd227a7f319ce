"""The shipped recipes: their location, their descriptions, and how a name or path becomes a file.

Besides our own, other installed distributions can bring recipes (`cm3core.plugins.folders`). Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cm3core._version import DISTRIBUTION, how_to_install
from cm3core.errors import RecipeError, close_match
from cm3core.files import user_path
from cm3core.plugins.folders import folders_of

SUFFIX = ".yaml"
#: The path that means the standard input, its name in messages, and the default name of a recipe that is read there.
STANDARD_INPUT = Path("-")
STANDARD_INPUT_LABEL = "standard input"
STANDARD_INPUT_NAME = "stdin"
#: Subfolder of recipes that are swept; their names begin with it.
CLAIMS = "claims"


@dataclass(frozen=True)
class RecipeFile:
    """A shipped recipe: `name`, `path`, and the one-line `description` from its header."""

    name: str
    description: str
    path: Path


def recipes_directory() -> Path:
    """`cm3core/recipes` inside the wheel, otherwise `../recipes` in a checkout (an editable install)."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def brought() -> dict[Path, str]:
    """Return the recipe folders of installed distributions -> the distribution's name."""
    return folders_of("recipes")


def list_recipes() -> list[RecipeFile]:
    """Return all shipped recipes that can be run, by name: ours, and those of other distributions whose names are not
    used by ours.

    The recipes that ours extend are in the subfolder `base`; those of `claims` are called `claims/NAME`."""
    found: dict[str, Path] = {}
    for folder in (recipes_directory(), *brought()):
        for path in folder.glob(f"*{SUFFIX}"):
            found.setdefault(path.stem, path)
        for path in (folder / CLAIMS).glob(f"*{SUFFIX}"):
            found.setdefault(f"{CLAIMS}/{path.stem}", path)
    return [RecipeFile(name, description(path), path) for name, path in sorted(found.items())]


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
    return first.removeprefix(f"{CLAIMS}/").removeprefix(f"{path.stem}:").strip()


def find(
    name_or_path: str,
    *,
    relative_to: Path | None = None,
    place: str | None = None,
    distribution: str = "",
) -> Path:
    """Return the file of a recipe.

    Args:
        name_or_path: a shipped recipe's name, a path (contains a `/` or ends with `.yaml`), or "-" for the
            standard input.
        relative_to: folder that paths are relative to; None: the working directory.
        place: where the name was written, for the error.
        distribution: the one that has the recipe, if known; for the error.

    Raises:
        RecipeError: there is no such recipe.
    """
    if name_or_path == str(STANDARD_INPUT) and relative_to is None:
        return STANDARD_INPUT
    is_claim = Path(name_or_path).parent == Path(CLAIMS)
    folders = [
        recipes_directory(),
        *([] if is_claim else [recipes_directory() / "base"]),
        *brought(),
    ]
    if is_claim or not (name_or_path.endswith((SUFFIX, ".yml")) or "/" in name_or_path):
        for folder in folders:
            if _is_file(path := folder / (name_or_path + SUFFIX)):
                return path
        if distribution:
            raise RecipeError(
                f"recipe {name_or_path!r}" if place is None else f"{place} {name_or_path}",
                f"the distribution {distribution} has it, but is not installed",
                how_to_install(distribution),
            )
    if name_or_path.endswith((SUFFIX, ".yml")) or "/" in name_or_path:
        path = Path(relative_to or ".") / user_path(name_or_path, place)
        if not _is_file(path):
            raise RecipeError(
                place or f"recipe {name_or_path}",
                f"there is no file {path}",
                "correct the path, or name a shipped recipe (cm3 recipe list)",
            )
        return path
    known = [recipe.name for recipe in list_recipes()]
    raise RecipeError(
        place or f"recipe {name_or_path[:200]!r}",
        f"no shipped recipe is called {name_or_path[:200]!r}",
        close_match(name_or_path, known) + "; name a file by its path (./mine.yaml)",
    )


def _is_file(path: Path) -> bool:
    """Whether the file exists; also false for an impossible name (too long)."""
    try:
        return path.is_file()
    except OSError:
        return False


def label(path: Path) -> str:
    """Return a layer's name in messages: a shipped recipe's file name, otherwise the path."""
    if path == STANDARD_INPUT:
        return STANDARD_INPUT_LABEL
    return path.name if is_shipped(path) else str(path)


def is_shipped(path: Path) -> bool:
    """Whether it is the file of a shipped recipe, or of a recipe that these extend."""
    return distribution_of(path) != ""


def distribution_of(path: Path) -> str:
    """Return the distribution that ships a recipe file; "": none."""
    folder = recipes_directory()
    if path.parent in (folder, folder / "base", folder / CLAIMS):
        return DISTRIBUTION
    place = path.parent.parent if path.parent.name == CLAIMS else path.parent
    return brought().get(place, "")
