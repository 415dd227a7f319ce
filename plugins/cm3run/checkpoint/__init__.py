"""Checkpoints: a folder that is complete or not there, holding all that a run needs to resume and a
model needs to generate.

    OUT/checkpoints/step-00001000/
        model.safetensors        weights, float32; of a run that trains adapters, the next two instead
        adapter_model.safetensors, adapter_config.json   in peft's format
        optimizer.safetensors    optimiser state and random generators; not in an exported model
        state.json               step, clock, place in the data, vocabulary, fingerprints, hashes
        recipe.yaml              the resolved recipe
        plugins.json             plugins and their versions
        components.json          who provided each of the recipe's components
        tasks.json               the tasks that it was tuned for, if any
        plugins/                 source of the one-file plugins that the recipe needs; never run unasked
        words.txt                the words of the training texts; not there when they are too many
        text_tokenizer/          what the text tokenizer saved
        provenance.json          licences of the data, in an exported model; else it is in OUT
        image_tokenizer/         what the image tokenizer saved; not there when it comes with its package

A checkpoint is written under another name, flushed, and renamed; the newest is the highest complete
step. No file is a pickle, so an untrusted checkpoint can be refused but can't run code.

Where processes share a decoder, folders `model_shards` and `optimizer_shards` take the place of the two
safetensors files, see `tensors`.

layout      the files: names and places, `state.json`, hashes; from a model's name to its folder
tensors     the safetensors, whole or in the parts that several processes wrote
writing     a checkpoint of a run
exporting   a model folder of a checkpoint; a whole model of an adapter and its base
opening     from a name to a model ready to generate, and whether it fits a recipe
adapters    adapters, which name their base model
tasks       what a model was tuned for
carried     plugin files that come with a checkpoint
words       which words of a prompt the model has never seen
"""

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
    bundled_models,
    complete_checkpoints,
    find_checkpoint,
    find_model,
    latest_checkpoint,
    read_state,
)
from cm3run.checkpoint.opening import (
    CHANGEABLE_KEYS,
    OpenedCheckpoint,
    check_decoder,
    check_fingerprints,
    check_recipe,
    open_checkpoint,
    read_recipe,
)
from cm3run.checkpoint.tasks import TASKS, TunedTasks, read_tasks, tasks_of
from cm3run.checkpoint.tensors import (
    load_weights,
    read_divided_state,
    read_tensors,
    read_training_state,
    restore_generators,
)
from cm3run.checkpoint.writing import Snapshot, remove_leftovers, save_checkpoint

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
    "latest_checkpoint",
    "load_weights",
    "merge_adapter",
    "open_checkpoint",
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
]
