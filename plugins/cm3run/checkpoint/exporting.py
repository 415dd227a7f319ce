"""Export model folders: a checkpoint without its training state; an adapter merged with its base into a whole
model."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cm3core.arguments import checked
from cm3core.errors import CheckpointError
from cm3core.outputs import OutputFolder, refuse_foreign_in
from cm3run.checkpoint.adapters import base_folder, is_adapter
from cm3run.checkpoint.carried import copy_carried
from cm3run.checkpoint.layout import (
    COMPONENTS,
    FORMAT,
    IMAGE_TOKENIZER,
    OPTIMIZER,
    PLUGINS,
    PROVENANCE,
    RECIPE,
    STATE,
    TOKENIZER,
    WEIGHTS,
    WORDS,
    complete_checkpoints,
    damaged,
    file_hashes,
    find_checkpoint,
    provenance_file,
    read_state,
    shards_of,
)
from cm3run.checkpoint.naming import find_model
from cm3run.checkpoint.opening import open_checkpoint
from cm3run.checkpoint.tasks import TASKS
from cm3run.checkpoint.tensors import stored_tensors, weights_of
from cm3run.checkpoint.writing import new_folder, write_json
from cm3run.trust import check_links, own_of, record_own, trust_of
from cm3run.trust.guard import recipe_reaches
from cm3run.tuning import ADAPTER, ADAPTER_CONFIG

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry


DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
#: A line of a README.md that `cm3 export` wrote.
README_MARK = "<!-- written by cm3 export: --push writes a new one, unless this line is removed -->"


@checked(CheckpointError)
def export_model(
    checkpoint: str | Path,
    folder: str | Path,
    dtype: str = "fp16",
    *,
    decoder: nn.Module | None = None,
    shipped: Iterable[Path] = (),
    trust_endpoints: Sequence[str] = (),
) -> Path:
    """Write a model folder for distribution: a checkpoint without optimiser state, with floating weights in
    `dtype`. An older export is replaced, if this user's commands wrote it and nothing in it was changed.

    Args:
        checkpoint: a run's folder, a checkpoint or a model folder.
        folder: the model's folder.
        dtype: "fp16", "bf16" or "fp32"; loads back as float32.
        decoder: the checkpoint's decoder with other weights to write, e.g. after reinforcement
            learning. None: the checkpoint's own weights.
        shipped: folders of models that installed plugins ship, which are trusted like the plugins.
        trust_endpoints: paths outside its folder that links in it may point to, if the checkpoint was not made
            by this user's commands.

    Raises:
        CheckpointError: there is no model, or the folder can't be used.
        TrustError: a link points outside its folder.
    """
    source = find_checkpoint(checkpoint)
    check_links(source, trust_of(source, shipped, trust_endpoints))
    own = own_of(source)
    if is_adapter(source):
        raise CheckpointError(
            str(source),
            "contains an adapter, not a whole model",
            f"merge it: cm3 adapter merge {shlex.quote(str(checkpoint))} -o FOLDER",
        )
    target = check_target(folder, dtype)
    # an exported model gets its own hash, which would hide damage in the source
    tensors = stored_tensors(source, WEIGHTS, whole=True)
    if decoder is not None:
        others = weights_of(decoder)
        if {n: t.shape for n, t in others.items()} != {n: t.shape for n, t in tensors.items()}:
            raise CheckpointError(
                str(source),
                "has weights of other names or shapes than the decoder",
                "export the decoder with the checkpoint that it was opened from",
            )
        tensors = others
    write_model(source, target, tensors, dtype)
    record_own(target, own)
    return target


def check_target(folder: str | Path, dtype: str) -> Path:
    """Return the folder for a model to be written, with links resolved.

    Raises:
        CheckpointError: the folder can't be used, or the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r}", "is not known", f"use one of {', '.join(DTYPES)}")
    target = Path(folder)
    if _not_utf8(str(target.absolute())):
        raise CheckpointError(
            ascii(str(folder)),
            "has a name that is not UTF-8, which recipes can't contain",
            "name another folder",
        )
    if target.is_symlink() or not target.name:
        try:
            target = target.resolve()  # replace the folder, not the link; "." has no name
        except (RuntimeError, OSError) as error:  # circular links
            raise CheckpointError(
                str(folder), "is a link that leads back to itself", "name a new folder"
            ) from error
    in_a_run = target.parent.name == "checkpoints" and complete_checkpoints(target.parent.parent)
    if in_a_run or any((target / name).exists() for name in (OPTIMIZER, shards_of(OPTIMIZER))):
        raise CheckpointError(
            str(folder),
            "is a run's checkpoint" if target.exists() else "is among a run's checkpoints",
            "name a new folder",
        )
    if target.exists() and not (
        target.is_dir() and ((target / STATE).exists() or not any(target.iterdir()))
    ):
        raise CheckpointError(
            str(folder),
            "exists and is not a model folder",
            "name a new folder, or an older export to replace",
        )
    OutputFolder(target)
    refuse_foreign_in(target)
    return target


