"""Converts Janus, in DeepSeek's or transformers' format, to a model of this framework that generates pictures.

Both formats hold four networks: a Llama; LlamaGen's image tokenizer, with decoder; embeddings and a head for its codes;
and the network that reads pictures (SigLIP), which is left out, because the framework does not support it.

Sources of keys, names and defaults: transformers' `JanusConfig` and `LlamaConfig` (Apache-2.0); DeepSeek's
`janus/models/modeling_vlm.py` and `projector.py` (deepseek-ai/Janus, MIT), whose configs hold each network's class
(`cls`) and arguments (`params`), and omit defaults of a Llama.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cm3core.errors import CheckpointError, CM3Error
from cm3core.recipe import recipe_from_yaml
from cm3published.convert.cm3 import RESERVE, TokenizerFiles, llama_name, text_file, write_folder
from cm3published.convert.facts import MOST_LAYERS, Sizes, read_json
from cm3published.convert.hugging_face import CONFIG, files_of
from cm3published.convert.model import (
    check_finite,
    check_names,
    check_shape,
    check_type,
    recipe_name,
    write_new_folder,
)
from cm3published.convert.names import Lazy

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3plugins.trained.tensor_files import TensorFile


__all__ = ["LICENCE", "JanusFiles", "is_janus", "open_janus", "write_janus"]


#: Maximum levels of an image tokenizer; the published one has five.
MOST_LEVELS = 9


@dataclass(frozen=True)
class JanusFacts:
    """Sizes of the decoder and its pictures.

    Args:
        decoder: keys of decoder `llama`.
        num_text: rows of the text table.
        num_codes: number of image codes.
        downsampling: pixels per code along one side.
        resolution: side of a picture in pixels.
    """

    decoder: Mapping[str, Any]
    num_text: int
    num_codes: int
    downsampling: int
    resolution: int


def from_transformers(config: Mapping[str, Any], place: str) -> JanusFacts:
    """Return the facts in transformers' `config.json`, which omits defaults.

    Raises:
        CheckpointError: a value is missing, has another type, or belongs to another architecture.
    """
    sizes = Sizes(config, place)
    text, codes, vision = (
        sizes.inside(name) for name in ("text_config", "vq_config", "vision_config")
    )
    _check_known(codes, hidden_act="gelu", num_hidden_layers=2)
    decoder = _decoder(text)
    width, inner = decoder["d_model"], codes.whole("projection_dim", 2048)
    if inner != width or codes.whole("image_token_embed_dim", 2048) != width:
        raise codes.wrong(
            "projection_dim", f"and image_token_embed_dim must be hidden_size, which is {width}"
        )
    levels = codes.values.get("channel_multiplier", (1, 1, 2, 2, 4))
    if not isinstance(levels, (list, tuple)) or not 0 < len(levels) <= MOST_LEVELS:
        raise codes.wrong("channel_multiplier", "is not a list of a few numbers")
    decoder |= {"code_embed_dim": codes.whole("embed_dim", 8), "code_head_dim": inner}
    downsampling = 2 ** (len(levels) - 1)
    patch = vision.whole("patch_size", 16)
    side = vision.whole("image_size", 384) // patch if patch > 0 else 0
    num_codes = codes.whole("num_embeddings", 16_384)
    return _facts(place, decoder, text, num_codes, downsampling, side)


def from_deepseek(config: Mapping[str, Any], place: str, *, levels: int) -> JanusFacts:
    """Return the facts in DeepSeek's `config.json`.

    Args:
        config, place: content and path of the file.
        levels: levels of the image tokenizer, from its tensors, since the file only names its class.

    Raises:
        CheckpointError: see `from_transformers`.
    """
    sizes = Sizes(config, place)
    text = sizes.inside("language_config")
    codes, aligner, head, vision = (
        sizes.inside(name).inside("params")
        for name in (
            "gen_vision_config",
            "gen_aligner_config",
            "gen_head_config",
            "vision_config",
        )
    )
    for name, known in (
        ("gen_vision_config", "VQ-16"),
        ("gen_aligner_config", "MlpProjector"),
        ("gen_head_config", "vision_head"),
    ):
        _check_known(sizes.inside(name), cls=known)
    _check_known(aligner, projector_type="mlp_gelu", depth=2)
    decoder = _decoder(text)
    embed, num_codes = codes.whole("n_embed"), codes.whole("image_token_size")
    for part, name, needed, of in (
        (aligner, "input_dim", embed, "gen_vision_config.params.n_embed"),
        (aligner, "n_embed", decoder["d_model"], "language_config.hidden_size"),
        (head, "n_embed", decoder["d_model"], "language_config.hidden_size"),
        (head, "image_token_size", num_codes, "gen_vision_config.params.image_token_size"),
    ):
        if (found := part.whole(name)) != needed:
            raise part.wrong(name, f"is {found}, but must be {of}, which is {needed}")
    if not 0 < levels <= MOST_LEVELS:
        raise CheckpointError(
            place,
            f"comes with an image tokenizer of {levels} levels (gen_vision_model.encoder.conv_blocks.*)",
            "copy the files again",
        )
    decoder |= {"code_embed_dim": embed, "code_head_dim": head.whole("image_token_embed")}
    downsampling = 2 ** (levels - 1)
    side = vision.whole("image_size", 384) // downsampling
    return _facts(place, decoder, text, num_codes, downsampling, side)


def _decoder(text: Sizes) -> dict[str, Any]:
    """Return keys of decoder `llama` from a Llama's config."""
    _check_known(text, model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False)
    rope, scaling = text.inside("rope_parameters"), text.inside("rope_scaling")
    kind = rope.values.get(
        "rope_type", scaling.values.get("rope_type", scaling.values.get("type", "default"))
    )
    if kind != "default":
        raise text.wrong("rope_type", f"is {kind!r}, but only 'default' is supported")
    heads = text.whole("num_attention_heads", 32)
    decoder: dict[str, Any] = {
        "context_length": text.whole("max_position_embeddings", 2048),
        "num_layers": text.whole("num_hidden_layers", 32),
        "d_model": text.whole("hidden_size", 4096),
        "num_heads": heads,
        "num_key_heads": text.whole("num_key_value_heads", heads),
        "d_ff": text.whole("intermediate_size", 11_008),
        "norm_eps": text.number("rms_norm_eps", 1e-6),
        "rope_theta": rope.number("rope_theta", text.number("rope_theta", 10_000.0)),
    }
    if text.values.get("head_dim") is not None:
        decoder["head_dim"] = text.whole("head_dim")
    return decoder


