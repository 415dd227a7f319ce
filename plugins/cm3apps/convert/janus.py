"""Janus in Hugging Face's form -> a model of this framework that draws pictures.

transformers' `JanusForConditionalGeneration` holds four networks: a Llama, the image tokenizer of
LlamaGen with decoder, embeddings and a head of its codes, and the network by which pictures are read
(SigLIP), which is left out: there is none here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cm3apps.convert.cm3 import RESERVE, llama_name, text_file
from cm3apps.convert.facts import Sizes, read_json
from cm3apps.convert.hugging_face import CONFIG, files_of
from cm3apps.convert.model import check_finite, check_names, check_shape, check_type
from cm3apps.convert.names import Lazy
from cm3core.errors import CheckpointError
from cm3core.recipe import recipe_from_yaml

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3plugins.trained.tensor_files import TensorFile

LICENCE = (
    "Janus' weights are under the DeepSeek Model License, with restrictions of use that hold for copies "
    "in another form and for models made from it."
)
#: Prefixes of the networks besides the Llama.
IMAGE_TOKENIZER, READER = "model.vqmodel.", ("model.vision_model.", "model.aligner.")
#: Far more than the largest model has.
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class JanusFacts:
    """Sizes of the decoder and its pictures, as `config.json` states them.

    Args:
        decoder: keys of decoder `llama`.
        num_text: rows of the table of texts.
        num_codes: image codes.
        downsampling: pixels a code, along one side.
        side: codes of a picture, along one side.
    """

    decoder: Mapping[str, Any]
    num_text: int
    num_codes: int
    downsampling: int
    side: int


@dataclass(frozen=True)
class JanusFiles:
    """What was opened.

    Args:
        facts: sizes.
        tensors: of the decoder, under its own names.
        image_tokenizer: tensors of the image tokenizer, under the file's names.
        left_out: number of tensors of the network that reads pictures.
        files: names of the files.
    """

    facts: JanusFacts
    tensors: Mapping[str, Lazy]
    image_tokenizer: Mapping[str, Lazy]
    left_out: int
    files: tuple[str, ...]

    def provenance(self) -> dict[str, Any]:
        """What is stored beside the converted weights."""
        return {
            "converted_by": "cm3 convert",
            "from": "hf",
            "files": dict.fromkeys(self.files),
            "left_out": {f"{prefix}*": "reads pictures" for prefix in READER},
            "licence": LICENCE,
        }


def is_janus(folder: Path) -> bool:
    """Whether a folder holds Janus in Hugging Face's form."""
    path = folder / CONFIG
    return path.is_file() and read_json(path).get("model_type") == "janus"


def facts_of(config: Mapping[str, Any], place: str) -> JanusFacts:
    """The facts of a `config.json`, which leaves out what is transformers' default.

    Raises:
        CheckpointError: a value is missing, of another type, or of another form of model.
    """
    sizes = Sizes(config, place)
    text, codes, vision = (
        sizes.inside(name) for name in ("text_config", "vq_config", "vision_config")
    )
    for part, name, known in (
        (text, "model_type", "llama"),
        (text, "hidden_act", "silu"),
        (text, "attention_bias", False),
        (text, "mlp_bias", False),
        (codes, "hidden_act", "gelu"),
        (codes, "num_hidden_layers", 2),
    ):
        found = part.values.get(name, known)
        if found != known:
            raise part.wrong(name, f"is {found!r}, and only {known!r} is known here")
    rope = text.inside("rope_parameters")
    scaling = text.inside("rope_scaling")
    kind = rope.values.get("rope_type", scaling.values.get("rope_type", "default"))
    if kind != "default":
        raise text.wrong("rope_type", f"is {kind!r}, and only 'default' is known here")
    width, heads = text.whole("hidden_size", 4096), text.whole("num_attention_heads", 32)
    inner = codes.whole("projection_dim", 2048)
    if inner != width or codes.whole("image_token_embed_dim", 2048) != width:
        raise codes.wrong(
            "projection_dim", f"and image_token_embed_dim must be hidden_size, which is {width}"
        )
    levels = codes.values.get("channel_multiplier", (1, 1, 2, 2, 4))
    if not isinstance(levels, (list, tuple)) or not 0 < len(levels) < 10:
        raise codes.wrong("channel_multiplier", "is no list of a few numbers")
    decoder: dict[str, Any] = {
        "context_length": text.whole("max_position_embeddings", 2048),
        "num_layers": text.whole("num_hidden_layers", 32),
        "d_model": width,
        "num_heads": heads,
        "num_key_heads": text.whole("num_key_value_heads", heads),
        "d_ff": text.whole("intermediate_size", 11_008),
        "norm_eps": text.number("rms_norm_eps", 1e-6),
        "rope_theta": rope.number("rope_theta", text.number("rope_theta", 10_000.0)),
        "code_embed_dim": codes.whole("embed_dim", 8),
        "code_head_dim": inner,
    }
    if text.values.get("head_dim") is not None:
        decoder["head_dim"] = text.whole("head_dim")
    numbers = [
        *(value for value in decoder.values() if value is not None),
        patch := vision.whole("patch_size", 16),
        text.whole("vocab_size", 32_000),
        codes.whole("num_embeddings", 16_384),
    ]
    if min(numbers) <= 0 or decoder["num_layers"] > MOST_LAYERS:
        raise CheckpointError(place, f"states impossible sizes: {numbers}", "copy the file again")
    return JanusFacts(
        decoder,
        text.whole("vocab_size", 32_000),
        codes.whole("num_embeddings", 16_384),
        2 ** (len(levels) - 1),
        vision.whole("image_size", 384) // patch,
    )


