"""LlamaGen's class-conditional models (`c2i_*.pt`), converted to a model of this framework.

Names and sizes: FoundationVision/LlamaGen (MIT), `autoregressive/models/gpt.py`; the paper is
arXiv:2406.06525. Its heads rotate adjacent dimensions, like Meta's, and are permuted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3core.plugins.discovery import load_registry
from cm3core.recipe import recipe_from_yaml
from cm3plugins.trained.tensor_files import TensorFile, open_tensors
from cm3published.convert.cm3 import TokenizerFiles, sizes_of_codes, write_folder
from cm3published.convert.facts import MOST_LAYERS, Facts
from cm3published.convert.model import (
    Asked,
    ModelFiles,
    check_finite,
    check_names,
    check_shape,
    check_type,
)
from cm3published.convert.names import Lazy, halves

LICENCE = (
    "LlamaGen's weights are published under the MIT licence. A converted copy is under it too."
)
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
CLASSES, TOKENS, HEAD = (
    "cls_embedding.embedding_table.weight",
    "tok_embeddings.weight",
    "output.weight",
)
#: Matrices from which a layer's sizes are inferred.
_FIRST_LAYER = ("layers.0.attention.wqkv.weight", "layers.0.feed_forward.w1.weight")
#: Heads of the published widths; others have heads of 64.
_HEADS = {3200: 32, 4096: 32}
_HEAD_DIM = 64
#: Rows after the codes that LlamaGen does not have: padding, and the end of a training sequence.
_MORE_ROWS = 2
TASKS: Mapping[str, Any] = {"plain": True, "tasks": {}}
#: File with one class name per line, next to the image tokenizer's file.
NAMES = "classes.txt"


@dataclass(frozen=True)
class LlamaGenFiles(ModelFiles):
    """A class-conditional LlamaGen; tensors have the decoder `llama`'s names.

    Args:
        num_classes: number of classes.
        num_codes: number of codes of its image tokenizer.
        resolution: side in pixels, from the file name; None: not stated.
    """

    num_classes: int = 0
    num_codes: int = 0
    resolution: int | None = None


def open_llamagen(path: Path, stack: ExitStack) -> LlamaGenFiles:
    """Open a file; it stays open as long as `stack`. Nothing in it is executed.

    Raises:
        CheckpointError: the file is damaged, or belongs to another or a text-conditional model.
    """
    file = stack.enter_context(open_tensors(path))
    entries = file.entries
    if any(name.startswith("cls_embedding.cap_proj") for name in entries):
        raise CheckpointError(
            str(path),
            "is a text-conditional model: it reads features of flan-T5-XL, which decoders here don't support",
            "use a class-conditional one (c2i_*.pt)",
        )
    if CLASSES not in entries or TOKENS not in entries:
        raise CheckpointError(
            str(path),
            "is not a class-conditional LlamaGen: it lacks "
            + (CLASSES if CLASSES not in entries else TOKENS),
            "use c2i_*.pt, or the folder of another model",
        )
    facts, rows = _facts(file)
    E, D = facts.d_model, facts.head_dim
    H, K, F = facts.num_heads, facts.num_key_heads, facts.d_ff
    wanted: dict[str, tuple[int, ...]] = {
        CLASSES: (rows, E),
        TOKENS: (entries[TOKENS].shape[0], E),
        HEAD: (entries[TOKENS].shape[0], E),
        "norm.weight": (E,),
    }
    for layer in range(facts.num_layers):
        at = f"layers.{layer}."
        wanted |= {
            f"{at}attention.wqkv.weight": ((H + 2 * K) * D, E),
            f"{at}attention.wo.weight": (E, E),
            f"{at}feed_forward.w1.weight": (F, E),
            f"{at}feed_forward.w3.weight": (F, E),
            f"{at}feed_forward.w2.weight": (E, F),
            f"{at}attention_norm.weight": (E,),
            f"{at}ffn_norm.weight": (E,),
        }
    check_names(str(path), entries, wanted)
    for name, shape in wanted.items():
        check_shape(str(path), name, entries[name].shape, shape)
        check_type(str(path), name, entries[name].dtype)
    size = re.search(r"_(\d{3,4})(?=\D*$)", path.stem)
    return LlamaGenFiles(
        "llamagen",
        facts,
        _tensors(file, facts),
        {},
        {path.name: None},
        licence=LICENCE,
        num_classes=rows - 1,
        num_codes=entries[TOKENS].shape[0],
        resolution=None if size is None else int(size[1]),
    )


def _facts(file: TensorFile) -> tuple[Facts, int]:
    """Infer the sizes from the tensors, and the number of class rows; the last row means no class."""
    entries, place = file.entries, str(file.path)
    numbers = [int(match[1]) for name in entries if (match := re.match(r"layers\.(\d+)\.", name))]
    layers = 1 + max((one for one in numbers if one < MOST_LAYERS), default=-1)
    shapes = [entries[name].shape for name in (CLASSES, TOKENS, *_FIRST_LAYER) if name in entries]
    if len(shapes) != 4 or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        raise CheckpointError(place, "lacks the first layer's matrices", "copy the file again")
    (rows, E), (codes, _), (fused, _), (inner, _) = shapes
    heads = _HEADS.get(E, E // _HEAD_DIM)
    if not heads or E % (4 * heads) or rows < 2:
        raise CheckpointError(
            place,
            f"has width {E}, which is not divisible into LlamaGen's heads of {_HEAD_DIM}",
            "use one of the published files",
        )
    key_heads, rest = divmod(fused - E, 2 * (E // heads))
    if rest or key_heads < 1 or heads % key_heads:
        raise CheckpointError(
            place,
            f"layers.0.attention.wqkv.weight has {fused} rows, which are not divisible into heads of {E // heads}",
            "copy the file again",
        )
    facts = Facts(
        vocab_size=rows + codes + _MORE_ROWS,
        d_model=E,
        num_layers=layers,
        num_heads=heads,
        num_key_heads=key_heads,
        d_ff=inner,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        swin_norm=False,
        has_norms=False,
    )
    facts.check(place)
    return facts, rows


def _tensors(file: TensorFile, facts: Facts) -> dict[str, Lazy]:
    """Return the decoder's tensors, each read and permuted on demand."""
    E, D = facts.d_model, facts.head_dim
    H, K = facts.num_heads, facts.num_key_heads

    def read(name: str) -> Tensor:
        tensor = file.tensor(name)
        check_finite(str(file.path), name, tensor)
        return tensor

    def lazy(name: str, shape: tuple[int, ...], take: Callable[[Tensor], Tensor]) -> Lazy:
        return Lazy(shape, file.entries[name].dtype, lambda: take(read(name)))

    def whole(name: str) -> Lazy:
        return lazy(name, file.entries[name].shape, lambda tensor: tensor)

    def embeddings() -> Tensor:
        codes = read(TOKENS)
        return torch.cat([read(CLASSES).to(codes.dtype), codes, codes.new_zeros(_MORE_ROWS, E)])

    def head() -> Tensor:
        # classes are never generated
        rows = read(HEAD)
        num_classes = file.entries[CLASSES].shape[0]
        return torch.cat([rows.new_zeros(num_classes, E), rows, rows.new_zeros(_MORE_ROWS, E)])

    shape, sizes = (facts.vocab_size, E), [H * D, K * D, K * D]
    found = {
        "embed_tokens.weight": Lazy(shape, file.entries[TOKENS].dtype, embeddings),
        "embed_output.weight": Lazy(shape, file.entries[HEAD].dtype, head),
        "norm.weight": whole("norm.weight"),
    }
    for layer in range(facts.num_layers):
        at = f"layers.{layer}."
        fused = f"{at}attention.wqkv.weight"
        found |= {
            f"{at}q_proj.weight": lazy(
                fused, (H * D, E), lambda rows: halves(rows.split(sizes)[0], H)
            ),
            f"{at}k_proj.weight": lazy(
                fused, (K * D, E), lambda rows: halves(rows.split(sizes)[1], K)
            ),
            f"{at}v_proj.weight": lazy(
                fused, (K * D, E), lambda rows: rows.split(sizes)[2].contiguous()
            ),
            f"{at}o_proj.weight": whole(f"{at}attention.wo.weight"),
            f"{at}gate_proj.weight": whole(f"{at}feed_forward.w1.weight"),
            f"{at}up_proj.weight": whole(f"{at}feed_forward.w3.weight"),
            f"{at}down_proj.weight": whole(f"{at}feed_forward.w2.weight"),
            f"{at}attention_norm.weight": whole(f"{at}attention_norm.weight"),
            f"{at}ffn_norm.weight": whole(f"{at}ffn_norm.weight"),
        }
    return found


