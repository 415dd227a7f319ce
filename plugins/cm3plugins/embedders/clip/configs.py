"""Reads the configs next to a CLIP's weights: activation, heads, preprocessing; checks consistency.

Pictures are prepared as in torchvision: scaled by Pillow, centre-cropped, standardised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image as Pillow
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError
from cm3plugins.embedders.clip.towers import Activation, CLIPSizes

Interpolation = Literal["bicubic", "bilinear"]
_RESAMPLING = {"bicubic": Pillow.Resampling.BICUBIC, "bilinear": Pillow.Resampling.BILINEAR}
#: A longer side is cropped to this multiple of the shorter one before scaling.
_LONGEST = 8


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of pictures; OpenAI's by default.

    Args:
        resolution: side of the square in pixels.
        mean, std: mean and deviation of red, green and blue (0..1) of the network's training pictures.
        interpolation: interpolation of the (antialiased) scaling.
        squash: scale both sides to the resolution instead of scaling the shorter one and cropping.
    """

    resolution: int
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Interpolation = "bicubic"
    squash: bool = False

    def __call__(self, image: PixelArray) -> Tensor:
        """Return a picture uint8 [H, W, 3] as float32 [3, resolution, resolution]."""
        square = self.square(image)
        pixels_3RR = rearrange(torch.from_numpy(square), "H W C -> C H W").float() / 255
        return (pixels_3RR - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[
            :, None, None
        ]

    def square(self, image: PixelArray) -> PixelArray:
        """Return the scaled and cropped picture, uint8 [resolution, resolution, 3]."""
        side = self.resolution
        if not self.squash:
            # The middle of a picture of 1 x 10,000 pixels is enough: scaled as a whole, it would be
            # millions of pixels wide.
            (height, width), longest = image.shape[:2], _LONGEST * min(image.shape[:2])
            top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
            image = image[top : top + longest, left : left + longest]
        height, width = image.shape[:2]
        picture, short = Pillow.fromarray(np.ascontiguousarray(image)), min(height, width)
        size = (side, side) if self.squash else (side * width // short, side * height // short)
        scaled = picture.resize(size, _RESAMPLING[self.interpolation])
        left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
        return np.array(scaled.crop((left, top, left + side, top + side)))


#: Default width of a head, if the number of heads is not given.
HEAD_WIDTH = 64
#: Keys of open_clip's configs that are read here, or that have no effect in inference. Any other key
#: changes the network.
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
    """Read a JSON object; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(str(path), f"can't be read ({error})", "copy it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            str(path), f"holds a {type(found).__name__}, not an object", "copy it again"
        )
    return found


def _object(values: Mapping[str, Any], key: str, place: Path) -> dict[str, Any]:
    """Return the object of a key, empty if it is missing or null."""
    found = values.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise CheckpointError(
            str(place), f"{key} is a {type(found).__name__}, not an object", "copy it again"
        )
    return found


def _count(values: Mapping[str, Any], key: str, default: int, place: Path) -> int:
    """Return the whole number of a key, 1 or more."""
    found = default if values.get(key) is None else values[key]
    if type(found) is not int or found < 1:
        raise CheckpointError(
            str(place), f"{key} is {found!r}, not a whole number of 1 or more", "copy it again"
        )
    return found


def _parts(config: Mapping[str, Any], place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the vision and text parts of a Hugging Face config; in old files with two, the second wins."""
    vision, text = (
        _object(config, f"{kind}_config", place) | _object(config, f"{kind}_config_dict", place)
        for kind in ("vision", "text")
    )
    return vision, text


def _open_clip_parts(
    config: Mapping[str, Any], place: Path
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return open_clip's `model_cfg` and its vision and text parts."""
    model = _object(config, "model_cfg", place)
    return model, _object(model, "vision_cfg", place), _object(model, "text_cfg", place)


def read_activations(
    path: Path,
    origin: str,
    open_clip: dict[str, Any] | None,
    hugging_face: dict[str, Any] | None,
    given: bool | None,
) -> list[tuple[Activation, str]]:
    """Return the activation of the vision and the text tower, with its source.

    Raises:
        CheckpointError: no source states it, or two disagree.
    """
    if given is not None:
        return [("quick_gelu" if given else "gelu", "set in the recipe")] * 2
    said: list[list[tuple[Activation, str]]] = []
    if origin == "OpenAI":
        said.append([("quick_gelu", "OpenAI's archive")] * 2)
    if open_clip is not None:
        model = _object(open_clip, "model_cfg", path.parent / "open_clip_config.json")
        quick = model.get("quick_gelu", False)
        said.append([("quick_gelu" if quick else "gelu", "open_clip_config.json")] * 2)
    if hugging_face is not None and (
        "vision_config" in hugging_face or "vision_config_dict" in hugging_face
    ):
        parts = _parts(hugging_face, path.parent / "config.json")
        said.append([(_hidden_act(part, path), "config.json") for part in parts])
    if not said:
        raise CheckpointError(
            str(path),
            "no config states whether its activation is QuickGELU",
            "set embedder.quick_gelu=true (OpenAI's weights, and open_clip's models named "
            "-quickgelu) or "
            "embedder.quick_gelu=false (open_clip's other models)",
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
    # transformers' default, which older files omit
    name = part.get("hidden_act", "quick_gelu")
    if name == "quick_gelu":
        return "quick_gelu"
    if name == "gelu":
        return "gelu"
    raise CheckpointError(
        str(path.parent / "config.json"),
        f"asks for the activation {name!r}",
        "only gelu and quick_gelu are supported",
    )


def read_heads(
    path: Path, origin: str, open_clip: dict[str, Any] | None, hugging_face: dict[str, Any] | None
) -> list[int | None]:
    """Return the heads of the vision and the text tower; None: one per 64 of the width, as in OpenAI's."""
    if origin == "Hugging Face" and hugging_face is not None:
        place = path.parent / "config.json"
        if hugging_face.get("model_type", "clip") != "clip":
            raise CheckpointError(
                str(place),
                f"describes a model of type {hugging_face['model_type']!r}",
                "use a CLIP",
            )
        vision, text = _parts(hugging_face, place)
        for part in (vision, text):
            epsilon = part.get("layer_norm_eps", 1e-5)
            if not isinstance(epsilon, float) or not math.isclose(epsilon, 1e-5):
                raise CheckpointError(
                    str(place),
                    f"asks for layer_norm_eps {epsilon}",
                    "only 1e-5 is supported, which all published CLIPs use",
                )
        # transformers' defaults
        key = "num_attention_heads"
        return [_count(vision, key, 12, place), _count(text, key, 8, place)]
    if origin == "open_clip" and open_clip is not None:
        place = path.parent / "open_clip_config.json"
        _, vision, text = _open_clip_parts(open_clip, place)
        head_width = _count(vision, "head_width", HEAD_WIDTH, place)
        heads = (
            max(1, _count(vision, "width", 1, place) // head_width)
            if vision.get("width") is not None
            else None
        )
        return [heads, _count(text, "heads", 8, place)]  # open_clip's default
    return [None, None]


def check_open_clip(path: Path, config: Mapping[str, Any], sizes: CLIPSizes) -> None:
    """Check open_clip's config against the weights.

    Raises:
        CheckpointError: it needs something that these towers don't support, or contradicts the
            weights.
    """
    place = path.parent / "open_clip_config.json"
    model, vision, text = _open_clip_parts(config, place)
    unknown = [f"vision_cfg.{key}" for key in vision if key not in _KNOWN_VISION and vision[key]]
    unknown += [f"text_cfg.{key}" for key in text if key not in _KNOWN_TEXT and text[key]]
    if unknown:
        raise CheckpointError(
            str(place), f"asks for {', '.join(unknown)}", "only OpenAI's architecture is supported"
        )
    _compare(
        str(place),
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
    vision, text = _parts(config, path.parent / "config.json")
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
                f"{name} is {said}, but the weights have {found}",
                "put the config of these weights next to them",
            )


def read_preprocessing(
    path: Path, origin: str, open_clip: Mapping[str, Any] | None, resolution: int
) -> Preprocessing:
    """Read the preprocessing from the config next to the weights, otherwise return OpenAI's.

    Raises:
        CheckpointError: it is not supported.
    """
    if origin == "open_clip" and open_clip is not None:
        place = path.parent / "open_clip_config.json"
        said = _object(open_clip, "preprocess_cfg", place)
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
            "interpolation": {"2": "bilinear", "3": "bicubic"}.get(str(resample), str(resample)),
        }
        known = True
    else:
        return Preprocessing(resolution)
    given: dict[str, Any] = {key: value for key, value in fields.items() if value is not None}
    for key in {"mean", "std"} & given.keys():
        given[key] = _colours(given[key], key, place)
    if not known or given.get("interpolation", "bicubic") not in ("bicubic", "bilinear"):
        raise CheckpointError(
            str(place),
            f"asks for {resize!r} scaling with {given.get('interpolation', 'bicubic')!r}",
            "only shortest and squash with bicubic or bilinear are supported",
        )
    return Preprocessing(resolution, squash=resize == "squash", **given)


def _colours(values: Any, key: str, place: Path) -> tuple[float, ...]:
    """Return the mean or standard deviation of red, green and blue."""
    good = isinstance(values, list) and len(values) == 3
    good = good and all(type(one) in (int, float) and math.isfinite(one) for one in values)
    if not good or (key == "std" and min(values) <= 0):
        needed = "three numbers above 0" if key == "std" else "three numbers"
        raise CheckpointError(str(place), f"its {key} is {values!r}, not {needed}", "copy it again")
    return tuple(values)
