"""Checkpoints that contain an adapter: they have no weights of their own, and name their base model.

The base is identified by the SHA-256 of its weights (`CheckpointState.base`): an adapter on other
weights would run, but its output would be useless.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3core.interfaces.reach import CONNECTS, READS, Reach
from cm3run.checkpoint.layout import (
    STATE,
    WEIGHTS,
    CheckpointState,
    check_file,
    damaged,
    find_checkpoint,
    read_state,
    shards_of,
)
from cm3run.checkpoint.naming import find_model, lasting_name
from cm3run.checkpoint.tensors import load_weights, read_tensors
from cm3run.trust import address_of, refusal, target_of, trust_of
from cm3run.tuning import (
    ADAPTER,
    ADAPTER_CONFIG,
    add_adapters,
    load_adapters,
    merge_adapters,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint contains an adapter instead of a whole model's weights."""
    return (folder / ADAPTER).is_file()


def base_entry(model: str, folder: Path, registry: Registry) -> dict[str, str]:
    """The record of the model that a run starts from, see `CheckpointState.base`.

    Args:
        model: as the user named it.
        folder: its checkpoint.
        registry: knows the models that plugins ship.

    Raises:
        CheckpointError: the model is an adapter.
    """
    if is_adapter(folder):
        raise CheckpointError(
            str(folder),
            "contains an adapter, but training starts from a whole model",
            f"merge it: cm3 adapter merge {shlex.quote(model)} -o FOLDER, then start from that folder",
        )
    return {"model": lasting_name(model, registry), "sha256": weights_sha256(folder)}


def weights_sha256(folder: Path) -> str:
    """The SHA-256 of a checkpoint's weights: the stored one (which is checked whenever the weights
    are read), or computed. For parts written by several processes, the SHA-256 of the list of their hashes."""
    files = read_state(folder).files
    written = files.get(WEIGHTS)
    parts = sorted(name for name in files if name.startswith(f"{shards_of(WEIGHTS)}/"))
    if written is None and parts:
        listed = "".join(f"{files[name]['sha256']}  {name}\n" for name in parts)
        return hashlib.sha256(listed.encode()).hexdigest()
    try:
        return sha256_file(folder / WEIGHTS) if written is None else str(written["sha256"])
    except OSError as error:
        raise damaged(folder / WEIGHTS, f"can't be read ({error})") from error


def base_folder(
    folder: Path,
    state: CheckpointState,
    registry: Registry,
    base: str | Path | None = None,
    *,
    trust_endpoints: Sequence[str] = (),
) -> Path:
    """The checkpoint of an adapter's base model.

    Args:
        folder: the adapter's checkpoint.
        state: its state.
        registry: knows the models that plugins ship.
        base: path of the base model; None: its path in training.
        trust_endpoints: see `open_checkpoint`.

    Raises:
        CheckpointError: the base model is missing, or has other weights.
        TrustError: the adapter is not the user's own, and its file names the base model's path.
    """
    if not state.base:
        raise damaged(folder, f"contains {ADAPTER}, but its state names no base model")
    wanted, name = state.base["sha256"], str(state.base["model"] if base is None else base)
    hint = f"cm3 adapter merge {shlex.quote(str(folder))} --base MODEL -o FOLDER"
    if base is None:
        trust = trust_of(folder, registry.models().values(), trust_endpoints)
        if refused := trust.refused(base_reaches(state.base, registry)):
            raise refusal(
                str(folder / STATE), "", refused, f"or name the base model yourself: {hint}"
            )
    try:
        found = find_checkpoint(find_model(name, registry))
    except CheckpointError as error:
        raise CheckpointError(
            str(folder),
            f"contains an adapter for the model {name}, which was not found ({error.cause})",
            f"restore the base model, or name its path: {hint}",
        ) from error
    have = "an adapter" if is_adapter(found) else weights_sha256(found)
    if have != wanted:
        raise CheckpointError(
            str(folder),
            f"contains an adapter for another base model: it was trained on weights with the SHA-256 "
            f"{wanted[:16]}..., but {found} has {have[:16]}{'' if is_adapter(found) else '...'}",
            f"name the model that it was trained on: {hint}",
        )
    return found


def base_reaches(base: Mapping[str, str], registry: Registry) -> list[Reach]:
    """External resources in a checkpoint's state: the model that the run started from, unless a plugin ships it."""
    name = str(base.get("model", ""))
    if not name or name in registry.models():
        return []
    how = READS if address_of(name) is None else CONNECTS
    return [Reach(how, target_of(name), "base.model", "the adapter's base model", name)]


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """An adapter's tensors, checked against their hash."""
    tensors, state = read_tensors(folder / ADAPTER), read_state(folder)
    for name in (ADAPTER, ADAPTER_CONFIG):
        check_file(folder, name, state)
    return tensors


def load_model(
    decoder: nn.Module,
    folder: Path,
    recipe: Recipe,
    registry: Registry,
    *,
    base: str | Path | None = None,
    trust_endpoints: Sequence[str] = (),
) -> None:
    """Load a checkpoint's weights; an adapter is merged into its base model's weights, in memory.

    Args:
        decoder: built from `recipe`.
        folder: the checkpoint.
        recipe: the checkpoint's.
        registry, base, trust_endpoints: see `base_folder`.

    Raises:
        CheckpointError: the weights belong to another decoder or are damaged; the base is missing or has changed.
        TrustError: see `base_folder`.
        RecipeError: the recipe's section `tune` is out of range, or doesn't fit the decoder.
        MissingPackageError: the checkpoint is an adapter and peft is missing.
    """
    if not is_adapter(folder):
        if base is not None:
            raise CheckpointError(
                str(folder), "contains a whole model, which has no base", "leave the base out"
            )
        load_weights(decoder, folder)
        return
    if not recipe.tune.adapts:
        raise damaged(
            folder, f"contains {ADAPTER}, but its recipe says tune.method={recipe.tune.method}"
        )
    recipe.tune.check()  # a stored recipe is untrusted
    state = read_state(folder)
    load_weights(
        decoder, base_folder(folder, state, registry, base, trust_endpoints=trust_endpoints)
    )
    add_adapters(decoder, recipe.tune)
    load_adapters(decoder, read_adapter(folder), str(folder / ADAPTER))
    merge_adapters(decoder)