def write_llamagen(model: LlamaGenFiles, folder: Path, tokenizer: Path, asked: Asked) -> None:
    """Write a model in this framework's format into an empty folder.

    Args:
        model: model to write.
        folder: existing empty folder.
        tokenizer: the image tokenizer's file, or a folder with one `vq_*.pt`; class names may be next to
            it.
        asked: name and picture size.

    Raises:
        CM3Error: the image tokenizer's file is missing or damaged, or belongs to another model.
    """
    image_file = _image_file(tokenizer)
    image: dict[str, Any] = {**sizes_of_codes(image_file, "use vq_ds16_c2i.pt or vq_ds8_c2i.pt")}
    if image["num_codes"] != model.num_codes:
        raise CheckpointError(
            str(image_file),
            f"has {image['num_codes']:,} codes, but the model generates {model.num_codes:,}",
            "use the image tokenizer that the model was trained with",
        )
    resolution = asked.resolution or model.resolution
    if resolution is None:
        raise CheckpointError(
            "--resolution",
            "is missing, and neither the tensors nor the file name state the picture size",
            "set it: 256 or 384 for the published models",
        )
    image |= {"model": "vq_8" if image["downsampling"] == 8 else "vq_16", **asked.keys(resolution)}
    sections = {"name": asked.name, **_sections(model, image)}
    registry = load_registry()
    recipe = recipe_from_yaml(json.dumps(sections), registry, label=asked.name)
    names = image_file.parent / NAMES
    files = TokenizerFiles(names if names.is_file() else None, image_file)
    write_folder(folder, recipe, registry, model.tensors, files, TASKS)


