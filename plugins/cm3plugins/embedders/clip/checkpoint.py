"""Files of CLIP -> tensors under OpenAI's names, sizes, activation, preprocessing.

Three origins, told apart by the names of the tensors and the files beside them:

- OpenAI: a TorchScript archive (see `archive`), always QuickGELU;
- open_clip: OpenAI's names, `open_clip_config.json` beside them, GELU unless that says
  `quick_gelu`;
- Hugging Face: `text_model.*` and `vision_model.*`, `config.json` beside them: its `hidden_act`,
  else QuickGELU.

A wrong activation gives vectors that look fine and retrieve badly (mlfoundations/open_clip#771), so
it is never guessed.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3plugins.embedders.clip.archive import is_archive, read_archive
from cm3plugins.embedders.clip.preprocessing import Preprocessing
from cm3plugins.embedders.clip.towers import Activation, CLIPSizes, TransformerSizes
from cm3plugins.embedders.weights import check_finite

logger = logging.getLogger("cm3plugins.clip")

WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
_HEAD_WIDTH = 64
#: Tensors that no tower needs: the temperature, and what archives keep of sizes and masks.
_IGNORED = re.compile(
    r"(^|\.)(logit_scale|logit_bias|attn_mask|position_ids|input_resolution|context_length|vocab_size)$"
)
#: Hugging Face's names -> OpenAI's, applied in this order.
_RENAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm1\.", ".ln_1."),
    (r"\.layer_norm2\.", ".ln_2."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
)
#: Keys of open_clip's configs that this file reads, or that change nothing when the network is
#: used. Others change the network.
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


@dataclass(frozen=True)
class CLIPCheckpoint:
    """What a file of CLIP says.

    Args:
        path: the file of weights.
        tensors: by OpenAI's names, float32.
        sizes: of both towers.
        preprocessing: of pictures.
        summary: one line for people: origin, sizes, activation and who says so.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    sizes: CLIPSizes
    preprocessing: Preprocessing
    summary: str


def read_checkpoint(path: Path, quick_gelu: bool | None = None) -> CLIPCheckpoint:
    """Read a file or a folder.

    Args:
        path: of either.
        quick_gelu: see `CLIPConfig`.

    Raises:
        CheckpointError: nothing there, damaged, needs code to be read, no CLIP with a vision
            transformer, numbers that are none, a config that contradicts the weights, or an
            activation that nobody tells.
    """
    weights = find_weights(path)
    is_torchscript = is_archive(weights)
    tensors = read_archive(weights) if is_torchscript else _read_tensors(weights)
    open_clip, hugging_face = (
        _read_json(weights.parent / name) for name in ("open_clip_config.json", "config.json")
    )
    if "text_model.embeddings.token_embedding.weight" in tensors:
        origin = "Hugging Face"
        tensors = _from_hugging_face(tensors, weights)
    else:
        origin = "OpenAI" if is_torchscript else "open_clip"
        tensors = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    tensors = {
        name: tensor.float() for name, tensor in tensors.items() if not _IGNORED.search(name)
    }
    check_finite(tensors, weights)
    _check_architecture(weights, tensors)
    activations = _activations(weights, origin, open_clip, hugging_face, quick_gelu)
    heads = _heads(weights, origin, open_clip, hugging_face)
    sizes = _sizes(weights, tensors, activations, heads)
    if origin == "open_clip" and open_clip is not None:
        _check_open_clip(weights, open_clip, sizes)
    if origin == "Hugging Face" and hugging_face is not None:
        _check_hugging_face(weights, hugging_face, sizes)
    preprocessing = _preprocessing(weights, origin, open_clip, sizes.resolution)
    words = " and ".join(
        sorted({"QuickGELU" if one == "quick_gelu" else "GELU" for one, _ in activations})
    )
    summary = (
        f"{origin}'s CLIP with patches of {sizes.patch} pixels, {sizes.resolution} px, "
        f"{sizes.dimension} dimensions, "
        f"{words} ({activations[0][1]})"
    )
    logger.info("%s: %s", weights, summary)
    return CLIPCheckpoint(weights, tensors, sizes, preprocessing, summary)


def find_weights(path: Path) -> Path:
    """The file of weights that a path means. Raises `CheckpointError` when there is none, or no
    telling which."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(str(path), "there is no such file or folder", "correct embedder.path")
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    if any((path / f"{name}.index.json").is_file() for name in WEIGHTS):
        raise CheckpointError(
            str(path), "its weights are in several files", "join them in one model.safetensors"
        )
    found = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS)
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    raise CheckpointError(
        str(path),
        f"files of weights in it: {names}",
        f"give the file itself, or name it {WEIGHTS[2]}",
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        # torch's own words tell how to run the file's code all the same
        reason = str(error) if isinstance(error, SafetensorError) else type(error).__name__
        raise CheckpointError(
            str(path),
            f"holds no plain tensors ({reason})",
            "give the weights alone; files that run code when they are read are refused",
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # open_clip's training keeps optimiser and epoch beside it
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            str(path),
            f"holds a {type(state).__name__}, not weights by name",
            "give the weights alone",
        )
    return {
        name.removeprefix("module."): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, None when there is no such file."""
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


