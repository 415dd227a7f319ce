"""Read a CLIP file and the configs next to it: tensors, sizes, activation, preprocessing.

Three origins, distinguished by the names of the tensors and the files next to them:

- OpenAI: a TorchScript archive (see `archive`), always QuickGELU;
- open_clip: OpenAI's names, `open_clip_config.json` next to them, GELU unless that sets
  `quick_gelu`;
- Hugging Face: `text_model.*` and `vision_model.*`, `config.json` next to them: its `hidden_act`,
  else QuickGELU.

A wrong activation gives vectors that look fine and retrieve badly (mlfoundations/open_clip#771), so
it is never guessed.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cm3core.errors import CheckpointError
from cm3plugins.embedders.clip.archive import is_archive, read_archive
from cm3plugins.embedders.clip.configs import (
    HEAD_WIDTH,
    check_hugging_face,
    check_open_clip,
    read_activations,
    read_heads,
    read_json,
    read_preprocessing,
)
from cm3plugins.embedders.clip.preprocessing import Preprocessing
from cm3plugins.embedders.clip.tensors import (
    check_axes,
    find_weights,
    from_hugging_face,
    read_tensors,
)
from cm3plugins.embedders.clip.towers import Activation, CLIPSizes, TransformerSizes
from cm3plugins.trained.finite import check_finite

logger = logging.getLogger("cm3plugins.clip")

#: Tensors that no tower needs: the temperature, and sizes and masks kept in archives.
_IGNORED = re.compile(
    r"(^|\.)(logit_scale|logit_bias|attn_mask|position_ids|input_resolution|context_length|vocab_size)$"
)


@dataclass(frozen=True)
class CLIPCheckpoint:
    """The content of a CLIP file.

    Args:
        path: the file of weights.
        tensors: by OpenAI's names, float32.
        sizes: of both towers.
        preprocessing: of pictures.
        summary: one readable line: origin, sizes, activation and the source of the latter.
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
        CheckpointError: the file is missing, damaged, needs code to be read, is not a CLIP with a
            vision transformer, holds NaN or infinity, its config contradicts the weights, or the
            activation is unknown.
    """
    weights = find_weights(path)
    is_torchscript = is_archive(weights)
    tensors = read_archive(weights) if is_torchscript else read_tensors(weights)
    open_clip, hugging_face = (
        read_json(weights.parent / name) for name in ("open_clip_config.json", "config.json")
    )
    if "text_model.embeddings.token_embedding.weight" in tensors:
        origin = "Hugging Face"
        tensors = from_hugging_face(tensors, weights)
    else:
        origin = "OpenAI" if is_torchscript else "open_clip"
        tensors = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    tensors = {name: value for name, value in tensors.items() if not _IGNORED.search(name)}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(
                str(weights),
                f"{name} is of {str(tensor.dtype).removeprefix('torch.')}, not of real numbers",
                "give the weights in float32, float16 or bfloat16",
            )
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    check_finite(tensors, weights)
    _check_architecture(weights, tensors)
    activations = read_activations(weights, origin, open_clip, hugging_face, quick_gelu)
    heads = read_heads(weights, origin, open_clip, hugging_face)
    sizes = _sizes(weights, tensors, activations, heads)
    if origin == "open_clip" and open_clip is not None:
        check_open_clip(weights, open_clip, sizes)
    if origin == "Hugging Face" and hugging_face is not None:
        check_hugging_face(weights, hugging_face, sizes)
    preprocessing = read_preprocessing(weights, origin, open_clip, sizes.resolution)
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


def _check_architecture(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless the tensors are those of a CLIP with a vision transformer."""
    needed = {
        "visual.conv1.weight": 4,
        "visual.positional_embedding": 2,
        "visual.proj": 2,
        "token_embedding.weight": 2,
        "positional_embedding": 2,
        "text_projection": 2,
    }
    missing = [name for name in needed if name not in tensors]
    other = any(
        name.startswith(("visual.layer1.", "visual.trunk.", "visual.attn_pool."))
        for name in tensors
    )
    if missing or other:
        what = (
            "its picture tower is not a vision transformer" if other else f"{missing[0]} is missing"
        )
        raise CheckpointError(
            str(path),
            f"is not a CLIP with a vision transformer ({what})",
            "give ViT-B/32, B/16, L/14 or a relative; ResNets, and towers of timm or of a "
            "language model, are "
            "not read",
        )
    hidden = {f"{prefix}transformer.resblocks.0.mlp.c_fc.weight": 2 for prefix in ("visual.", "")}
    for name, num_axes in (needed | hidden).items():
        if name in tensors:
            check_axes(name, tensors[name], num_axes, path)


def _sizes(
    path: Path,
    tensors: Mapping[str, Tensor],
    activations: list[tuple[Activation, str]],
    heads: list[int | None],
) -> CLIPSizes:
    """Sizes, as the tensors imply them."""
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
        num_heads = given or max(1, width // HEAD_WIDTH)
        if width % num_heads:
            raise CheckpointError(
                str(path),
                f"{num_heads} heads do not divide a width of {width}",
                "correct the config next to it",
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
