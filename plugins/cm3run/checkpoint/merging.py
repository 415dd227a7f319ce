"""A whole model of an adapter and its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.errors import CheckpointError
from cm3run.checkpoint.adapters import base_folder, is_adapter
from cm3run.checkpoint.exporting import check_target, write_model
from cm3run.checkpoint.finding import find_model
from cm3run.checkpoint.layout import damaged, find_checkpoint
from cm3run.checkpoint.opening import open_checkpoint
from cm3run.checkpoint.state import read_state
from cm3run.checkpoint.tensors import weights_of
from cm3run.trust import record_own
from cm3run.trust.recipes import recipe_reaches
from cm3run.tuning import ADAPTER, ADAPTER_CONFIG

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry


def merge_adapter(
    run: str | Path,
    folder: str | Path,
    registry: Registry,
    *,
    base: str | Path | None = None,
    dtype: str = "fp32",
    trust_plugins: Sequence[str] = (),
    trust_endpoints: Sequence[str] = (),
) -> Path:
    """Write the model folder of an adapter merged into its base model, as `export_model` does.

    Args:
        run: a run that trained an adapter, or one of its checkpoints.
        folder: the model's folder; an older export there is replaced.
        registry: the components that the recipe may name.
        base: the base model, where it is not in its place any more.
        dtype: "fp32" (logits are the adapter's up to rounding), "fp16" or "bf16".
        trust_plugins, trust_endpoints: see `open_checkpoint`.

    Raises:
        CheckpointError: there is no adapter, its base is missing or another model, or the folder holds
            something else.
        MissingPackageError: peft is not installed.
    """
    source = find_checkpoint(find_model(run, registry))
    if not is_adapter(source) and (source / ADAPTER_CONFIG).is_file():
        raise damaged(source / ADAPTER, f"is missing, and {ADAPTER_CONFIG} is there")
    if not is_adapter(source):
        raise CheckpointError(
            str(source), "holds a whole model, and no adapter to merge", "use it as it is"
        )
    state = read_state(source)
    model = base_folder(source, state, registry, base, trust_endpoints=trust_endpoints)
    if Path(folder).resolve() == model.resolve():
        raise CheckpointError(str(folder), "is the base model", "name a new folder")
    target = check_target(folder, dtype)
    opened = open_checkpoint(
        source,
        registry,
        trust_plugins=trust_plugins,
        trust_endpoints=trust_endpoints,
        base=base,
    )
    write_model(source, target, weights_of(opened.components.decoder.module), dtype)
    record_own(target, recipe_reaches(opened.recipe))
    return target