def _not_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False


def write_model(source: Path, target: Path, tensors: Mapping[str, Tensor], dtype: str) -> None:
    """Write a checkpoint as a model folder, with the weights `tensors`."""
    state = read_state(source)
    weights = {name: _cast(name, tensor, dtype) for name, tensor in tensors.items()}
    with new_folder(target) as new:
        save_file(weights, new / WEIGHTS)
        files = file_hashes(new, [WEIGHTS])
        write_json(new / STATE, {**asdict(state), "loader": {}, "files": files, "format": FORMAT})
        copy_parts(source, new)


def copy_parts(source: Path, target: Path) -> None:
    """Copy everything of a checkpoint except its tensors, its state and its card into an existing folder."""
    for name in (RECIPE, PLUGINS):
        shutil.copyfile(source / name, target / name)
    copy_carried(source, target)
    for name in (COMPONENTS, WORDS, TASKS):
        if (source / name).is_file():  # optional files
            shutil.copyfile(source / name, target / name)
    if (stated := provenance_file(source)) is not None:
        shutil.copyfile(stated, target / PROVENANCE)
    for name in (TOKENIZER, IMAGE_TOKENIZER):
        if name == TOKENIZER or (source / name).is_dir():
            shutil.copytree(source / name, target / name)


def _cast(name: str, tensor: Tensor, dtype: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(DTYPES[dtype])
    if not cast.isfinite().all() and tensor.isfinite().all():
        largest = float(tensor.abs().max())
        raise CheckpointError(
            f"weights {name}",
            f"are up to {largest:.3g}, more than {dtype} can represent",
            "use bf16, or fp32",
        )
    return cast


class Trusted(TypedDict, total=False):
    """What a checkpoint that somebody else made may run and reach, see `open_checkpoint`."""

    trust_plugins: Sequence[str]
    trust_endpoints: Sequence[str]


def merge_adapter(
    run: str | Path,
    folder: str | Path,
    registry: Registry,
    *,
    base: str | Path | None = None,
    dtype: str = "fp32",
    **trusted: Unpack[Trusted],
) -> Path:
    """Write the model folder of an adapter merged into its base model, as `export_model` does.

    Args:
        run: a run that trained an adapter, or one of its checkpoints.
        folder: the model's folder; an older export there is replaced.
        registry: the components that the recipe may name.
        base: path of the base model, if it has moved.
        dtype: "fp32" (logits are the adapter's up to rounding), "fp16" or "bf16".
        trusted: see `open_checkpoint`.

    Raises:
        CheckpointError: there is no adapter, its base is missing or has changed, or the folder contains
            other files.
        MissingPackageError: peft is not installed.
    """
    source = find_checkpoint(find_model(run, registry))
    if not is_adapter(source) and (source / ADAPTER_CONFIG).is_file():
        raise damaged(source / ADAPTER, f"is missing, but {ADAPTER_CONFIG} is there")
    if not is_adapter(source):
        raise CheckpointError(
            str(source), "contains a whole model, and no adapter to merge", "use it directly"
        )
    state = read_state(source)
    endpoints = trusted.get("trust_endpoints", ())
    model = base_folder(source, state, registry, base, trust_endpoints=endpoints)
    if Path(folder).resolve() == model.resolve():
        raise CheckpointError(str(folder), "is the base model", "name a new folder")
    target = check_target(folder, dtype)
    opened = open_checkpoint(source, registry, base=base, **trusted)
    write_model(source, target, weights_of(opened.components.decoder.module), dtype)
    record_own(target, recipe_reaches(opened.recipe))
    return target