def _sections(model: LlamaGenFiles, image: dict[str, Any]) -> dict[str, Any]:
    """Return the model's recipe sections; `image`: keys of the image tokenizer besides its name."""
    facts = model.facts
    cells = (image["resolution"] // image["downsampling"]) * (
        image.get("width", image["resolution"]) // image["downsampling"]
    )
    return {
        "text_tokenizer": {"name": "classes", "num_classes": model.num_classes},
        "image_tokenizer": {"name": "llamagen", **image},
        "layout": {"name": "llamagen"},
        "objective": {"name": "causal"},
        "decoder": {
            "name": "llama",
            "context_length": cells + 2,
            "num_layers": facts.num_layers,
            "d_model": facts.d_model,
            "num_heads": facts.num_heads,
            "num_key_heads": facts.num_key_heads,
            "d_ff": facts.d_ff,
            "rope": "2d",
            "rope_theta": facts.rope_theta,
            "norm_eps": facts.norm_eps,
            "qk_norm": "none",
            "tie_embeddings": False,
        },
        "attention": {"name": "by_device"},
        "sampler": {
            "name": "cfg",
            "guidance_scale": 4.0,
            "plausible_top_p": 1.0,
            "top_k": min(2000, model.num_codes),
            "temperature": 1.0,
        },
        # nothing was trained here; used if training continues
        "train": {"steps": 1000, "learning_rate": 1e-5},
        "data": {"max_text_tokens": 1},
        "generate": {"max_text_tokens": 1, "num_images": 1, "retrieve": False},
    }


def _image_file(path: Path) -> Path:
    """Return the image tokenizer's file."""
    if path.is_file():
        return path
    found = [one for one in sorted(path.glob("vq_*")) if one.suffix in SUFFIXES]
    if len(found) != 1:
        raise CheckpointError(
            str(path),
            f"has {len(found)} files vq_*.pt, must have one",
            "pass the image tokenizer's file itself (--tokenizer vq_ds16_c2i.pt)",
        )
    return found[0]