def _from_hugging_face(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors under OpenAI's names: query, key and value in one matrix, projections
    transposed."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in _RENAMES:
            new = re.sub(pattern, replacement, new)
        renamed[new] = tensor
    for place in [
        name.removesuffix("q_proj.weight") for name in renamed if name.endswith(".q_proj.weight")
    ]:
        for kind in ("weight", "bias"):
            try:
                parts = [renamed.pop(f"{place}{letter}_proj.{kind}") for letter in "qkv"]
            except KeyError as error:
                raise CheckpointError(
                    str(path), f"{error.args[0]} is missing", "copy the file again"
                ) from error
            renamed[f"{place}in_proj_{kind}"] = torch.cat(parts)
    for old, new in (
        ("visual_projection.weight", "visual.proj"),
        ("text_projection.weight", "text_projection"),
    ):
        if old in renamed:
            renamed[new] = renamed.pop(old).T.contiguous()
    return renamed


def _parts(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vision and text config of Hugging Face's; old files have them twice, and the second one
    counts."""
    vision, text = (
        {**(config.get(f"{kind}_config") or {}), **(config.get(f"{kind}_config_dict") or {})}
        for kind in ("vision", "text")
    )
    return vision, text


def _activations(
    path: Path,
    origin: str,
    open_clip: dict[str, Any] | None,
    hugging_face: dict[str, Any] | None,
    given: bool | None,
) -> list[tuple[Activation, str]]:
    """Activation of the vision and the text tower, and who says so. Raises `CheckpointError` where
    nobody does, or two differ."""
    if given is not None:
        return [("quick_gelu" if given else "gelu", "the recipe says so")] * 2
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
            "nothing says whether its activation is QuickGELU",
            "set embedder.quick_gelu=true (OpenAI's weights, and open_clip's models named "
            "-quickgelu) or "
            "embedder.quick_gelu=false (open_clip's others)",
        )
    for other in said[1:]:
        if [name for name, _ in other] != [name for name, _ in said[0]]:
            raise CheckpointError(
                str(path),
                f"{said[0][0][1]} says {said[0][0][0]} and {other[0][1]} says {other[0][0]}",
                "set embedder.quick_gelu=true or embedder.quick_gelu=false",
            )
    return said[0]


def _hidden_act(part: Mapping[str, Any], path: Path) -> Activation:
    # transformers' default, which older files leave out
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


def _heads(
    path: Path, origin: str, open_clip: dict[str, Any] | None, hugging_face: dict[str, Any] | None
) -> list[int | None]:
    """Heads of the vision and of the text tower; None: as OpenAI's, one for each 64 of the
    width."""
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
            else width // (vision.get("head_width") or _HEAD_WIDTH)
        )
        return [heads, text.get("heads", 8)]  # open_clip's default
    return [None, None]


def _check_architecture(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` where the tensors are not those of a CLIP with a vision
    transformer."""
    needed = (
        "visual.conv1.weight",
        "visual.positional_embedding",
        "visual.proj",
        "token_embedding.weight",
        "positional_embedding",
        "text_projection",
    )
    missing = [name for name in needed if name not in tensors]
    other = any(
        name.startswith(("visual.layer1.", "visual.trunk.", "visual.attn_pool."))
        for name in tensors
    )
    if missing or other:
        what = "its picture tower is no vision transformer" if other else f"{missing[0]} is missing"
        raise CheckpointError(
            str(path),
            f"is no CLIP with a vision transformer ({what})",
            "give ViT-B/32, B/16, L/14 or a relative; ResNets, and towers of timm or of a "
            "language model, are "
            "not read",
        )


def _sizes(
    path: Path,
    tensors: Mapping[str, Tensor],
    activations: list[tuple[Activation, str]],
    heads: list[int | None],
) -> CLIPSizes:
    """Sizes that the tensors show."""
    transformers = []
    for prefix, (activation, _), given, width in (
        ("visual.", activations[0], heads[0], tensors["visual.conv1.weight"].shape[0]),
        ("", activations[1], heads[1], tensors["token_embedding.weight"].shape[1]),
    ):
        blocks = {
            name.removeprefix(f"{prefix}transformer.resblocks.").split(".")[0]
            for name in tensors
            if name.startswith(f"{prefix}transformer.resblocks.")
        }
        hidden = tensors.get(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")
        num_heads = given or max(1, width // _HEAD_WIDTH)
        if width % num_heads:
            raise CheckpointError(
                str(path),
                f"{num_heads} heads do not divide a width of {width}",
                "correct the config beside it",
            )
        mlp_width = 1 if hidden is None else hidden.shape[0]
        transformers.append(TransformerSizes(width, len(blocks), num_heads, mlp_width, activation))
    patch = tensors["visual.conv1.weight"].shape[-1]
    grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
    vocab_size, context = (
        tensors["token_embedding.weight"].shape[0],
        tensors["positional_embedding"].shape[0],
    )
    vision, text = transformers
    return CLIPSizes(
        vision, text, grid * patch, patch, vocab_size, context, tensors["visual.proj"].shape[1]
    )


def _check_open_clip(path: Path, config: Mapping[str, Any], sizes: CLIPSizes) -> None:
    """Raise `CheckpointError` where open_clip's config asks for what these towers don't do, or
    contradicts the weights."""
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


def _check_hugging_face(path: Path, config: Mapping[str, Any], sizes: CLIPSizes) -> None:
    """Raise `CheckpointError` where Hugging Face's config contradicts the weights."""
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
                "put the config of these weights beside them",
            )


def _preprocessing(
    path: Path, origin: str, open_clip: Mapping[str, Any] | None, resolution: int
) -> Preprocessing:
    """What stands beside the weights, else OpenAI's. Raises `CheckpointError` for what is not done
    here."""
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
        and (found := _read_json(path.parent / "preprocessor_config.json")) is not None
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
