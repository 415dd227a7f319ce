"""Checkpoints: a folder, either complete or absent, with everything that a run needs to resume and a
model needs to generate.

    OUT/checkpoints/step-00001000/
        model.safetensors        weights, float32; for a run that trains adapters, the next two instead
        adapter_model.safetensors, adapter_config.json   in peft's format
        optimizer.safetensors    optimiser state and random generators; not in an exported model
        state.json               step, clock, position in the data, vocabulary, fingerprints, hashes
        recipe.yaml              the resolved recipe
        plugins.json             plugins and their versions
        components.json          the plugin that provided each of the recipe's components
        tasks.json               the tasks that the model was tuned for, if any
        plugins/                 source of the one-file plugins that the recipe needs; runs only with permission
        words.txt                the words of the training texts; omitted if there were too many texts
        text_tokenizer/          files saved by the text tokenizer
        provenance.json          licences of the data, in an exported model; otherwise it is in OUT
        image_tokenizer/         files saved by the image tokenizer; omitted if its package provides them

A checkpoint is written under another name, flushed, and renamed; the newest is the complete one with the highest
step. No file is a pickle, so an untrusted checkpoint can be refused but can't run code.

If several processes share a decoder, folders `model_shards` and `optimizer_shards` replace the two
safetensors files, see `tensors`.

layout      the files: names and places, `state.json`, hashes; from a folder to its newest checkpoint
naming      from a model's name to its folder
hub_models  models in repositories of the Hugging Face Hub
tensors     the safetensors files, whole or in parts written by several processes
writing     write a checkpoint of a run
exporting   export a checkpoint as a model folder; merge an adapter and its base into a whole model
opening     from a name to a model ready to generate; checks whether it fits a recipe
adapters    adapters, which name their base model
tasks       the tasks that a model was tuned for
carried     plugin files included in a checkpoint
words       the words of a prompt that the model has never seen
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3run.checkpoint.exporting import export_model, merge_adapter
    from cm3run.checkpoint.layout import (
        FORMAT,
        IMAGE_TOKENIZER,
        OPTIMIZER,
        PLUGINS,
        RECIPE,
        STATE,
        TOKENIZER,
        WEIGHTS,
        CheckpointState,
        complete_checkpoints,
        find_checkpoint,
        latest_checkpoint,
        read_state,
    )
    from cm3run.checkpoint.naming import bundled_models, find_model, lasting_name, model_name
    from cm3run.checkpoint.opening import (
        CHANGEABLE_KEYS,
        OpenedCheckpoint,
        check_decoder,
        check_fingerprints,
        check_recipe,
        generating_as,
        open_checkpoint,
        open_for_generation,
        read_recipe,
        trains_the_same,
    )
    from cm3run.checkpoint.tasks import TASKS, read_tasks, tasks_of
    from cm3run.checkpoint.tensors import (
        load_weights,
        read_divided_state,
        read_tensors,
        read_training_state,
        restore_generators,
    )
    from cm3run.checkpoint.writing import Snapshot, remove_leftovers, save_checkpoint
    from cm3run.tasks import TunedTasks

__all__ = [
    "CHANGEABLE_KEYS",
    "FORMAT",
    "IMAGE_TOKENIZER",
    "OPTIMIZER",
    "PLUGINS",
    "RECIPE",
    "STATE",
    "TASKS",
    "TOKENIZER",
    "WEIGHTS",
    "CheckpointState",
    "OpenedCheckpoint",
    "Snapshot",
    "TunedTasks",
    "bundled_models",
    "check_decoder",
    "check_fingerprints",
    "check_recipe",
    "complete_checkpoints",
    "export_model",
    "find_checkpoint",
    "find_model",
    "generating_as",
    "lasting_name",
    "latest_checkpoint",
    "load_weights",
    "merge_adapter",
    "model_name",
    "open_checkpoint",
    "open_for_generation",
    "read_divided_state",
    "read_recipe",
    "read_state",
    "read_tasks",
    "read_tensors",
    "read_training_state",
    "remove_leftovers",
    "restore_generators",
    "save_checkpoint",
    "tasks_of",
    "trains_the_same",
]

#: Loaded on first use: finding a model imports no torch.
__getattr__ = exporter(
    __name__,
    {
        "CHANGEABLE_KEYS": "opening",
        "CheckpointState": "layout",
        "FORMAT": "layout",
        "IMAGE_TOKENIZER": "layout",
        "OPTIMIZER": "layout",
        "OpenedCheckpoint": "opening",
        "PLUGINS": "layout",
        "RECIPE": "layout",
        "STATE": "layout",
        "Snapshot": "writing",
        "TASKS": "tasks",
        "TOKENIZER": "layout",
        "TunedTasks": "tasks",
        "WEIGHTS": "layout",
        "bundled_models": "naming",
        "check_decoder": "opening",
        "check_fingerprints": "opening",
        "check_recipe": "opening",
        "complete_checkpoints": "layout",
        "export_model": "exporting",
        "find_checkpoint": "layout",
        "find_model": "naming",
        "generating_as": "opening",
        "lasting_name": "naming",
        "model_name": "naming",
        "latest_checkpoint": "layout",
        "load_weights": "tensors",
        "merge_adapter": "exporting",
        "open_checkpoint": "opening",
        "open_for_generation": "opening",
        "read_divided_state": "tensors",
        "read_recipe": "opening",
        "read_state": "layout",
        "read_tasks": "tasks",
        "read_tensors": "tensors",
        "read_training_state": "tensors",
        "remove_leftovers": "writing",
        "restore_generators": "tensors",
        "save_checkpoint": "writing",
        "tasks_of": "tasks",
        "trains_the_same": "opening",
    },
)
