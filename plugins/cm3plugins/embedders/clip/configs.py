"""The configs next to a CLIP's weights: activation, heads, preprocessing, consistency checks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3core.errors import CheckpointError
from cm3plugins.embedders.clip.preprocessing import Preprocessing
from cm3plugins.embedders.clip.towers import Activation, CLIPSizes

#: Width of a head if nothing specifies their number.
HEAD_WIDTH = 64
#: Keys of open_clip's configs that this file reads, or that have no effect in inference. Others
#: change the network.
_KNOWN_VISION = {
    "layers",
    "width",
    "head_width",
    "mlp_ratio",
    "patch_size",
    "image_size",
    "patch_dropout",
    "output_tokens",
}
_KNOWN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(str(path), f"can't be read ({error})", "copy it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            str(path), f"holds a {type(found).__name__}, not an object", "copy it again"
        )
    return found


def _parts(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vision and text parts of a Hugging Face config; in old files, the second of two wins."""
    vision, text = (
        {**(config.get(f"{kind}_config") or {}), **(config.get(f"{kind}_config_dict") or {})}
        for kind in ("vision", "text")
    )
    return vision, text


def read_activations(
    path: Path,
    origin: str,
    open_clip: dict[str, Any] | None,
    hugging_face: dict[str, Any] | None,
    given: bool | None,
) -> list[tuple[Activation, str]]:
    """Activation of the vision and the text tower, and its source.

    Raises:
        CheckpointError: there is no source, or two disagree.
    """
    if given is not None:
        return [("quick_gelu" if given else "gelu", "set in the recipe")] * 2
    said: list[list[tuple[Activation, str]]] = []
    if origin == "OpenAI":
        said.append([("quick_gelu", "OpenAI's archive")] * 2)
    if open_clip is not None:
        quick = open_clip.get("model_cfg", {}).get("quick_gelu", False)
        said.append([("quick_gelu" if quick else "gelu", "open_clip_config.json")] * 2)
    if hugging_face is not None and (
        "vision_config" in hugging_face or "vision_config_dict" in hugging_face
    ):
        said.append([(_hidden_act(part, path), "config.json") for part in _parts(hugging_face)])
    if not said:
        raise CheckpointError(
            str(path),
            "nothing states whether its activation is QuickGELU",
            "set embedder.quick_gelu=true (OpenAI's weights, and open_clip's models named "
            "-quickgelu) or "
            "embedder.quick_gelu=false (open_clip's others)",
        )
    for other in said[1:]:
        if [name for name, _ in other] != [name for name, _ in said[0]]:
            raise CheckpointError(
                str(path),
                f"{said[0][0][1]} states {said[0][0][0]} but {other[0][1]} states {other[0][0]}",
                "set embedder.quick_gelu=true or embedder.quick_gelu=false",
            )
    return said[0]


def _hidden_act(part: Mapping[str, Any], path: Path) -> Activation:
    # the default of transformers, which older files omit
    name = part.get("hidden_act", "quick_gelu")
    if name == "quick_gelu":
        return "quick_gelu"
    if name == "gelu":
        return "gelu"
    raise CheckpointError(
        str(path.parent / "config.json"),
        f"asks for the activation {name!r}",
        "only gelu and quick_gelu are known",
    )


def read_heads(
    path: Path, origin: str, open_clip: dict[str, Any] | None, hugging_face: dict[str, Any] | None
) -> list[int | None]:
    """Heads of the vision and of the text tower; None: as OpenAI's, one per 64 of the width."""
    if origin == "Hugging Face" and hugging_face is not None:
        if hugging_face.get("model_type", "clip") != "clip":
            raise CheckpointError(
                str(path.parent / "config.json"),
                f"is of a model {hugging_face['model_type']!r}",
                "give a CLIP",
            )
        vision, text = _parts(hugging_face)
        for part in (vision, text):
            if not math.isclose(part.get("layer_norm_eps", 1e-5), 1e-5):
                raise CheckpointError(
                    str(path.parent / "config.json"),
                    f"asks for layer_norm_eps {part['layer_norm_eps']}",
                    "only 1e-5 is known, as all published CLIPs have it",
                )
        # transformers' defaults
        return [vision.get("num_attention_heads", 12), text.get("num_attention_heads", 8)]
    if origin == "open_clip" and open_clip is not None:
        model = open_clip.get("model_cfg", {})
        vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
        width = vision.get("width")
        heads = (
            None
            if not isinstance(width, int)
            else width // (vision.get("head_width") or HEAD_WIDTH)
        )
        return [heads, text.get("heads", 8)]  # open_clip's default
    return [None, None]