def _check_known(part: Sizes, **known: object) -> None:
    """Raise `CheckpointError` for a value other than the only supported one, which is the default."""
    for name, value in known.items():
        found = part.values.get(name, value)
        if found != value:
            raise part.wrong(name, f"is {found!r}, but only {value!r} is supported")


def _facts(
    place: str,
    decoder: Mapping[str, Any],
    text: Sizes,
    num_codes: int,
    downsampling: int,
    side: int,
) -> JanusFacts:
    """Return the facts; raises `CheckpointError` if they are impossible."""
    num_text = text.whole("vocab_size", 32_000)
    numbers = [*decoder.values(), side, num_text, num_codes]
    if min(numbers) <= 0 or decoder["num_layers"] > MOST_LAYERS:
        raise CheckpointError(place, f"states impossible sizes: {numbers}", "copy the file again")
    return JanusFacts(decoder, num_text, num_codes, downsampling, side * downsampling)


#: transformers' prefixes of the decoder -> DeepSeek's; the first match is used.
_DEEPSEEK = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.generation_embeddings.", "gen_embed."),
    ("model.generation_aligner.fc1.", "gen_aligner.layers.0."),
    ("model.generation_aligner.hidden_layers.0.", "gen_aligner.layers.2."),
    ("model.generation_head.proj_out.", "gen_head.output_mlp_projector."),
    ("model.generation_head.", "gen_head."),
)