def decoder_tensors(facts: JanusFacts, *, tied: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """transformers' names of the decoder's tensors -> its own, with their shapes."""
    sizes = facts.decoder
    E, F, V, C = sizes["d_model"], sizes["d_ff"], facts.num_text, facts.num_codes
    P, W = sizes["code_embed_dim"], sizes["code_head_dim"]
    D = sizes.get("head_dim") or E // sizes["num_heads"]
    Q, K = sizes["num_heads"] * D, sizes["num_key_heads"] * D
    llama = {"embed_tokens.weight": (V, E), "norm.weight": (E,)}
    for layer in range(sizes["num_layers"]):
        llama |= {
            f"layers.{layer}.{name}.weight": shape
            for name, shape in (
                ("self_attn.q_proj", (Q, E)),
                ("self_attn.k_proj", (K, E)),
                ("self_attn.v_proj", (K, E)),
                ("self_attn.o_proj", (E, Q)),
                ("mlp.gate_proj", (F, E)),
                ("mlp.up_proj", (F, E)),
                ("mlp.down_proj", (E, F)),
                ("input_layernorm", (E,)),
                ("post_attention_layernorm", (E,)),
            )
        }
    found = {
        f"model.language_model.{name}": (llama_name(f"model.{name}"), shape)
        for name, shape in llama.items()
    }
    if not tied:
        found["lm_head.weight"] = ("embed_output.weight", (V, E))
    found["model.generation_embeddings.weight"] = ("codes_in.embed.weight", (C, P))
    for theirs, ours, rows, columns in (
        ("aligner.fc1", "codes_in.fc1", E, P),
        ("aligner.hidden_layers.0", "codes_in.fc2", E, E),
        ("head.proj_out", "codes_out.fc1", W, E),
        ("head.vision_head", "codes_out.fc2", C, W),
    ):
        found[f"model.generation_{theirs}.weight"] = (f"{ours}.weight", (rows, columns))
        found[f"model.generation_{theirs}.bias"] = (f"{ours}.bias", (rows,))
    return found


def open_janus(folder: Path, stack: ExitStack) -> JanusFiles:
    """Open a folder; files stay open as long as `stack`.

    Raises:
        CheckpointError: a file is missing, damaged or of another model.
    """
    facts = facts_of(read_json(folder / CONFIG), str(folder / CONFIG))
    owners, names = files_of(folder, stack)
    codes = {name for name in owners if name.startswith(IMAGE_TOKENIZER)}
    reader = {name for name in owners if name.startswith(READER)}
    tied = "lm_head.weight" not in owners
    wanted = decoder_tensors(facts, tied=tied)
    check_names(str(folder), set(owners) - codes - reader, wanted)
    if not codes:
        raise CheckpointError(
            str(folder), "holds no image tokenizer (model.vqmodel.*)", "copy the files again"
        )
    tensors = {
        ours: _lazy(theirs, owners[theirs], shape) for theirs, (ours, shape) in wanted.items()
    }
    decoder = {**facts.decoder, "tie_embeddings": tied}
    return JanusFiles(
        replace(facts, decoder=decoder),
        tensors,
        {name: _lazy(name, owners[name], None) for name in sorted(codes)},
        len(reader),
        (CONFIG, *names),
    )


def _lazy(name: str, file: TensorFile, shape: tuple[int, ...] | None) -> Lazy:
    """A tensor of a file; shape None: whatever it has."""
    found = file.entries[name]
    if shape is not None:
        check_shape(str(file.path), name, found.shape, shape)
        check_type(str(file.path), name, found.dtype)

    def read() -> Tensor:
        tensor = file.tensor(name)
        check_finite(str(file.path), name, tensor)
        return tensor

    return Lazy(found.shape, found.dtype, read)


def recipe_of(facts: JanusFacts, registry: Registry, *, name: str, resolution: int) -> Recipe:
    """The recipe of a converted Janus."""
    grid = resolution // facts.downsampling
    room = max(1, facts.decoder["context_length"] - grid * grid - 2 - 2 * RESERVE)
    sections: dict[str, Any] = {
        "name": name,
        "text_tokenizer": {"name": "hf"},
        "image_tokenizer": {
            "name": "llamagen",
            "num_codes": facts.num_codes,
            "downsampling": facts.downsampling,
            "resolution": resolution,
        },
        "layout": {"name": "janus", "first_code": facts.num_text},
        "objective": {"name": "causal"},
        "decoder": {"name": "llama", "qk_norm": "none", **facts.decoder},
        "attention": {"name": "by_device"},
        # as its own example draws
        "sampler": {
            "name": "cfg",
            "guidance_scale": 5.0,
            "temperature": 1.0,
            "plausible_top_p": 1.0,
        },
        # nothing was trained here; for whoever trains on
        "train": {"steps": 1000, "learning_rate": 1e-5},
        "data": {"max_text_tokens": room},
        "generate": {"max_text_tokens": min(256, room), "num_images": 1, "retrieve": False},
    }
    return recipe_from_yaml(json.dumps(sections), registry, label=name)


def write_janus(
    model: JanusFiles, folder: Path, tokenizer: Path, *, name: str, resolution: int | None
) -> None:
    """Write a model folder into an empty folder.

    Args:
        model: what to write.
        folder: is there.
        tokenizer: folder with `tokenizer.json`.
        name: of the recipe.
        resolution: of pictures, in pixels; None: the one that `config.json` states.

    Raises:
        CM3Error: a tokenizer is missing, damaged, or of another model.
    """
    from safetensors.torch import save_file

    from cm3core.build import image_tokenizer_of
    from cm3core.checkpoint.state import CheckpointState
    from cm3core.checkpoint.writing import write_model
    from cm3core.plugins.discovery import load_registry
    from cm3core.sequence.of_recipe import layout_of

    registry, facts = load_registry(), model.facts
    recipe = recipe_of(
        facts, registry, name=name, resolution=resolution or facts.side * facts.downsampling
    )
    assert recipe.text_tokenizer is not None
    assert recipe.image_tokenizer is not None
    assert recipe.layout is not None
    length = recipe.layout.picture_length(recipe.image_tokenizer.grid)
    if length + 2 * RESERVE > facts.decoder["context_length"]:
        raise CheckpointError(
            "--resolution",
            f"a picture takes {length:,} tokens, and the decoder reads "
            f"{facts.decoder['context_length']:,}",
            "give a smaller one",
        )
    recipe.check()
    files: dict[str, Any] = {"path": str(text_file(tokenizer))}
    text_tokenizer = replace(recipe.text_tokenizer, **files).build(None)
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place) / "image_tokenizer.safetensors"
        save_file(
            {part: lazy.read().contiguous() for part, lazy in model.image_tokenizer.items()},
            weights,
        )
        files = {"weights": str(weights)}
        image_tokenizer = image_tokenizer_of(
            replace(recipe.image_tokenizer, **files), None, registry
        )
    own = layout_of(recipe, text_tokenizer, image_tokenizer, registry)
    state = CheckpointState(
        step=0,
        vocabulary=own.vocabulary.to_dict(),
        fingerprints={
            "text_tokenizer": text_tokenizer.fingerprint,
            "image_tokenizer": image_tokenizer.fingerprint,
            "vocabulary": own.vocabulary.fingerprint,
            "layout": own.fingerprint,
        },
        max_spans=0,
    )
    write_model(folder, model.tensors, state, recipe, registry, text_tokenizer, image_tokenizer)


def size_of(model: JanusFiles) -> tuple[float, torch.dtype]:
    """Billions of the decoder's parameters, and the type of its table."""
    number = sum(torch.Size(lazy.shape).numel() for lazy in model.tensors.values())
    return number / 1e9, model.tensors["embed_tokens.weight"].dtype
