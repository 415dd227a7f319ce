"""Writing checkpoints: under another name, flushed, then renamed, so that a checkpoint is either complete or
absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cm3core.errors import CheckpointError, FileError
from cm3core.files import make_ordinary, new_place, remove_unfinished, sync_directory
from cm3core.outputs import foreign_in, record_folder, refuse_foreign_in, set_aside
from cm3core.plugins.registry import plugin_versions
from cm3core.recipe.recipe import files_of
from cm3run.checkpoint.adapters import base_reaches
from cm3run.checkpoint.carried import write_carried
from cm3run.checkpoint.layout import (
    IMAGE_TOKENIZER,
    OPTIMIZER,
    PLUGINS,
    SHARDED_FORMAT,
    STATE,
    TOKENIZER,
    WEIGHTS,
    CheckpointState,
    complete_checkpoints,
    file_hashes,
)
from cm3run.checkpoint.tasks import TASKS, tasks_of
from cm3run.checkpoint.tensors import (
    LazyTensor,
    contiguous,
    generator_states,
    write_shards,
    write_tensors,
)
from cm3run.checkpoint.words import TrainingWords
from cm3run.processes import Processes
from cm3run.trust import record_own
from cm3run.trust.guard import recipe_reaches
from cm3run.tuning import ADAPTER, ADAPTER_CONFIG, AdapterFiles

if TYPE_CHECKING:
    from cm3core.interfaces import ImageTokenizer, TextTokenizer
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.build import Components


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """The contents of a run's checkpoint.

    Args:
        weights: the decoder's, as returned by `weights_of`.
        optimizer_state: the optimiser's state for resuming, as named tensors; the states of torch's
            generators are added if missing.
        state: stored as `state.json`.
        components: their recipe, plugins and tokenizers are stored.
        words: those of the training texts, if known.
        adapter: stored instead of the weights.
    """

    weights: Mapping[str, Tensor]
    optimizer_state: Mapping[str, Tensor]
    state: CheckpointState
    components: Components
    words: TrainingWords | None = None
    adapter: AdapterFiles | None = None


def save_checkpoint(
    out_dir: Path,
    snapshot: Snapshot,
    *,
    keep: int = 2,
    processes: Processes | None = None,
    sharded: bool = False,
    best: int | None = None,
) -> Path:
    """Write `OUT/checkpoints/step-N` and delete all but the newest `keep` of those that this user's commands wrote; an
    existing checkpoint of this step is kept unchanged.

    Args:
        out_dir: the run's folder.
        snapshot: its contents.
        keep: number of checkpoints to keep, this one included.
        processes: all that train, each of which makes this call; None: only this one.
        sharded: each process writes its own part of the tensors, see `tensors`; otherwise the first writes all.
        best: a step whose checkpoint is kept, too.

    Raises:
        CheckpointError: it can't be written (a full disk); older checkpoints are untouched.
    """
    processes = processes or Processes()
    if processes.is_first:  # the others use the first one's
        optimizer_state = {**generator_states(), **snapshot.optimizer_state}
        snapshot = replace(snapshot, optimizer_state=optimizer_state)
    target = Path(out_dir) / "checkpoints" / step_name(snapshot.state.step)
    processes.first(lambda: None if (target / STATE).is_file() else set_aside(target))
    if processes.first(target.exists):
        pass
    elif sharded:
        assert snapshot.adapter is None, (
            "parallel_of refuses to share a decoder that is tuned in part"
        )
        _write_sharded(target, snapshot, processes)
    else:
        processes.first(lambda: _write_whole(target, snapshot))
    processes.first(lambda: _remove_all_but(out_dir, keep, best))
    processes.first(lambda: _record(out_dir, snapshot.components, snapshot.state))
    return target


def _record(out_dir: Path, components: Components, state: CheckpointState) -> None:
    """Record that this user's command made the run, and the external resources in its recipe."""
    named = [
        *recipe_reaches(components.recipe),
        *base_reaches(state.base, components.registry),
    ]
    trust = components.trust  # of someone else's model that is trained further
    refused = [] if trust is None else trust.refused(named)
    record_own(out_dir, [one for one in named if one not in refused])


def _write_whole(target: Path, snapshot: Snapshot) -> None:
    with new_folder(target, in_training=True) as folder:
        if (adapter := snapshot.adapter) is None:
            save_file(dict(snapshot.weights), folder / WEIGHTS)
        else:
            save_file(dict(adapter.tensors), folder / ADAPTER, {"format": "pt"})
            write_json(folder / ADAPTER_CONFIG, adapter.config)
        save_file(contiguous(snapshot.optimizer_state), folder / OPTIMIZER)
        written = [
            name
            for name in (WEIGHTS, ADAPTER, ADAPTER_CONFIG, OPTIMIZER)
            if (folder / name).is_file()
        ]
        _write_description(folder, snapshot, file_hashes(folder, written))


def _write_sharded(target: Path, snapshot: Snapshot, processes: Processes) -> None:
    """Each process writes its part into a folder made by the first one, which renames it at the end."""
    with ExitStack() as stack:
        folder = processes.first(lambda: stack.enter_context(new_folder(target, in_training=True)))
        files = write_shards(folder, WEIGHTS, snapshot.weights, processes, target)
        optimizer_state = contiguous(snapshot.optimizer_state)
        files |= write_shards(folder, OPTIMIZER, optimizer_state, processes, target)
        parts = replace(snapshot, state=replace(snapshot.state, format=SHARDED_FORMAT))

        def complete() -> None:
            _write_description(folder, parts, files)
            stack.close()

        processes.first(complete)


