"""Shared by commands that read data sets: finding the data set, and reading its pictures.

A data set is given by a recipe, by overrides alone, or by a path.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cm3core.errors import DataError, RecipeError, close_match
from cm3core.files import user_path
from cm3core.interfaces.dataset import TaskSource
from cm3core.plugins.registry import built
from cm3core.recipe.forms import OVERRIDE, plain
from cm3core.recipe.library import STANDARD_INPUT
from cm3run.hub import is_address
from cm3run.picture_arrays import spread

if TYPE_CHECKING:
    from cm3core.document import IntArray, PixelArray
    from cm3core.interfaces.dataset import DocumentSource, DocumentSourceConfig
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.task import TaskConfig
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

#: What differs between reasons of one sort.
_NUMBER = re.compile(r"-?[\d.]+")


def is_override(argument: str) -> bool:
    """Whether an argument has the form of an override, and is no path with `=` in it."""
    return OVERRIDE.fullmatch(argument) is not None and not _exists(argument)


def _exists(path: str) -> bool:
    """Whether a path exists; false for an impossible one."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def reader_of(path: str, registry: Registry) -> str | None:
    """The name of the data set that reads such a path (`DocumentSourceConfig.reads`).

    It depends on the suffix. A folder is one of pictures, or of tars if it holds these and no picture. None if it does
    not look like data.
    """
    from cm3core.interfaces.dataset import FOLDER
    from cm3core.plugins.registry import marked

    readers: dict[str, str] = {}
    for name, endings in marked(registry, "dataset", "reads").items():
        for ending in cast("tuple[str, ...]", endings):
            readers.setdefault(ending, name)
    if reader := readers.get(Path(path).suffix.lower()):
        return reader
    if is_address(path):
        return readers.get(_ending_on_the_hub(path) or FOLDER)
    folder = user_path(path)
    if not folder.is_dir():
        return None
    return readers.get(".tar" if _holds_tars(folder) else FOLDER)


def _ending_on_the_hub(path: str) -> str | None:
    """The suffix of the tars or tables of an address of the Hub; None: it has pictures, which are read as a folder's."""
    from cm3core.images import OTHER_SUFFIXES
    from cm3plugins.datasets.hub_data import endings

    found = endings(path)
    if not found.isdisjoint({".png", *OTHER_SUFFIXES}):
        return None
    return next((one for one in (".tar", ".parquet") if one in found), None)


def _holds_tars(folder: Path) -> bool:
    """Whether a folder holds tars of records: neither token shards, which have a manifest, nor pictures."""
    from cm3core.images import OTHER_SUFFIXES

    if not any(folder.glob("*.tar")) or (folder / "manifest.json").is_file():
        return False
    suffixes = (".png", *OTHER_SUFFIXES)
    return not any(path.suffix.lower() in suffixes for path in folder.rglob("*"))


