"""Tuning part of a trained model: selecting the parameters to train, and adding adapters.

The section `tune` names parameters and methods; all other parameters are frozen. Adapters are LoRA and DoRA layers by
peft, and need the extra `lora`. This module depends on no particular decoder: parameters are found by name, by group
(`Decoder.parameter_groups`) and by the head (`Decoder.head_weight`).

Adapters are read and written in peft's format (`adapter_config.json`, `adapter_model.safetensors`), so
`peft.PeftModel.from_pretrained(decoder, folder)` can read them. Files are untrusted: the recipe's section `tune`
determines the layers, and tensors are taken by name, shape and type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cm3core.errors import CheckpointError, MissingPackageError, RecipeError

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder
    from cm3core.recipe.sections import TuneSection
    from cm3core.vocab import Vocabulary

__all__ = [
    "ADAPTER",
    "ADAPTER_CONFIG",
    "AdapterFiles",
    "add_adapters",
    "load_adapters",
    "merge_adapters",
    "select_parameters",
    "write_adapters",
]


def parameters_named(module: nn.Module, patterns: Iterable[str]) -> set[str]:
    """The parameters that the patterns match, by their own name or by that of a module that contains them.

    Raises:
        RecipeError: a pattern matches none.
    """
    parameters = [name for name, _ in module.named_parameters()]
    named: set[str] = set()
    for pattern in patterns:
        found = {name for name in parameters if any(fnmatchcase(p, pattern) for p in _paths(name))}
        if not found:
            known = dict.fromkeys(path for name in parameters for path in _paths(name))
            raise RecipeError(
                "tune.parameters",
                f"{pattern!r} matches no parameter or module of this decoder",
                nearest(pattern, known),
            )
        named |= found
    return named


def _paths(name: str) -> list[str]:
    """A parameter's name, preceded by those of all modules that contain it.

    >>> _paths("layers.0.fc1.weight")
    ['layers', 'layers.0', 'layers.0.fc1', 'layers.0.fc1.weight']
    """
    parts = name.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts) + 1)]


def nearest(name: str, known: Iterable[str]) -> str:
    """Hint for an unknown module name: the nearest name, or all names with repeated blocks listed once.

    >>> nearest("q_porj", ["layers.0.q_proj", "layers.1.q_proj", "norm"])
    "did you mean 'q_proj'?"
    >>> nearest("zzz", ["layers.0.q_proj", "layers.1.q_proj", "norm"])
    'known: layers.*.q_proj, norm'
    """
    whole = list(known)
    ends = dict.fromkeys(one.rpartition(".")[2] for one in whole)
    close = get_close_matches(name, [*whole, *ends], n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(
        dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", one) for one in whole)
    )


#: File names in peft's format.
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
#: peft's name for a single adapter.
_NAME = "default"
#: peft's prefix of the model's module names.
_PREFIX = "base_model.model."
#: Suffixes of adapter parameters in a decoder, and in peft's files.
_ENDS = (
    (f".lora_A.{_NAME}.weight", ".lora_A.weight"),
    (f".lora_B.{_NAME}.weight", ".lora_B.weight"),
    (f".lora_magnitude_vector.{_NAME}.weight", ".lora_magnitude_vector"),
)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter in its stored form.

    Args:
        tensors: by their names in peft's format.
        config: peft's, the contents of `adapter_config.json`.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]

    def copied(self) -> AdapterFiles:
        """A copy with the tensors on the host, since training continues during the write."""
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in self.tensors.items()}
        return AdapterFiles(copies, self.config)


def add_adapters(module: nn.Module, section: TuneSection, seed: int = 0) -> None:
    """Add the section's adapters to a decoder, and freeze everything else except the fully trained
    modules (`tune.parameters`), which get no adapters.

    Adapters have no effect until they are trained: one of their two matrices is zero.

    Args:
        module: the decoder's; its linear layers are replaced by peft's.
        section: names a method that adds adapters, and their sizes.
        seed: for initialising them; torch's generators are unchanged.

    Raises:
        RecipeError: a target is not a linear layer, there is no such block, or the rank is too large.
        MissingPackageError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise MissingPackageError.extra(f"tune.method={section.method}", "peft", "lora")
    whole = {_owner(name) for name in parameters_named(module, section.parameters)}
    targets = _targets(module, section, whole)
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(_config(targets, section), module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(_of_adapter(name) is not None or _owner(name) in whole)


def write_adapters(module: nn.Module, section: TuneSection, base: str) -> AdapterFiles:
    """A decoder's adapters in their stored form; `base` is the base model's name, for information."""
    targets = [name for name, layer in module.named_modules() if hasattr(layer, "lora_A")]
    stored = _stored(module)
    whole = {_owner(name) for name in stored if _of_adapter(name) is None}
    config = _config(targets, section)
    config.modules_to_save = sorted(whole) or None
    config.base_model_name_or_path, config.inference_mode = base, True
    values = json.loads(json.dumps(config.to_dict(), default=_plain))
    tensors = {
        in_file: module.get_parameter(name).detach().contiguous()
        for name, in_file in stored.items()
    }
    return AdapterFiles(tensors, {**values, "target_modules": targets})


def load_adapters(module: nn.Module, tensors: Mapping[str, Tensor], place: str) -> None:
    """Copy stored tensors into the adapters made by `add_adapters`.

    Raises:
        CheckpointError: they belong to other layers, have other shapes or types, or are not finite.
    """
    own = {in_file: module.get_parameter(name) for name, in_file in _stored(module).items()}
    for name in sorted(own.keys() | tensors.keys()):
        have = _told(tensors.get(name))
        need = _told(own.get(name))
        if have != need:
            raise CheckpointError(
                f"{place}, tensor {name}",
                f"the file has {have}, but the adapters of this recipe need {need}",
                "use the recipe.yaml beside the adapter, unchanged",
            )
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(
                f"{place}, tensor {name}",
                "contains values that are not finite",
                "use an older checkpoint",
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def merge_adapters(module: nn.Module) -> None:
    """Merge the adapters into the weights, and restore the plain layers."""
    for name, layer in list(module.named_modules()):
        if hasattr(layer, "lora_A"):
            merging: Any = layer  # peft's class, used without importing it
            merging.merge()
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, merging.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config


def _config(targets: list[str], section: TuneSection) -> Any:
    """peft's config."""
    import peft

    return peft.LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # peft divides it, and takes any number
        lora_dropout=section.dropout,
        use_rslora=section.rank_stabilised,
        use_dora=section.method == "dora",
        target_modules=targets,
    )


def _targets(module: nn.Module, section: TuneSection, whole: set[str]) -> list[str]:
    """Full names of the layers that get adapters; `whole`: modules that are trained entirely."""
    modules = dict(module.named_modules())
    linear = [
        name
        for name, layer in modules.items()
        if isinstance(layer, nn.Linear) and name not in whole
    ]
    if not linear:
        rest = " that isn't trained entirely" if whole else ""
        raise RecipeError(
            "tune.method",
            f"is {section.method!r}, but {type(module).__name__} has no linear layer{rest}",
            "use tune.method=layers",
        )
    for target in section.targets:
        if not any(_ends(name, target) for name in linear):
            other = next((name for name in modules if name and _ends(name, target)), None)
            raise RecipeError(
                "tune.targets",
                f"{target!r} is not a module of this decoder"
                if other is None
                else f"{target!r} is a module of the class {type(modules[other]).__name__}, but "
                "adapters need linear layers",
                nearest(target, linear),
            )
    found = [
        name
        for name in linear
        if not section.targets or any(_ends(name, target) for target in section.targets)
    ]
    blocks = {name: _block(name) for name in found}
    known = sorted({number for number in blocks.values() if number is not None})
    for number in section.blocks:
        if number not in known:
            raise RecipeError(
                "tune.blocks",
                f"there is no block {number} with these targets",
                f"use numbers from {known[0]} to {known[-1]}" if known else "leave it empty",
            )
    found = [name for name in found if not section.blocks or blocks[name] in section.blocks]
    for name in found:
        layer = modules[name]
        assert isinstance(layer, nn.Linear)
        if section.rank > min(layer.in_features, layer.out_features):
            raise RecipeError(
                "tune.rank",
                f"is {section.rank}, but {name} has {layer.in_features} inputs and "
                f"{layer.out_features} outputs: an adapter would be as large as the layer",
                f"use at most {min(layer.in_features, layer.out_features)}, or tune.method=layers",
            )
    return found


def _ends(name: str, target: str) -> bool:
    """Whether a module's name equals the target, or ends with it after a dot."""
    return name == target or name.endswith(f".{target}")


def _block(name: str) -> int | None:
    """The first number in a module's name."""
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return None if match is None else int(match[1])


def _owner(name: str) -> str:
    """The module that directly owns a parameter."""
    return name.rpartition(".")[0]


def _stored(module: nn.Module) -> dict[str, str]:
    """Names of the trained parameters of a decoder with adapters -> their names in peft's files."""
    return {
        name: _of_adapter(name) or f"{_PREFIX}{name}"
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _of_adapter(name: str) -> str | None:
    """The name in peft's files of an adapter's parameter; None for any other parameter."""
    for end, stored in _ENDS:
        if name.endswith(end):
            return f"{_PREFIX}{name.removesuffix(end)}{stored}"
    return None


def _told(tensor: Tensor | None) -> str:
    if tensor is None:
        return "nothing"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _plain(value: object) -> object:
    """A JSON value for types that JSON lacks: sets and peft's enumerations."""
    return (
        sorted(value)
        if isinstance(value, (set, frozenset))
        else str(getattr(value, "value", value))
    )


def select_parameters(
    decoder: Decoder, section: TuneSection, vocabulary: Vocabulary, *, seed: int = 0
) -> dict[str, range]:
    """Freeze the parameters that the section `tune` doesn't train (`requires_grad`), and add its adapters.

    Args:
        decoder: with the weights of the model to tune.
        section: the recipe's.
        vocabulary: determines the rows of image codes.
        seed: for initialising the adapters; torch's generators are unchanged.

    Returns:
        Parameters of which only some rows are trained: name -> rows.

    Raises:
        RecipeError: a name matches no parameter or module, the decoder has no such head or tables, or
            a rank exceeds a target's dimensions.
        MissingPackageError: adapters are requested without peft.
    """
    module = decoder.module
    if section.method == "full":
        return {}
    if section.adapts:
        add_adapters(module, section, seed)
        return {}
    if section.method == "head":
        trained, rows = _head(decoder, vocabulary)
    else:
        rows = {}
        trained = (
            _tables(decoder)
            if section.method == "embeddings"
            else parameters_named(module, section.parameters)
        )
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
    return rows


def _head(decoder: Decoder, vocabulary: Vocabulary) -> tuple[set[str], dict[str, range]]:
    """The head's name, and its rows for image codes."""
    if decoder.own_head is not None:
        raise RecipeError(
            "tune.method",
            f"is 'head', but {type(decoder).__name__} has a separate head for image codes",
            "use tune.method=layers with tune.parameters",
        )
    head = decoder.head_weight()
    for name, parameter in decoder.module.named_parameters():
        if parameter is head:
            image = vocabulary.image
            return {name}, {name: range(image.start, image.stop)}
    raise RecipeError(
        "tune.method",
        f"is 'head', but {type(decoder).__name__} has no separate parameter for its head",
        "use tune.method=layers with tune.parameters, or lora",
    )


def _tables(decoder: Decoder) -> set[str]:
    """The parameters with one row per token."""
    embeddings = {id(one) for one in decoder.parameter_groups().get("embedding", [])}
    found = {
        name
        for name, parameter in decoder.module.named_parameters()
        if id(parameter) in embeddings and parameter.shape[0] == decoder.vocab_size
    }
    if not found:
        raise RecipeError(
            "tune.method",
            f"is 'embeddings', but {type(decoder).__name__} has no table with one row per token",
            "use tune.method=layers with tune.parameters",
        )
    return found