@dataclass(frozen=True)
class Form:
    """Tensor names in a file format.

    Args:
        name: "hf" or "deepseek".
        image_tokenizer: prefix of the image tokenizer's tensors.
        reader: prefixes of the network that reads pictures.
        renames: transformers' prefixes of the decoder's tensors -> this format's.
    """

    name: str
    image_tokenizer: str
    reader: tuple[str, ...]
    renames: tuple[tuple[str, str], ...] = ()

    def name_of(self, name: str) -> str:
        """Return a tensor's name in this format for transformers' name.

        >>> DEEPSEEK.name_of("model.generation_head.vision_head.bias")
        'gen_head.vision_head.bias'
        """
        for theirs, own in self.renames:
            if name.startswith(theirs):
                return own + name.removeprefix(theirs)
        return name


TRANSFORMERS = Form("hf", "model.vqmodel.", ("model.vision_model.", "model.aligner."))
DEEPSEEK = Form("deepseek", "gen_vision_model.", ("vision_model.", "aligner."), _DEEPSEEK)
#: Pattern of a level in DeepSeek's image tokenizer.
_LEVEL = re.compile(r"gen_vision_model\.encoder\.conv_blocks\.(\d+)\.")


def num_levels(names: Iterable[str]) -> int:
    """Return the number of levels of DeepSeek's image tokenizer; each but the first doubles the pixels per code.

    >>> num_levels(f"gen_vision_model.encoder.conv_blocks.{level}.res.0.conv1.bias" for level in range(5))
    5
    """
    return len({match[1] for name in names if (match := _LEVEL.match(name))})


