"""What can be trained with torchtitan, and how its own settings are given. Light: no torchtitan here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from cm3core.errors import RecipeError, close_match
from cm3plugins.decoders.cm3leon import CM3LeonConfig

if TYPE_CHECKING:
    from cm3core.recipe import Recipe

#: torchtitan's folder of checkpoints and logs in a run's folder.
FOLDER = "titan"
#: Its checkpoints, in that folder.
CHECKPOINTS = "checkpoints"
#: Sections of torchtitan's config that can be changed; the recipe decides the rest.
SECTIONS = (
    "checkpoint",
    "comm",
    "compile",
    "debug",
    "metrics",
    "parallelism",
    "profiler",
    "training",
)
#: What is kept of a forward pass: a setting of its own, because torchtitan has a class for each.
RECOMPUTED = "activation_checkpoint"
#: Keys that can't be changed, and the key of the recipe that decides them; empty: none does.
DECIDED = {
    "checkpoint.enable": "",
    "checkpoint.folder": "-o",
    "checkpoint.initial_load_in_hf": "train.start_from",
    "checkpoint.initial_load_path": "train.start_from",
    "checkpoint.last_save_in_hf": "",
    "checkpoint.last_save_model_only": "",
    "debug.seed": "train.seed",
    "metrics.log_freq": "train.log_every_steps",
    "metrics.out_dir": "-o",
    "parallelism.spmd_backend": "",
    "training.global_batch_size": "train.batch_rows and train.accumulate",
    "training.local_batch_size": "train.batch_rows and train.accumulate",
    "training.max_norm": "train.clip_norm",
    "training.mixed_precision_param": "train.precision",
    "training.seq_len": "decoder.context_length",
    "training.steps": "train.steps",
}


@dataclass(frozen=True)
class Setting:
    """One of torchtitan's settings, such as `parallelism.tensor_parallel_degree=2`."""

    key: str
    value: Any

    @classmethod
    def read(cls, text: str) -> Setting:
        """Of "key=value", the value in YAML. Raises `RecipeError` if it is not."""
        key, equals, value = text.partition("=")
        section = key.partition(".")[0]
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
            parsed = None
        if not equals or (key != RECOMPUTED and "." not in key):
            raise RecipeError(
                f"--titan {text}",
                "is not SECTION.KEY=VALUE",
                "write it like parallelism.tensor_parallel_degree=2",
            )
        if section not in (*SECTIONS, RECOMPUTED):
            raise RecipeError(
                f"--titan {key}",
                f"{section!r} is not a section of torchtitan that can be changed",
                close_match(section, (*SECTIONS, RECOMPUTED)),
            )
        if key in DECIDED:
            raise RecipeError(
                f"--titan {key}",
                "is decided by the recipe" if DECIDED[key] else "is always the same here",
                f"set {DECIDED[key]}" if DECIDED[key] else "leave it out",
            )
        return cls(key, parsed)


def apply_settings(config: Any, settings: Sequence[Setting]) -> None:
    """Change fields of nested dataclasses in place, and check each changed section again.

    Raises:
        RecipeError: there is no such key, or the value has another type or is refused by torchtitan.
    """
    for setting in settings:
        *path, last = setting.key.split(".")
        place = config
        for name in path:
            place = _child(place, name, setting)
        hints = get_type_hints(type(place))
        _check_key(hints, last, setting)
        if not _fits(setting.value, hints[last]):
            raise RecipeError(
                f"--titan {setting.key}",
                f"is {setting.value!r}, expected {_in_words(hints[last])}",
                "see torchtitan's documentation of its config",
            )
        try:
            replace(place, **{last: setting.value})
        except (ValueError, AssertionError) as error:
            raise RecipeError(
                f"--titan {setting.key}={setting.value}",
                f"is refused by torchtitan: {error}",
                "choose another value",
            ) from error
        setattr(place, last, setting.value)


def _child(place: Any, name: str, setting: Setting) -> Any:
    known = {one.name for one in fields(place) if is_dataclass(getattr(place, one.name))}
    if name not in known:
        raise RecipeError(
            f"--titan {setting.key}", f"{name!r} is not a section", close_match(name, known)
        )
    return getattr(place, name)


def _check_key(hints: dict[str, Any], name: str, setting: Setting) -> None:
    if name not in hints or name.startswith("_"):
        known = [one for one in hints if not one.startswith("_")]
        raise RecipeError(
            f"--titan {setting.key}", f"{name!r} is not a key", close_match(name, known)
        )


def _fits(value: object, wanted: Any) -> bool:
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in parts)
    if origin is Literal:
        return value in parts
    if origin is list:
        return isinstance(value, list) and all(_fits(one, parts[0]) for one in value)
    if wanted in (None, type(None)):
        return value is None
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return wanted in (bool, str) and isinstance(value, wanted)


def _in_words(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return " or ".join(map(repr, get_args(wanted)))
    return getattr(wanted, "__name__", "") if isinstance(wanted, type) else str(wanted)


def check_recipe(recipe: Recipe) -> CM3LeonConfig:
    """The recipe's decoder; raises `RecipeError` for what is not trained with torchtitan."""
    decoder = recipe.section("decoder")
    if not isinstance(decoder, CM3LeonConfig):
        name = recipe.component_names.get("decoder", "")
        raise RecipeError("decoder", f"is {name!r}, expected 'cm3leon'", "train it with cm3 train")
    section, tune = recipe.train, recipe.tune
    refused: dict[str, tuple[Any, Any]] = {
        "decoder.code_axes": (decoder.code_axes, {}),
        "decoder.token_shift": (decoder.token_shift, False),
        "decoder.dropout": (decoder.dropout, 0.0),
        "train.optimizer": (section.optimizer, "adamw"),
        "train.minutes": (section.minutes, None),
        "train.patience": (section.patience, 0),
        "tune.method": (tune.method, "full"),
    }
    for key, (value, wanted) in refused.items():
        if value != wanted:
            step = "set train.steps" if key == "train.minutes" else "train it with cm3 train"
            written = "null" if wanted is None else repr(wanted)
            raise RecipeError(key, f"is {value!r}, but torchtitan needs {written}", step)
    return decoder