def _remove_all_but(out_dir: Path, keep: int, best: int | None) -> None:
    for old in complete_checkpoints(out_dir)[: -max(1, keep)]:
        if old.name != step_name(best) and not foreign_in(
            old
        ):  # it stays if somebody else wrote it
            _remove(old)


def end_with_best(out_dir: Path, step: int) -> Path | None:
    """Delete the checkpoints after this step, or rename those of somebody else, so that the run's newest one is its best;
    None: there is no such checkpoint, and all stay."""
    found = complete_checkpoints(out_dir)
    names = [one.name for one in found]
    if step_name(step) not in names:
        return None
    place = names.index(step_name(step))
    for later in found[place + 1 :]:
        if foreign_in(later):
            set_aside(later)
        else:
            _remove(later)
    return found[place]


def step_name(step: int | None) -> str:
    """Name of the folder of a step's checkpoint."""
    return "" if step is None else f"step-{step:08d}"


def _write_description(
    folder: Path, snapshot: Snapshot, files: Mapping[str, dict[str, Any]]
) -> None:
    """Write everything except the tensors; `files` are their hashes."""
    if snapshot.words is not None:
        snapshot.words.write(folder)
    components = snapshot.components
    _write_tokenizers(folder, components.text_tokenizer, components.image_tokenizer)
    recipe, registry = components.recipe, components.registry
    tasks = tasks_of(recipe, components.source)
    _write_recipe(folder, recipe, registry, snapshot.state, files, tasks)


@dataclass(frozen=True, kw_only=True, eq=False)
class Description:
    """The parts of a model besides its decoder's weights.

    Args:
        recipe, registry: of its components.
        text_tokenizer, image_tokenizer: stored with it.
        tasks: the tasks it was tuned for, as returned by `tasks_of`; None: unknown.
    """

    recipe: Recipe
    registry: Registry
    text_tokenizer: TextTokenizer
    image_tokenizer: ImageTokenizer
    tasks: Mapping[str, Any] | None = None


def write_model(
    folder: Path,
    weights: Mapping[str, LazyTensor],
    state: CheckpointState,
    description: Description,
) -> None:
    """Write a model that was made elsewhere into an empty folder, from which it can be opened.

    Args:
        folder: exists.
        weights: the decoder's tensors by name; each is read when it is written.
        state: the meaning of ids, and the step.
        description: everything else.

    Raises:
        OSError: the disk is full.
    """
    write_tensors(folder / WEIGHTS, weights)
    _write_tokenizers(folder, description.text_tokenizer, description.image_tokenizer)
    recipe, registry = description.recipe, description.registry
    files = file_hashes(folder, [WEIGHTS])
    tasks = tasks_of(recipe) or description.tasks
    _write_recipe(folder, recipe, registry, state, files, tasks)


def _write_tokenizers(
    folder: Path, text_tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer
) -> None:
    (folder / TOKENIZER).mkdir()
    text_tokenizer.save(folder / TOKENIZER)
    (folder / IMAGE_TOKENIZER).mkdir()
    image_tokenizer.save(folder / IMAGE_TOKENIZER)
    if not any((folder / IMAGE_TOKENIZER).iterdir()):
        (folder / IMAGE_TOKENIZER).rmdir()


def _write_recipe(
    folder: Path,
    recipe: Recipe,
    registry: Registry,
    state: CheckpointState,
    files: Mapping[str, dict[str, Any]],
    tasks: Mapping[str, Any] | None,
) -> None:
    for name, text in files_of(recipe, registry).items():
        (folder / name).write_text(text, encoding="utf-8")
    write_carried(folder, recipe, registry)
    if tasks is not None:
        write_json(folder / TASKS, tasks)
    write_json(folder / PLUGINS, {**plugin_versions(registry.plugins), "torch": torch.__version__})
    # last, because it has the hashes of the other files
    write_json(folder / STATE, {**asdict(state), "files": dict(files)})


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


@contextmanager
def new_folder(target: Path, *, in_training: bool = False) -> Iterator[Path]:
    """Make a folder beside `target` that replaces it once it is written and flushed. On any error, nothing changes;
    one is that `target` has files that this user's commands did not write. `in_training`: the command goes on where
    it was when it is run again."""
    try:
        with new_place(target) as temporary:
            temporary.mkdir()
            yield temporary
            for path in sorted(temporary.rglob("*")):
                if path.is_file():
                    make_ordinary(path)
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())
                else:
                    sync_directory(path)
            sync_directory(temporary)
            if target.exists():
                refuse_foreign_in(target)
            record_folder(temporary, target)
            if target.exists():
                _remove(target)
            temporary.rename(target)
            sync_directory(target.parent)
    except (OSError, SafetensorError, FileError) as error:
        cause = error.cause if isinstance(error, FileError) else f"can't be written ({error})"
        step = "check the disk's free space and the folder's permissions, then run the same command again"
        if in_training:
            step += ": training resumes from the newest checkpoint"
        raise CheckpointError(
            str(target), f"{cause}; existing files are unchanged", step
        ) from error


def _remove(folder: Path) -> None:
    """Delete a folder so that a half-deleted one never has its name."""
    with new_place(folder) as dying:
        folder.rename(dying)


def remove_leftovers(out_dir: Path) -> None:
    """Delete what killed processes left: half-written and half-deleted checkpoints."""
    remove_unfinished(Path(out_dir) / "checkpoints")