def check_open_clip(path: Path, config: Mapping[str, Any], sizes: CLIPSizes) -> None:
    """Check open_clip's config.

    Raises:
        CheckpointError: it needs something that these towers don't support, or contradicts the
            weights.
    """
    place, model = str(path.parent / "open_clip_config.json"), config.get("model_cfg", {})
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    unknown = [f"vision_cfg.{key}" for key in vision if key not in _KNOWN_VISION and vision[key]]
    unknown += [f"text_cfg.{key}" for key in text if key not in _KNOWN_TEXT and text[key]]
    if unknown:
        raise CheckpointError(
            place, f"asks for {', '.join(unknown)}", "only OpenAI's architecture is read"
        )
    _compare(
        place,
        (
            ("vision_cfg.width", vision.get("width"), sizes.vision.width),
            ("vision_cfg.layers", vision.get("layers"), sizes.vision.num_layers),
            ("vision_cfg.patch_size", vision.get("patch_size"), sizes.patch),
            ("vision_cfg.image_size", vision.get("image_size"), sizes.resolution),
            ("text_cfg.width", text.get("width"), sizes.text.width),
            ("text_cfg.layers", text.get("layers"), sizes.text.num_layers),
            ("embed_dim", model.get("embed_dim"), sizes.dimension),
        ),
    )


def check_hugging_face(path: Path, config: Mapping[str, Any], sizes: CLIPSizes) -> None:
    """Raise `CheckpointError` if Hugging Face's config contradicts the weights."""
    vision, text = _parts(config)
    _compare(
        str(path.parent / "config.json"),
        (
            ("vision_config.hidden_size", vision.get("hidden_size"), sizes.vision.width),
            (
                "vision_config.num_hidden_layers",
                vision.get("num_hidden_layers"),
                sizes.vision.num_layers,
            ),
            ("vision_config.patch_size", vision.get("patch_size"), sizes.patch),
            ("vision_config.image_size", vision.get("image_size"), sizes.resolution),
            ("text_config.hidden_size", text.get("hidden_size"), sizes.text.width),
            ("text_config.num_hidden_layers", text.get("num_hidden_layers"), sizes.text.num_layers),
            ("projection_dim", config.get("projection_dim"), sizes.dimension),
        ),
    )


def _compare(place: str, sayings: Sequence[tuple[str, object, int]]) -> None:
    for name, said, found in sayings:
        if said is not None and said != found:
            raise CheckpointError(
                place,
                f"{name} is {said}, and the weights have {found}",
                "put the config of these weights next to them",
            )


def read_preprocessing(
    path: Path, origin: str, open_clip: Mapping[str, Any] | None, resolution: int
) -> Preprocessing:
    """The preprocessing next to the weights, else OpenAI's.

    Raises:
        CheckpointError: it is not supported.
    """
    if origin == "open_clip" and open_clip is not None:
        place, said = path.parent / "open_clip_config.json", open_clip.get("preprocess_cfg", {})
        resize = said.get("resize_mode") or "shortest"
        fields = {
            "mean": said.get("mean"),
            "std": said.get("std"),
            "interpolation": said.get("interpolation"),
        }
        known = resize in ("shortest", "squash")
    elif (
        origin == "Hugging Face"
        and (found := read_json(path.parent / "preprocessor_config.json")) is not None
    ):
        place, size = path.parent / "preprocessor_config.json", found.get("size")
        resize = "squash" if isinstance(size, dict) and "shortest_edge" not in size else "shortest"
        resample = found.get("resample", 3)
        fields = {
            "mean": found.get("image_mean"),
            "std": found.get("image_std"),
            "interpolation": {2: "bilinear", 3: "bicubic"}.get(resample, str(resample)),
        }
        known = True
    else:
        return Preprocessing(resolution)
    fields = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in fields.items()
        if value is not None
    }
    if not known or fields.get("interpolation", "bicubic") not in ("bicubic", "bilinear"):
        raise CheckpointError(
            str(place),
            f"asks for {resize!r} scaling with {fields.get('interpolation', 'bicubic')!r}",
            "only shortest and squash with bicubic and bilinear are done here",
        )
    return Preprocessing(resolution, squash=resize == "squash", **fields)
