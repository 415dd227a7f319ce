"""Checkpoints: a folder that is complete or not there, holding all that a run needs to go on and a
model needs to draw.

    OUT/checkpoints/step-00001000/
        model.safetensors        weights, float32
        optimizer.safetensors    optimiser state and random generators; not in an exported model
        state.json               step, clock, place in the data, vocabulary, fingerprints
        recipe.yaml              the resolved recipe
        plugins.json             plugins and their versions
        text_tokenizer/          what the text tokenizer saved
        image_tokenizer/         what the image tokenizer saved; not there when it comes with its package

A checkpoint is written under another name, flushed, and renamed; the newest is the highest complete
step. No file is a pickle, so an untrusted checkpoint can be refused but can't run code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cm3core.build import Components, build
from cm3core.errors import CheckpointError, close_match
from cm3core.files import sync_directory
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3core.plugins.registry import plugin_versions
from cm3core.recipe import diff, recipe_from_yaml
from cm3core.vocab import Vocabulary

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3core.training.optim import OptimizerGroup

FORMAT = 1
WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
RECIPE, PLUGINS = "recipe.yaml", "plugins.json"
TOKENIZER = "text_tokenizer"

#: Keys that may differ between a checkpoint's recipe and the one it is resumed with; everything
#: after a dot included.
CHANGEABLE_KEYS = (
    "name",
    "generate",
    "sampler",
    "data.cache_dir",
    # a longer or shorter run; the schedule follows the new length from here on
    "train.steps",
    "train.minutes",
    "train.checkpoint_every_minutes",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.log_every_steps",
    "train.validate_every_steps",
    "train.validation_splits",
    "train.validation_documents",
    "train.sample_every_steps",
    "train.num_threads",
)


@dataclass
class CheckpointState:
    """What `state.json` holds.

    Args:
        step: optimiser steps done.
        elapsed_s: seconds of training so far, over all sittings.
        tokens: tokens trained on so far (weights above zero).
        loader: `BatchLoader.state_dict()`.
        vocabulary: `Vocabulary.to_dict()`.
        fingerprints: `Components.fingerprints()`, and "dataset" for the training data.
    """

    step: int
    elapsed_s: float = 0.0
    tokens: int = 0
    loader: dict[str, Any] = field(default_factory=dict)
    vocabulary: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(eq=False)
class OpenedCheckpoint:
    """A checkpoint ready to draw from: decoder in eval mode, float32 weights."""

    recipe: Recipe
    components: Components
    vocabulary: Vocabulary
    step: int
    folder: Path


# --- writing


def save_checkpoint(
    out_dir: Path,
    decoder: nn.Module,
    optimizer: OptimizerGroup,
    state: CheckpointState,
    components: Components,
    *,
    keep: int = 2,
) -> Path:
    """Write `OUT/checkpoints/step-N` and drop all but the newest `keep`; a checkpoint of this step
    that is there stays.

    Raises:
        CheckpointError: it can't be written (a full disk); older checkpoints are untouched.
    """
    target = Path(out_dir) / "checkpoints" / f"step-{state.step:08d}"
    if not target.exists():
        with _new_folder(target) as folder:
            save_file(_weights(decoder), folder / WEIGHTS)
            save_file(
                {**_contiguous(optimizer.state_tensors()), **_generators()}, folder / OPTIMIZER
            )
            _write_description(folder, components, state)
            (folder / TOKENIZER).mkdir()
            components.text_tokenizer.save(folder / TOKENIZER)
            (folder / IMAGE_TOKENIZER).mkdir()
            components.image_tokenizer.save(folder / IMAGE_TOKENIZER)
            if not any((folder / IMAGE_TOKENIZER).iterdir()):
                (folder / IMAGE_TOKENIZER).rmdir()
    for old in complete_checkpoints(out_dir)[: -max(1, keep)]:
        _remove(old)
    return target


def export_model(checkpoint: str | Path, folder: str | Path, dtype: str = "fp16") -> Path:
    """Write a model folder for shipping: a checkpoint without optimiser, floating weights in
    `dtype`; it replaces an older one.

    Args:
        checkpoint: a run's folder, a checkpoint or a model folder.
        folder: the model's folder.
        dtype: "fp16", "bf16" or "fp32"; loads back as float32.
    """
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if dtype not in dtypes:
        raise CheckpointError(f"dtype {dtype!r}", "is not known", f"use one of {', '.join(dtypes)}")
    source, target = find_checkpoint(checkpoint), Path(folder)
    if target.exists() and any(target.iterdir()) and not (target / STATE).exists():
        raise CheckpointError(
            str(target),
            "exists and is no model folder",
            "name a new folder, or an older export to replace",
        )
    state = read_state(source)
    weights = {
        name: _cast(tensor, dtypes[dtype])
        for name, tensor in read_tensors(source / WEIGHTS).items()
    }
    with _new_folder(target) as new:
        save_file(weights, new / WEIGHTS)
        _write_json(new / STATE, {**asdict(state), "loader": {}})
        for name in (RECIPE, PLUGINS):
            shutil.copyfile(source / name, new / name)
        for name in (TOKENIZER, IMAGE_TOKENIZER):
            if name == TOKENIZER or (source / name).is_dir():
                shutil.copytree(source / name, new / name)
    return target


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place once it is written and flushed. On any error
    nothing has changed."""
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.writing"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                # safetensors makes private files; ours are ordinary ones
                path.chmod(0o666 & ~umask)
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            else:
                sync_directory(path)
        sync_directory(temporary)
        if target.exists():
            _remove(target)
        temporary.rename(target)
        sync_directory(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            str(target),
            f"can't be written ({error}); older checkpoints are as they were",
            "free space on that disk, then start the same command again: it goes on from the "
            "newest checkpoint",
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _remove(folder: Path) -> None:
    """Delete a folder so that it is never seen half deleted under its name."""
    dying = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.deleting"
    folder.rename(dying)
    shutil.rmtree(dying, ignore_errors=True)


def remove_leftovers(out_dir: Path) -> None:
    """Delete what killed processes left: half-written and half-deleted checkpoints."""
    for path in (Path(out_dir) / "checkpoints").glob(".step-*"):
        if path.suffix in (".writing", ".deleting"):
            shutil.rmtree(path, ignore_errors=True)


def _write_description(folder: Path, components: Components, state: CheckpointState) -> None:
    (folder / RECIPE).write_text(components.recipe.to_yaml(), encoding="utf-8")
    _write_json(
        folder / PLUGINS,
        {**plugin_versions(components.registry.plugins), "torch": torch.__version__},
    )
    _write_json(folder / STATE, asdict(state))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _weights(decoder: nn.Module) -> dict[str, Tensor]:
    """The state dict; a tensor that is known under two names (tied embeddings) is stored once."""
    return _contiguous(_unique(decoder.state_dict()))


def _unique(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.numel() == 0
        or seen.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name) == name
    }


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _generators() -> dict[str, Tensor]:
    """States of torch's generators (dropout draws from them)."""
    states = {"generator::cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["generator::cuda"] = torch.cuda.get_rng_state()
    return states


# --- reading


def complete_checkpoints(out_dir: str | Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    folders = (Path(out_dir) / "checkpoints").glob("step-*")
    return sorted(
        path
        for path in folders
        if re.fullmatch(r"step-\d{8,}", path.name) and (path / STATE).is_file()
    )


def latest_checkpoint(out_dir: str | Path) -> Path | None:
    """A run's newest complete checkpoint, None when it has none."""
    return max(
        complete_checkpoints(out_dir),
        key=lambda path: int(path.name.removeprefix("step-")),
        default=None,
    )


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint or model folder that `path` names: itself, or a run's newest. Raises
    `CheckpointError`."""
    folder = Path(path)
    if (folder / STATE).is_file():
        return folder
    if (newest := latest_checkpoint(folder)) is not None:
        return newest
    cause = (
        "holds no checkpoint and no model"
        if folder.is_dir()
        else "does not exist"
        if not folder.exists()
        else "is a file"
    )
    raise CheckpointError(
        str(folder),
        cause,
        "name a run's folder (cm3 train -o), one of its checkpoints, or an exported model",
    )


def bundled_models(registry: Registry | None = None) -> dict[str, Path]:
    """Model folders that the installed plugins ship: "PLUGIN:NAME" -> folder. None: the installed
    plugins' registry."""
    if registry is None:
        from cm3core.plugins.discovery import load_registry

        registry = load_registry()
    return registry.models()


def find_model(model: str | Path, registry: Registry) -> Path:
    """The folder of a model: a path (a run, a checkpoint, an exported model), or "PLUGIN:NAME" of a
    model that a plugin ships."""
    shipped = bundled_models(registry)
    if str(model) in shipped:
        return shipped[str(model)]
    if re.fullmatch(r"[\w-]+:[\w.-]+", str(model)) and not Path(model).exists():
        step = (
            close_match(str(model), shipped)
            if shipped
            else "train one (cm3 quickstart, cm3 train) and name its folder"
        )
        raise CheckpointError(f"model {str(model)!r}", "no installed plugin ships it", step)
    return Path(model)


def read_state(folder: Path) -> CheckpointState:
    """Parse and check `state.json`."""
    path = folder / STATE
    types: dict[str, type | tuple[type, ...]] = {
        "step": int,
        "elapsed_s": (int, float),
        "tokens": int,
        "loader": dict,
        "vocabulary": dict,
        "fingerprints": dict,
        "format": int,
    }
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, f"can't be read ({error})") from error
    if not isinstance(values, dict) or any(
        not isinstance(values.get(name), kind) for name, kind in types.items()
    ):
        raise _damaged(path, "is not a checkpoint's state")
    if values["format"] > FORMAT:
        raise CheckpointError(
            str(path),
            f"has format {values['format']}, this version reads {FORMAT}",
            "use a newer cm3leon",
        )
    return CheckpointState(**{item.name: values[item.name] for item in fields(CheckpointState)})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; anything else (truncated, a pickle) raises
    `CheckpointError`."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        # the last two: a header that lies about types and sizes
        raise _damaged(path, f"is not a whole safetensors file ({error})") from error
    return tensors


def _damaged(path: Path, cause: str) -> CheckpointError:
    return CheckpointError(
        str(path),
        cause,
        f"delete {path.parent} to use the checkpoint before it, or copy it again from where it "
        "came",
    )


def read_recipe(folder: Path, registry: Registry) -> Recipe:
    """The recipe stored in a checkpoint."""
    try:
        text = (folder / RECIPE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(folder / RECIPE, f"can't be read ({error})") from error
    return recipe_from_yaml(text, registry, label=str(folder / RECIPE))


def load_weights(decoder: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into `decoder`, in the decoder's dtype; `CheckpointError` when
    they are another decoder's."""
    path = folder / WEIGHTS
    stored, wanted = read_tensors(path), _unique(decoder.state_dict())
    for name in sorted(stored.keys() | wanted.keys()):
        have = list(stored[name].shape) if name in stored else "nothing"
        need = list(wanted[name].shape) if name in wanted else "nothing"
        if have != need:
            raise CheckpointError(
                f"{path}, tensor {name}",
                f"the file has {have}, this decoder {need}",
                "use the recipe.yaml beside the weights, unchanged",
            )
        if not torch.isfinite(stored[name]).all():
            raise CheckpointError(
                f"{path}, tensor {name}",
                "holds values that are not finite",
                "use an older checkpoint",
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])


def check_fingerprints(folder: Path, state: CheckpointState, components: Components) -> None:
    """Raise `CheckpointError` when ids mean something else here than where the checkpoint was
    made."""
    if state.vocabulary != components.vocabulary.to_dict():
        changed = [
            f"{name} {state.vocabulary.get(name)} there, {value} here"
            for name, value in components.vocabulary.to_dict().items()
            if state.vocabulary.get(name) != value
        ]
        raise CheckpointError(
            str(folder),
            f"has another vocabulary ({'; '.join(changed) or 'other keys'})",
            "use the tokenizers and the section 'vocabulary' that it was trained with",
        )
    for part, value in components.fingerprints().items():
        if state.fingerprints.get(part) != value:
            name = part.replace("_", " ")
            there = state.fingerprints.get(part)
            raise CheckpointError(
                str(folder),
                f"was made with another {name} (fingerprint {there}, here {value})",
                f"use the {name} that it was trained with",
            )


def check_recipe(folder: Path, stored: Recipe, recipe: Recipe) -> None:
    """Raise `CheckpointError`, with the differences, when a run can't go on under `recipe`."""
    changed = [
        entry
        for entry in diff(stored, recipe)
        if not any(entry[0] == key or entry[0].startswith(key + ".") for key in CHANGEABLE_KEYS)
    ]
    if changed:
        lines = "".join(
            f"\n    {key}: {before!r} in the checkpoint, {now!r} now"
            for key, before, now in changed
        )
        raise CheckpointError(
            str(folder),
            f"was made under another recipe:{lines}",
            "start in another folder (-o), or resume with the recipe unchanged",
        )


def open_checkpoint(
    path: str | Path, registry: Registry, *, device: torch.device | str = "cpu"
) -> OpenedCheckpoint:
    """Open a run's newest checkpoint, a checkpoint folder or an exported model, to generate with
    it.

    Raises:
        CheckpointError: nothing is there, a file is damaged, or a tokenizer is another one than in
            training.
        RecipeError, PluginError: its recipe needs what is not installed.
    """
    folder = find_checkpoint(path)
    state = read_state(folder)
    recipe = read_recipe(folder, registry)
    components = build(
        recipe,
        registry,
        stage="generate",
        tokenizer_folder=folder / TOKENIZER,
        image_tokenizer_folder=folder / IMAGE_TOKENIZER,
        device=device,
    )
    check_fingerprints(folder, state, components)
    decoder = components.decoder.module
    load_weights(decoder, folder)
    decoder.eval()
    return OpenedCheckpoint(recipe, components, components.vocabulary, state.step, folder)


def restore_training(folder: Path, optimizer: OptimizerGroup, decoder: nn.Module) -> None:
    """Weights, optimiser state and random generators of a checkpoint, for a run that goes on."""
    load_weights(decoder, folder)
    tensors = read_tensors(folder / OPTIMIZER)
    generators = {
        name: tensors.pop(name) for name in list(tensors) if name.startswith("generator::")
    }
    optimizer.load_state_tensors(tensors)
    if "generator::cpu" not in generators:
        raise _damaged(folder / OPTIMIZER, "holds no state of the random generator")
    torch.set_rng_state(generators["generator::cpu"])
    if "generator::cuda" in generators and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["generator::cuda"])