def composed(values: dict[str, Any], overrides: Sequence[str], registry: Registry) -> Recipe:
    """A recipe made of `values` and the command line's overrides, which take precedence."""
    from cm3core.recipe.merge import compose_values

    try:
        json.dumps([values, *overrides], ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:  # surrogates stand for bytes of a file name; some versions of OmegaConf would write them
        name = error.object[: error.end][-60:]
        raise DataError(
            "arguments",
            f"have a name that is not UTF-8 ({name!a}), which no recipe can hold",
            "rename the folder or the file",
        ) from error
    return compose_values(values, overrides, registry=registry, label="arguments")


def recipe_of(target: str | None, overrides: Sequence[str], registry: Registry) -> Recipe:
    """The recipe given by `[RECIPE | PATH] [section.key=value ...]`.

    Args:
        target: a recipe's name or file, the path of data, the name of a data set, or an override;
            None: overrides alone.
        overrides: further overrides.
        registry: the components.

    Raises:
        DataError: the target is unknown, or a picture.
    """
    from cm3core.recipe import compose, list_recipes

    if target is None:
        return composed({}, overrides, registry)
    if is_override(target) or (plain(target, registry.kinds) != target and not _exists(target)):
        return composed({}, [target, *overrides], registry)
    if target not in {recipe.name for recipe in list_recipes()} | {str(STANDARD_INPUT)}:
        if reader := reader_of(target, registry):
            return composed({"dataset": {"name": reader, "path": target}}, overrides, registry)
        if target in registry.names("dataset"):
            return composed({"dataset": {"name": target}}, overrides, registry)
        if not Path(target).exists() and Path(target).suffix not in (".yaml", ".yml"):
            known = [*(recipe.name for recipe in list_recipes()), *registry.names("dataset")]
            raise DataError(
                target,
                "is not a file, folder, recipe or data set",
                close_match(target, known),
            )
        _check_no_picture(target)
    return compose(target, overrides, registry=registry)


def _check_no_picture(target: str) -> None:
    """Raise `DataError` for a single picture, which is neither a recipe nor a data set."""
    from cm3core.images import OTHER_SUFFIXES

    path = Path(target)
    if path.suffix.lower() in (".png", *OTHER_SUFFIXES):
        raise DataError(
            target,
            "is a picture, but a data set is a folder or a file that names pictures",
            f"give its folder, with a caption beside each picture: {path.parent}",
        )


def count_of(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count_of(1, "document"), count_of(1234, "document")
    ('1 document', '1,234 documents')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class ChosenData:
    """A data set: its component's `name`, its `config`, its `title` in output, and the `task` that turns
    its records into documents."""

    name: str
    config: DocumentSourceConfig
    registry: Registry
    task: TaskConfig | None = None

    @property
    def title(self) -> str:
        """The data set's path, if it has one, and its name."""
        path = getattr(self.config, "path", None)
        return f"{path} ({self.name})" if isinstance(path, str) else self.name

    def build(self, split: str) -> DocumentSource:
        """Open one split."""
        config = replace(self.config, split=split)
        config.check()
        source: DocumentSource = built(config.build(), config, self.registry)
        if self.task is None:
            return source
        return TaskSource(source, built(self.task.build(), self.task, self.registry))


def data_of(recipe: Recipe, registry: Registry) -> ChosenData:
    """The data set of a recipe; raises `RecipeError` if it has none."""
    if recipe.dataset is None:
        raise RecipeError(
            "dataset",
            "no data set is given",
            "give a recipe, a path, or dataset=NAME dataset.KEY=VALUE",
        )
    return ChosenData(recipe.component_names["dataset"], recipe.dataset, registry, recipe.task)


def data_source(recipe: Recipe, split: str | None) -> DocumentSource:
    """The recipe's data set, or another split of it; raises `RecipeError` if it has none."""
    if recipe.dataset is None:
        raise RecipeError(
            f"recipe {recipe.name}", "has no section 'dataset'", "add dataset=NAME to the command"
        )
    config = recipe.dataset if split is None else replace(recipe.dataset, split=split)
    config.check()
    source: DocumentSource = built(config.build(), config)
    return source if recipe.task is None else TaskSource(source, recipe.task.build())


def limit_threads(recipe: Recipe) -> None:
    """Set torch's number of threads to the recipe's, if it gives one; raises `RecipeError` for a
    number that torch can't start."""
    if recipe.train.num_threads is not None:
        import torch

        from cm3core.interfaces.component import check_numbers
        from cm3core.recipe.sections import TRAIN_RANGES

        check_numbers("train", recipe.train, TRAIN_RANGES)

        torch.set_num_threads(recipe.train.num_threads)


def drawings_of(
    source: DocumentSource, tokenizer: ImageTokenizer, num: int | None = None
) -> tuple[PixelArray, IntArray, dict[str, int]]:
    """Like `pictures_of`, for a tokenizer that reads drawings: also their codes int32 [N, c], and how many drawings were
    left out for which reason.

    Raises:
        DataError: no picture can be encoded.
    """
    import numpy as np

    from cm3core.images import fit
    from cm3run.progress import make_bar

    pixels, codes, reasons = [], [], Counter[str]()
    for picture in make_bar(
        spread(source, num), desc="pictures", unit="", disable=None, leave=False
    ):
        try:
            codes.append(tokenizer.encode_image(picture))
            pixels.append(fit(picture.load(), tokenizer.image_size))
        except DataError as error:
            reasons[_NUMBER.sub("...", error.cause)] += 1
    if not codes:
        reason = reasons.most_common(1)[0][0] if reasons else "it has none"
        raise DataError(
            "the data set", f"no picture can be encoded: {reason}", "use another tokenizer"
        )
    return np.stack(pixels), np.stack(codes), dict(reasons.most_common())
