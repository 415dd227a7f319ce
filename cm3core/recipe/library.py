"""The shipped recipes: their location, their descriptions, and how a name or path becomes a file.

Besides our own, other installed distributions can provide recipes by naming their folder as a module:

    [project.entry-points."cm3core.recipes"]
    my_plugin = "my_package.recipes"

Imports nothing heavy."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cm3core._version import DISTRIBUTION, how_to_install
from cm3core.errors import RecipeError, close_match
from cm3core.files import user_path

SUFFIX = ".yaml"
#: The path that means the standard input, its name in messages, and the default name of a recipe that is read there.
STANDARD_INPUT = Path("-")
STANDARD_INPUT_LABEL = "standard input"
STANDARD_INPUT_NAME = "stdin"
#: Subfolder of recipes that are swept; their names begin with it.
CLAIMS = "claims"
#: Group of the entry points that name folders of recipes.
GROUP = "cm3core.recipes"


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
    """Return the recipe folders of installed distributions -> the distribution's name.

    Entry points are read as text files: importing importlib.metadata takes longer than listing the recipes."""
    found: dict[Path, str] = {}
    for points in _entry_points():
        text = points.read_text(encoding="utf-8", errors="replace")
        if f"[{GROUP}]" not in text:
            continue
        for line in text.partition(f"[{GROUP}]")[2].partition("\n[")[0].splitlines():
            package, *rest = line.partition("=")[2].strip().split(".")
            for place in _folders(package):
                found.setdefault(place.joinpath(*rest), points.parent.name.partition("-")[0])
    return found


def _entry_points() -> Iterator[Path]:
    """The entry-point files of installed distributions; if one is in several folders, the first counts."""
    seen: set[str] = set()
    for folder in sys.path:
        for pattern in ("*.dist-info", "*.egg-info"):
            for info in sorted(Path(folder or ".").glob(f"{pattern}/entry_points.txt")):
                name = info.parent.name.partition("-")[0]
                if name not in seen:
                    seen.add(name)
                    yield info


def _folders(package: str) -> list[Path]:
    """The folders of a package, found without importing it; empty if there are none."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    places = None if spec is None else spec.submodule_search_locations
    return [Path(place) for place in places or ()]


def list_recipes() -> list[RecipeFile]:
    """Return all shipped recipes that can be run, by name: ours, and those of other distributions whose names are not
    used by ours.

    The recipes that ours extend are in the subfolder `base`; those of `claims` are called `claims/NAME`."""
    found: dict[str, Path] = {}
    for folder in (recipes_directory(), *brought()):
        for path in folder.glob(f"*{SUFFIX}"):
            found.setdefault(path.stem, path)
    for path in (recipes_directory() / CLAIMS).glob(f"*{SUFFIX}"):
        found[f"{CLAIMS}/{path.stem}"] = path
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
    claim = recipes_directory() / (name_or_path + SUFFIX)
    if Path(name_or_path).parent == Path(CLAIMS) and _is_file(claim):
        return claim
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
    for folder in brought():
        if _is_file(path := folder / (name_or_path + SUFFIX)):
            return path
    if distribution:
        raise RecipeError(
            place or f"recipe {name_or_path!r}",
            f"the distribution {distribution} has it, but is not installed",
            how_to_install(distribution),
        )
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
    return brought().get(path.parent, "")