def decoder_tensors(
    facts: JanusFacts, form: Form, *, tied: bool
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return a format's names of the decoder's tensors -> the decoder's own, with their shapes.

    Args:
        facts: sizes.
        form: format of the files.
        tied: whether the text table is also their head.
    """
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
    return {form.name_of(name): part for name, part in found.items()}


LICENCE = (
    "Janus' weights are under the DeepSeek Model License, with restrictions of use that hold for copies "
    "in another form and for models made from it."
)
#: `model_type` in `config.json` -> format.
_FORMS = {"janus": TRANSFORMERS, "multi_modality": DEEPSEEK}
#: DeepSeek's file that defines the prompt format.
PROCESSOR = "processor_config.json"
#: Its keys -> keys of the layout `janus`.
_TAGS = {
    "pad_tag": "padding",
    "image_start_tag": "picture_begin",
    "image_end_tag": "picture_end",
}


@dataclass(frozen=True)
class JanusFiles:
    """An opened Janus.

    Args:
        form: format of the files.
        facts: sizes.
        tensors: tensors of the decoder, by its own names.
        image_tokenizer: tensors of the image tokenizer, by the file's names.
        left_out: number of tensors of the network that reads pictures.
        files: names of the files.
        tags: keys of the layout `janus` stated in the files.
    """

    form: Form
    facts: JanusFacts
    tensors: Mapping[str, Lazy]
    image_tokenizer: Mapping[str, Lazy]
    left_out: int
    files: tuple[str, ...]
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def billions(self) -> float:
        """Number of the decoder's parameters in billions."""
        return sum(torch.Size(lazy.shape).numel() for lazy in self.tensors.values()) / 1e9

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the text table."""
        return self.tensors["embed_tokens.weight"].dtype

    def provenance(self) -> dict[str, Any]:
        """Return the provenance stored with the converted weights."""
        return {
            "converted_by": "cm3 convert",
            "from": self.form.name,
            "files": dict.fromkeys(self.files),
            "left_out": {f"{prefix}*": "reads pictures" for prefix in self.form.reader},
            "licence": LICENCE,
        }


def is_janus(folder: Path) -> bool:
    """Whether a folder holds Janus in one of the formats."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    config = read_json(path)
    form = _FORMS.get(str(config.get("model_type")))
    # DeepSeek's other models that read pictures have this type, too, but don't generate any
    return form is TRANSFORMERS or (form is DEEPSEEK and "gen_vision_config" in config)


def open_janus(folder: Path, stack: ExitStack) -> JanusFiles:
    """Open a folder; files stay open as long as `stack`.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
    """
    config, place = read_json(folder / CONFIG), str(folder / CONFIG)
    form = _FORMS[config["model_type"]]
    owners, names = files_of(folder, stack)
    codes = {name for name in owners if name.startswith(form.image_tokenizer)}
    reader = {name for name in owners if name.startswith(form.reader)}
    if not codes:
        raise CheckpointError(
            str(folder),
            f"holds no image tokenizer ({form.image_tokenizer}*)",
            "copy the files again",
        )
    tied = False
    tags: dict[str, str] = {}
    if form is DEEPSEEK:
        facts = from_deepseek(config, place, levels=num_levels(codes))
        tags = _tags(folder / PROCESSOR)
    else:
        facts = from_transformers(config, place)
        tied = "lm_head.weight" not in owners
    wanted = decoder_tensors(facts, form, tied=tied)
    check_names(str(folder), set(owners) - codes - reader, wanted)
    tensors = {
        ours: _lazy(theirs, owners[theirs], shape) for theirs, (ours, shape) in wanted.items()
    }
    return JanusFiles(
        form,
        replace(facts, decoder={**facts.decoder, "tie_embeddings": tied}),
        tensors,
        {name: _lazy(name, owners[name], None) for name in sorted(codes)},
        len(reader),
        (CONFIG, *names),
        tags,
    )


def _tags(path: Path) -> dict[str, str]:
    """Return names of tokens from DeepSeek's `processor_config.json`; {} without that file.

    Raises:
        CheckpointError: it is damaged, or states another prompt format.
    """
    if not path.is_file():
        return {}
    stated = read_json(path)
    known = {key: stated[key] for key in ("sft_format", *_TAGS) if stated.get(key) is not None}
    for key, value in known.items():
        if not isinstance(value, str) or not value:
            raise CheckpointError(str(path), f"{key} is {value!r}, must be a text", "copy it again")
    form = known.pop("sft_format", "deepseek")
    if form != "deepseek":
        raise CheckpointError(
            str(path),
            f"sft_format is {form!r}, but only 'deepseek' is supported",
            "use a published Janus or Janus-Pro",
        )
    return {_TAGS[key]: value for key, value in known.items()}


def _lazy(name: str, file: TensorFile, shape: tuple[int, ...] | None) -> Lazy:
    """Return a tensor of a file; shape None: any shape."""
    found = file.entries[name]
    if shape is not None:
        check_shape(str(file.path), name, found.shape, shape)
        check_type(str(file.path), name, found.dtype)

    def read() -> Tensor:
        tensor = file.tensor(name)
        check_finite(str(file.path), name, tensor)
        return tensor

    return Lazy(found.shape, found.dtype, read)


def recipe_of(
    facts: JanusFacts,
    registry: Registry,
    *,
    name: str,
    resolution: int,
    layout: Mapping[str, str],
) -> Recipe:
    """Return the recipe of a converted Janus; `layout`: keys of that section besides name and first code."""
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
        "layout": {"name": "janus", "first_code": facts.num_text, **layout},
        "objective": {"name": "causal"},
        "decoder": {"name": "llama", "qk_norm": "none", **facts.decoder},
        "attention": {"name": "by_device"},
        # as in its own example
        "sampler": {
            "name": "cfg",
            "guidance_scale": 5.0,
            "temperature": 1.0,
            "plausible_top_p": 1.0,
        },
        # nothing was trained here; used if training continues
        "train": {"steps": 1000, "learning_rate": 1e-5},
        "data": {"max_text_tokens": room},
        "generate": {"max_text_tokens": min(256, room), "num_images": 1, "retrieve": False},
    }
    return recipe_from_yaml(json.dumps(sections), registry, label=name)


