"""Training a recipe's image tokenizer before its decoder, in the same command.

A recipe asks for it with `image_tokenizer.weights: null` and `image_tokenizer.train_minutes`. The tokenizer is trained on
the pictures of the recipe's data set, in the folder `codes` of the run, and resumes there. `cm3 tokenizer eval RUN/codes`
measures it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.config.schema import to_plain
from cm3core.errors import CheckpointError
from cm3core.files import make_folder, write_text
from cm3core.interfaces.dataset import DocumentSource, TaskSource
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3core.plugins.registry import built
from cm3core.recipe.recipe import files_of
from cm3run.json_text import parse_json
from cm3run.picture_arrays import pictures_of

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

#: The folder in a run's folder, and the file in it that is written when the codes are trained.
CODES, DONE = "codes", "trained.json"
#: Number of pictures on which training reports its quality.
NUM_VALIDATION = 256


def trained_codes(recipe: Recipe, out_dir: Path, registry: Registry, *, progress: bool) -> Path:
    """Train the image tokenizer of a recipe, unless it is done, and return the folder of its files.

    Raises:
        CheckpointError: the folder holds codes of other settings.
    """
    config: Any = recipe.image_tokenizer
    folder = out_dir / CODES
    settings = json.dumps(to_plain(config), sort_keys=True, default=str)
    identity = hashlib.sha256(settings.encode()).hexdigest()
    if (folder / DONE).is_file():
        done = parse_json(
            (folder / DONE).read_bytes(), str(folder / DONE), "delete it", form=dict[str, Any]
        )
        if done.get("settings") != identity:
            raise CheckpointError(
                str(folder),
                "holds image codes that were trained with other settings of image_tokenizer",
                "start in another folder (-o), or delete this one to train them again",
            )
        return folder / IMAGE_TOKENIZER
    source = _source(recipe, recipe.dataset, registry)
    pictures = pictures_of(source, config.image_size)
    if progress:
        print(
            f"first trains the image codes for {config.train_minutes:g} minutes, on {len(pictures):,} pictures, in "
            f"{folder}",
            file=sys.stderr,
        )
    make_folder(folder)
    path = config.train(
        pictures,
        folder,
        minutes=config.train_minutes,
        resume=True,
        validation_NHWC=_validation(recipe, registry),
        show_progress=progress,
    )
    trained = replace(config, weights=str(Path(path).absolute()))
    make_folder(folder / IMAGE_TOKENIZER)
    built(trained.build(), trained, registry).save(folder / IMAGE_TOKENIZER)
    described: dict[str, Any] = {"image_tokenizer": trained}
    for name, text in files_of(replace(recipe, **described), registry).items():
        write_text(folder / name, text)
    write_text(folder / DONE, json.dumps({"settings": identity}) + "\n")
    return folder / IMAGE_TOKENIZER


def _source(recipe: Recipe, config: Any, registry: Registry) -> DocumentSource:
    source: DocumentSource = built(config.build(), config, registry)
    if recipe.task is None:
        return source
    return TaskSource(source, built(recipe.task.build(), recipe.task, registry))


def _validation(recipe: Recipe, registry: Registry) -> Any:
    """Pictures of the first validation split that the data set has; None if there are none."""
    assert recipe.dataset is not None
    assert recipe.image_tokenizer is not None
    for split in (*recipe.train.validation_splits, "valid"):
        if split in recipe.dataset.splits:
            source = _source(recipe, replace(recipe.dataset, split=split), registry)
            size = recipe.image_tokenizer.image_size
            return pictures_of(source, size, NUM_VALIDATION) if len(source) else None
    return None
