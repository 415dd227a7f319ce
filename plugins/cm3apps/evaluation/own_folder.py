"""A protocol made from captioned pictures: `cm3 eval MODEL FOLDER`, `cm3 eval MODEL RECIPE.yaml`.

The pictures are those that the data set holds out. A recipe states the split, and so does a model that was trained on the
folder, so that it is asked for what it has not seen; any other model is asked for the split that the folder's data set has
by default. Scores stand beside those of copying a training picture: a model that copies is near to them, and its pictures
are near to training pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli._dataset import reader_of
from cm3apps.evaluation.tasks.documents import apart
from cm3core.config.schema import to_plain
from cm3core.errors import DataError
from cm3core.files import user_path
from cm3core.interfaces.dataset import DocumentSource, DocumentSourceConfig
from cm3core.plugins.registry import ANYONE
from cm3core.recipe import compose
from cm3core.recipe.merge import stored_recipe
from cm3plugins.metrics.ranking import LEAST_CANDIDATES
from cm3run.evaluation.protocol import Protocol, canonical

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3run.model import Model

#: The split that holds pictures out, and the most that are drawn unless the user says otherwise.
SPLIT, NUM = "valid", 100


def folder_protocol(
    folder: Path, registry: Registry, model: Model | None, num: int | None = None
) -> Protocol:
    """The protocol.

    Args:
        folder: of pictures and captions, or of tars of them; or a recipe's file, whose data set is read.
        registry: has the data sets.
        model: the model to evaluate; None for pictures from another model.
        num: pictures to draw at most; None: `NUM`.

    Raises:
        DataError: no picture is held out, or there are only their codes.
    """
    section = _section(folder, registry, model)
    text = canonical({"dataset": section})
    recipe = stored_recipe(text, registry, label=f"folder {folder}", writer=ANYONE)
    config = recipe.dataset
    assert isinstance(config, DocumentSourceConfig)
    held, train = (replace(config, split=split).build() for split in (SPLIT, "train"))
    groups = num_groups(held, apart(held, train))
    if not groups:
        alike = f" or look like one of these ({len(held)})" if len(held) else ""
        raise DataError(
            str(folder),
            f"holds out no picture: all are in the split train ({len(train)}){alike}",
            f"add pictures, or train with a larger dataset.{SPLIT}, the share that is held out",
        )
    number = min(groups, NUM if num is None else num)
    named = folder.resolve()
    return Protocol(
        f"{_word(named.stem if is_recipe(folder) else named.name)}-{SPLIT}-{number}",
        f"{number} held-out pictures of the {'recipe' if is_recipe(folder) else 'folder'} {named.name}",
        {
            "name": "documents",
            "dataset": section,
            "split": SPLIT,
            "num": number,
            "apart": True,
            "baselines": True,
        },
        scores_beside(train),
        size=64 if model is None else min(model.image_size),
    )


def scores_beside(train: DocumentSource) -> list[dict[str, Any]]:
    """The scores of held-out pictures beside these training data: how probable they are, how near what is drawn is to a
    training picture, and how often the real picture is the nearest of many; that last, only with enough of them."""
    scores: list[dict[str, Any]] = [
        {"metric": {"name": "nats", "modality": "image"}},
        {"metric": {"name": "copy_of_training"}},
    ]
    if num_groups(train) > LEAST_CANDIDATES:
        extractor = {"name": "pixels", "side": 32, "blur": True}
        scores.append({"metric": {"name": "judge"}, "extractor": extractor})
    return scores


def num_groups(source: DocumentSource, indices: Sequence[int] | None = None) -> int:
    """Number of different groups of some documents, or of all."""
    chosen = range(len(source)) if indices is None else indices
    return len({source.group(index) or source.id(index) for index in chosen})


def is_recipe(path: Path) -> bool:
    """Whether a path is a recipe's file."""
    return path.suffix.lower() in (".yaml", ".yml") and path.is_file()


def reads(model: Model, folder: Path) -> bool:
    """Whether the model's data set is this folder, with pictures held out."""
    own = model.recipe.dataset
    path = getattr(own, "path", None)
    if not isinstance(path, str) or not isinstance(own, DocumentSourceConfig):
        return False
    return user_path(path).resolve() == folder.resolve() and SPLIT in own.splits


def without_held_out(model: Model, folder: Path) -> Model:
    """The model, retrieving from the folder's training split alone if it retrieves from the folder: its own memory may
    hold the pictures that are drawn."""
    config = model.recipe.retriever
    if config is None or not config.retrieves or config.bank or not reads(model, folder):
        return model
    return model.with_memory(split="train")


def _section(folder: Path, registry: Registry, model: Model | None) -> dict[str, Any]:
    """The data set: the recipe's; the model's own if it reads this folder, with its split; or what reads such a folder."""
    if is_recipe(folder):
        recipe = compose(str(folder), registry=registry)
    elif (folder / "manifest.json").is_file() and any(folder.glob("*.tar")):
        raise DataError(
            str(folder),
            "holds token shards, which have no pictures to compare with",
            "name the folder of the pictures that were encoded, or the recipe with which they were",
        )
    elif model is None or not reads(model, folder):
        name = reader_of(str(folder), registry) or "folder"
        return {"name": name, "path": str(folder.resolve())}
    else:
        recipe = model.recipe
    if recipe.dataset is None:
        raise DataError(str(folder), "has no section 'dataset'", "name a recipe with a data set")
    keys = {key: value for key, value in to_plain(recipe.dataset).items() if key != "split"}
    return {"name": recipe.component_names["dataset"], **keys}


def _word(text: str) -> str:
    """A protocol's name from a folder's.

    >>> _word("My Pictures (2)"), _word("...")
    ('my-pictures-2', 'folder')
    """
    kept = "".join(one if one.isascii() and one.isalnum() else "-" for one in text.lower())
    return "-".join(filter(None, kept.split("-"))) or "folder"