def write_janus(
    model: JanusFiles,
    folder: Path,
    tokenizer: Path,
    *,
    name: str,
    resolution: int | None,
    roles: tuple[str, str] | None,
) -> None:
    """Write a model folder into an empty folder.

    Args:
        model: model to write.
        folder: existing empty folder.
        tokenizer: folder with `tokenizer.json`.
        name: name of the recipe.
        resolution: side of pictures in pixels; None: as in `config.json`.
        roles: names of the two roles; None: those of Janus-Pro.

    Raises:
        CM3Error: a tokenizer is missing or damaged, or belongs to another model.
    """
    from safetensors.torch import save_file

    from cm3core.plugins.discovery import load_registry

    registry, facts = load_registry(), model.facts
    layout = dict(model.tags)
    if roles is not None:
        user, assistant = roles
        layout |= {"request": f"{user}:", "answer": f"\n\n{assistant}:"}
    recipe = recipe_of(
        facts, registry, name=name, resolution=resolution or facts.resolution, layout=layout
    )
    assert recipe.image_tokenizer is not None
    assert recipe.layout is not None
    length = recipe.layout.picture_length(recipe.image_tokenizer.grid)
    if length + 2 * RESERVE > facts.decoder["context_length"]:
        raise CheckpointError(
            "--resolution",
            f"a picture takes {length:,} tokens, but the decoder's context is "
            f"{facts.decoder['context_length']:,}",
            "use a smaller one",
        )
    text = text_file(tokenizer)
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place) / "image_tokenizer.safetensors"
        save_file(
            {part: lazy.read().contiguous() for part, lazy in model.image_tokenizer.items()},
            weights,
        )
        write_folder(folder, recipe, registry, model.tensors, TokenizerFiles(text, weights), None)


def run_janus(args: Namespace) -> int:
    """Convert a Janus to a model of this framework, or check it; return the exit code."""
    _check_options(args)
    with ExitStack() as stack:
        model = open_janus(args.source, stack)
        sizes = model.facts.decoder
        print(
            f"{args.source}: Janus, {model.form.name}, {model.billions:.2f}B decoder parameters, "
            f"{model.dtype}, {sizes['num_layers']} layers of {sizes['d_model']}, "
            f"{sizes['num_heads']} heads, {model.facts.num_codes:,} image codes"
        )
        print(f"left out: {model.left_out} tensors of the network that reads pictures (SigLIP)")
        if args.check:
            for lazy in (*model.tensors.values(), *model.image_tokenizer.values()):
                lazy.read()
            print("every tensor exists with the right size and can be read")
            return 0

        def write(new: Path) -> None:
            write_janus(
                model,
                new,
                args.tokenizer or args.source,
                name=recipe_name(args.out.name),
                resolution=args.resolution,
                roles=args.roles,
            )

        write_new_folder(args.out, args.source, write, model.provenance())
    print(f"{args.out}: cm3")
    print(LICENCE, file=sys.stderr)
    return 0


def _check_options(args: Namespace) -> None:
    """Raise `CM3Error` for an option that does not work with Janus."""
    for option, value in (("--shards", args.shards), ("--layout", args.layout)):
        if value is not None:
            raise CM3Error(option, "only works with Chameleon-based models", "leave it out")
    if args.chat:
        raise CM3Error("--chat", "only works with Emu3", "leave it out")
    if args.width is not None:
        raise CM3Error(
            "--width", "does not work with Janus, whose pictures are square", "leave it out"
        )
    if args.to not in (None, "cm3"):
        raise CM3Error(
            f"--to {args.to}",
            "only works with Chameleon-based models",
            "convert Janus with --to cm3",
        )
