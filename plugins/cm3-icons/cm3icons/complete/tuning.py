"""`--tune`: a model tuned on a set's own drawings, with their versions in other hands as documents, and whether it reads
drawings that it has not seen better than the model does as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli.tune import tuning_recipe
from cm3core.document import Codes, Document, ImageHole, Text
from cm3core.errors import CM3Error, DataError
from cm3core.files import make_folder, write_text
from cm3icons.complete.drawing import Completer
from cm3icons.data import IconSourceConfig
from cm3plugins.datasets.file_source import split_of
from cm3run.model.model import Model, load
from cm3run.training import train

if TYPE_CHECKING:
    from cm3icons.complete.sets import OwnSet

#: The run's folder, and its recipe, in the folder of the results.
RUN, RECIPE = "tuned", "tuned.yaml"
#: Share of the drawings that are not trained on, and how many of them are compared at most.
VALID, _COMPARED = 0.1, 64
#: A smaller set has too few drawings to leave some out.
LEAST = 20
_LEARNING_RATE, _MUON = 1e-3, 0.005


@dataclass(frozen=True)
class Comparison:
    """How well drawings are read that were not trained on.

    Args:
        number: of drawings.
        before, after: mean nats a code of the model as it is, and of the tuned one.
    """

    number: int
    before: float
    after: float

    @property
    def helps(self) -> bool:
        """Whether tuning pays."""
        return self.after < self.before

    @property
    def told(self) -> str:
        """A line for the terminal."""
        line = f"tuned: {self.after:.3f} nats a code on {self.number} drawings that were left out, untuned: {self.before:.3f}"
        return line if self.helps else f"{line}; the untuned model draws"


def tuned(model: Model, own: OwnSet, folder: Path, minutes: float) -> Model:
    """The model tuned on the set for so many minutes; a finished run in the folder is used again.

    Raises:
        CM3Error: the set is no folder, or too small.
        CheckpointError: the folder's run is of another set, model or length.
    """
    if own.folder is None:
        raise CM3Error(
            "--tune",
            "tunes on a folder's drawings, and the model has learnt its own sets",
            "leave it out",
        )
    if len(own.source) < LEAST:
        cause = f"needs {LEAST} drawings, and the set has {len(own.source)} that can be used"
        raise CM3Error("--tune", cause, "leave it out")
    make_folder(folder)
    path = folder / RECIPE
    write_text(path, json.dumps(_sections(model, own, minutes), indent=1) + "\n")  # JSON is YAML
    registry = model.components.registry
    recipe = tuning_recipe(model.name, str(path), [], registry)
    result = train(recipe, folder / RUN, registry, command="the same command")
    return load(
        result.checkpoint,
        registry=registry,
        device=model.engine.inference.device,
        num_threads=model.options.num_threads,
    )


def _sections(model: Model, own: OwnSet, minutes: float) -> dict[str, Any]:
    """The recipe's own sections; the model has the others."""
    stored = model.recipe.to_dict()
    assert own.folder is not None
    return {
        "name": "tuned",
        "dataset": {
            "name": "svg_folder",
            "path": str(own.folder.resolve()),
            "style": own.style,
            "title": own.title,
            "valid": VALID,
            "things": _things(model),
        },
        "retriever": {
            "name": "facets",
            "num_retrieved": 2,
            "random_num_retrieved": True,
            "num_ranks": 8,
        },
        "train": {
            "minutes": minutes,
            "batch_rows": stored["train"]["batch_rows"],
            "optimizer": stored["train"]["optimizer"],
            "learning_rate": _LEARNING_RATE,
            "muon_learning_rate": _MUON,
            "weight_decay": stored["train"]["weight_decay"],
            "warmup_steps": 10,
            "final_learning_rate_fraction": 0.0,
            "precision": stored["train"]["precision"],
            "num_threads": stored["train"]["num_threads"],
            "validation_splits": [],
        },
    }


def _things(model: Model) -> dict[str, Any] | None:
    """The icons that the model learnt from; None if its data are others, which a stranger's model may not name here."""
    dataset = model.recipe.dataset
    icons = None if dataset is None else dataset.memory_config()
    if not isinstance(icons, IconSourceConfig) or icons.path is not None:
        return None
    own = {key: getattr(icons, key) for key in ("held_out", "sets", "styles", "things_share")}
    return {"name": "icons", "split": "train", **own}


def compared(model: Model, other: Model, completer: Completer) -> Comparison:
    """Compare two models on the set's drawings that were not trained on, each after a version of the thing and another
    drawing of the set.

    Args:
        model, other: as it is, and tuned.
        completer: finds documents.
    """
    source = completer.own.source
    left_out = [
        index for index in range(len(source)) if split_of(source.id(index), VALID) == "valid"
    ]
    documents: list[Document] = []
    filled: list[Document] = []
    before: list[Sequence[Document]] = []
    for index in left_out[:_COMPARED]:
        try:
            codes = next(
                one for one in model.coded(source.document(index)) if isinstance(one, Codes)
            )
        except DataError:
            continue
        name = source.group(index)
        [pair] = completer.documents(name, 1).pairs(1)
        text = Text(completer.own.caption(name))
        documents.append((text, ImageHole()))
        filled.append((text, codes))
        before.append([one.document for one in pair])
    if not documents:
        raise CM3Error("--tune", "left no drawing out to compare with", "leave it out")
    means = []
    for one in (model, other):
        likelihood = one.components.likelihood
        contents = [
            likelihood.contents_of(own, whole) for own, whole in zip(documents, filled, strict=True)
        ]
        found = likelihood.log_probability(documents, contents, retrieved=before)
        means.append(-sum(own.nats for own in found) / sum(own.num_tokens for own in found))
    return Comparison(len(documents), *means)
