"""A model with the decoder `cm3leon` as an OPT in Hugging Face's format, and back.

CM3leon's code, metaseq, is OPT's: without biases and without weights of norms (`enable_bias`, `layer_norm_elementwise_affine`)
the two decoders compute the same. OPT's table of positions begins with two rows that are never read
(`OPTLearnedPositionalEmbedding`). Keys, names and defaults: transformers' `OPTConfig` and `OPTForCausalLM` (Apache-2.0).

An OPT has no recipe and no image tokenizer: these are in the folder `cm3` of an export.
"""

from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cm3core.errors import CheckpointError, CM3Error
from cm3core.plugins.discovery import load_registry
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.trained.tensor_files import open_tensors
from cm3published.convert.cm3 import is_cm3, whole_model
from cm3published.convert.facts import read_json
from cm3published.convert.hugging_face import (
    CONFIG,
    MOST_BYTES,
    files_of,
    write_json,
    write_weights,
)
from cm3published.convert.model import (
    check_finite,
    check_names,
    check_shape,
    check_type,
    write_new_folder,
)
from cm3published.convert.names import Lazy
from cm3published.convert.opt_text import readme, tokenizer_files
from cm3run.build import Components, Stored, build
from cm3run.checkpoint.exporting import copy_parts
from cm3run.checkpoint.layout import (
    IMAGE_TOKENIZER,
    RECIPE,
    STATE,
    TOKENIZER,
    WEIGHTS,
    CheckpointState,
    check_file,
    file_hashes,
    find_checkpoint,
    read_state,
)
from cm3run.checkpoint.opening import check_fingerprints, read_recipe
from cm3run.checkpoint.tensors import write_tensors
from cm3run.trust import own_of, record_own

if TYPE_CHECKING:
    from cm3core.interfaces import Layout
    from cm3core.recipe import Recipe
    from cm3plugins.trained.tensor_files import TensorFile

#: Folder of an export with everything of the model that an OPT does not have.
PARTS = "cm3"
#: Rows of OPT's table of positions before that of position 0.
OFFSET = 2
#: Name of the table of positions here.
POSITIONS = "embed_positions.weight"
#: Options of `cm3leon` that OPT lacks -> what they compute.
LACKS = {
    "grid_positions": "adds embeddings of rows and columns",
    "code_axes": "adds embeddings of the image tokenizer's axes",
    "token_shift": "mixes the inputs of keys with those of the token before",
    "qk_norm": "normalises queries and keys",
}
#: OPT's options that `cm3leon` has only in one form -> that value, and transformers' default.
ONLY = {
    "enable_bias": (False, True),
    "layer_norm_elementwise_affine": (False, True),
    "do_layer_norm_before": (True, True),
    "_remove_final_layer_norm": (False, False),
}
#: OPT's sizes -> transformers' defaults, which its files leave out.
SIZES = {
    "vocab_size": 50_272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "activation_function": "relu",
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, eq=False)
class OPTModel:
    """An opened model.

    Args:
        form: "cm3" or "opt": the format of the weights.
        folder: with everything but the weights, in this framework's format.
        components: its components; the decoder has no weights.
        tensors: the decoder's, by the names of the format to write.
        files: names of the weights files.
    """

    form: str
    folder: Path
    components: Components
    tensors: Mapping[str, Lazy]
    files: tuple[str, ...]

    @property
    def decoder(self) -> CM3LeonConfig:
        """Config of the decoder."""
        decoder = self.components.recipe.decoder
        assert isinstance(decoder, CM3LeonConfig)
        return decoder

    @property
    def dtype(self) -> str:
        """Name of the dtype of the token embedding."""
        first = next(lazy for name, lazy in self.tensors.items() if "embed_tokens" in name)
        return str(first.dtype).removeprefix("torch.")


def opt_name(name: str) -> str:
    """Return OPT's name of a tensor of `cm3leon`.

    >>> opt_name("layers.3.q_proj.weight"), opt_name("embed_output.weight")
    ('model.decoder.layers.3.self_attn.q_proj.weight', 'lm_head.weight')
    """
    if name == "embed_output.weight":
        return "lm_head.weight"
    return "model.decoder." + re.sub(
        r"^(layers\.\d+)\.(\w_proj|out_proj)\.", r"\1.self_attn.\2.", name
    )


def opt_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return OPT's shape of a tensor of `cm3leon`.

    >>> opt_shape("embed_positions.weight", (4096, 64))
    (4098, 64)
    """
    return (shape[0] + OFFSET, *shape[1:]) if name == POSITIONS else shape


def to_config(decoder: CM3LeonConfig, layout: Layout, dtype: str) -> dict[str, Any]:
    """Return the `config.json` of an OPT that computes the same as a decoder.

    Args:
        decoder: its config, see `check_decoder`.
        layout: the model's, for ids.
        dtype: name of the weights' dtype.
    """
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": layout.vocabulary.size,
        "hidden_size": decoder.d_model,
        "word_embed_proj_dim": decoder.d_model,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "ffn_dim": decoder.d_ff or 4 * decoder.d_model,
        "max_position_embeddings": decoder.context_length,
        "activation_function": decoder.activation,
        "tie_word_embeddings": decoder.tie_embeddings,
        **{key: needed for key, (needed, _) in ONLY.items()},
        "dropout": decoder.dropout,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        "init_std": decoder.init_std,
        "bos_token_id": layout.begin[0],
        "eos_token_id": layout.end[0],
        "pad_token_id": layout.vocabulary.pad,
        "torch_dtype": dtype,
    }


def check_decoder(recipe: Recipe, place: str) -> CM3LeonConfig:
    """Return a recipe's decoder; raises `CheckpointError` if it computes something that OPT can't."""
    decoder = recipe.decoder
    if type(decoder) is not CM3LeonConfig:
        raise CheckpointError(
            place,
            f"the decoder is {recipe.component_names.get('decoder')}, but only cm3leon has OPT's architecture",
            "serve it with cm3 serve; a Chameleon's weights can be written with --to hf",
        )
    for key, does in LACKS.items():
        if getattr(decoder, key):
            raise CheckpointError(
                place,
                f"decoder.{key} {does}, which OPT can't",
                f"serve it with cm3 serve, or train a model without it (decoder.{key}="
                f"{'{}' if key == 'code_axes' else 'false'})",
            )
    return decoder


def check_config(config: Mapping[str, Any], expected: Mapping[str, Any], place: str) -> None:
    """Raise `CheckpointError` if an OPT is not what `to_config` describes.

    Args:
        config: its `config.json`.
        expected: that of the model whose decoder it is to be.
        place: for errors.
    """
    _check_expressible(config, place)
    for key, default in SIZES.items():
        if config.get(key, default) != expected[key]:
            raise CheckpointError(
                place,
                f"{key} is {config.get(key, default)!r}, but the model's is {expected[key]!r}",
                "pass the model that it was made from (--tokenizer MODEL)",
            )


def _check_expressible(config: Mapping[str, Any], place: str) -> None:
    found = {key: config.get(key, default) for key, (_, default) in ONLY.items()}
    wrong = [
        f"{key} is {json.dumps(value)}" for key, value in found.items() if value is not ONLY[key][0]
    ]
    width = config.get("hidden_size", SIZES["hidden_size"])
    if config.get("word_embed_proj_dim") not in (None, width):
        wrong.append(f"word_embed_proj_dim is {config['word_embed_proj_dim']!r}, not hidden_size")
    if wrong:
        raise CheckpointError(
            place,
            f"{'; '.join(wrong)}: the decoder cm3leon has no biases, no weights of norms and no projected "
            "embeddings, and normalises before each branch and at the end",
            "use an OPT that cm3 convert --to opt made, possibly tuned since",
        )


def is_opt(folder: Path) -> bool:
    """Whether a folder holds an OPT."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        return read_json(folder / CONFIG).get("model_type") == "opt"
    except CheckpointError:
        return False  # opening it as another model reports the error


def open_own(source: Path, stack: ExitStack) -> OPTModel:
    """Open a model of this framework to be written as an OPT; its file stays open as long as `stack`.

    Raises:
        CM3Error: its decoder can't be an OPT, or a file is missing or damaged.
    """
    if not is_cm3(source) and not (source / STATE).is_file():
        raise CheckpointError(
            str(source),
            "is not a model of this framework, but only these can be converted to OPT",
            "use a model, or the folder of a run",
        )
    folder = whole_model(source)
    components, state = _open_parts(folder)
    check_file(folder, WEIGHTS, state)
    file = stack.enter_context(open_tensors(folder / WEIGHTS))
    shapes = _shapes(components)
    check_names(str(file.path), file.entries, shapes)
    tensors = {
        opt_name(name): _lazy(file, name, shape, opt_shape(name, shape), _with_rows(name))
        for name, shape in shapes.items()
    }
    return OPTModel("cm3", folder, components, tensors, (WEIGHTS,))


def open_opt(source: Path, parts: Path | None, stack: ExitStack) -> OPTModel:
    """Open an OPT to be written as a model of this framework; its files stay open as long as `stack`.

    Args:
        source: its folder.
        parts: the model it was made from, or an export of it, with everything but the weights. None: in the folder
            `cm3` of the source.
        stack: closes the files.

    Raises:
        CM3Error: it is not the OPT of such a model, or a file is missing or damaged.
    """
    place, config = source / CONFIG, read_json(source / CONFIG)
    _check_expressible(config, str(place))
    folder = _parts_of(source, parts)
    components, _ = _open_parts(folder)
    layout, decoder = components.serializer.layout, components.recipe.decoder
    assert isinstance(decoder, CM3LeonConfig)
    check_config(config, to_config(decoder, layout, ""), str(place))
    owners, files = files_of(source, stack)
    # OPTModel's own files lack the first part of the names
    names = {re.sub(r"^decoder\.", "model.decoder.", name): name for name in owners}
    shapes = _shapes(components)
    if decoder.tie_embeddings and (head := names.pop("lm_head.weight", None)) is not None:
        table = names.get(opt_name("embed_tokens.weight"), head)
        if not torch.equal(owners[head].tensor(head), owners[table].tensor(table)):
            raise CheckpointError(
                str(source),
                "has a head (lm_head.weight) that differs from the embeddings, but the model has one table for both",
                "keep tie_word_embeddings when you tune it",
            )
    check_names(str(source), names, [opt_name(name) for name in shapes])
    tensors = {}
    for name, shape in shapes.items():
        stored = names[opt_name(name)]
        tensors[name] = _lazy(
            owners[stored], stored, opt_shape(name, shape), shape, _without_rows(name)
        )
    return OPTModel("opt", folder, components, tensors, tuple(files))


def _parts_of(source: Path, parts: Path | None) -> Path:
    """Return the folder with everything but the weights of the model that an OPT was made from; see `open_opt`."""
    for one in [source / PARTS] if parts is None else [parts, parts / PARTS]:
        if is_cm3(one):
            return find_checkpoint(one)
    if parts is not None:
        return find_checkpoint(parts)  # raises the error
    raise CheckpointError(
        str(source),
        f"has no folder {PARTS} with a recipe and tokenizers, which an OPT's own files don't have",
        "pass the model that it was made from (--tokenizer MODEL)",
    )


def _open_parts(folder: Path) -> tuple[Components, CheckpointState]:
    """Build the components of a model, with a decoder without weights."""
    registry, state = load_registry(), read_state(folder)
    recipe = read_recipe(folder, registry)
    check_decoder(recipe, str(folder / RECIPE))
    stored = Stored(
        text_tokenizer=folder / TOKENIZER,
        image_tokenizer=folder / IMAGE_TOKENIZER,
        max_spans=state.max_spans,
    )
    meta = torch.device("meta")
    components = build(recipe, registry, stage="generate", stored=stored, decoder_device=meta)
    check_fingerprints(folder, state, components)
    layout = components.serializer.layout
    if not layout.has_sentinels:
        raise CheckpointError(
            str(folder / RECIPE),
            f"the layout {layout.name} has no sentinels, but only sequences of cm3leon's layout can be described",
            "train a model with the layout cm3leon, or serve it with cm3 serve",
        )
    return components, state


def _shapes(components: Components) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the decoder; tied ones once."""
    parameters = components.decoder.module.named_parameters()
    return {name: tuple(parameter.shape) for name, parameter in parameters}


def _with_rows(name: str) -> Callable[[Tensor], Tensor]:
    """Return the function that adds the unread rows of positions, as zeros."""

    def add(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(OFFSET, tensor.shape[1]), tensor])

    return add if name == POSITIONS else _unchanged


def _without_rows(name: str) -> Callable[[Tensor], Tensor]:
    """Return the inverse of `_with_rows`."""
    return (lambda tensor: tensor[OFFSET:]) if name == POSITIONS else _unchanged


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _lazy(
    file: TensorFile,
    name: str,
    shape: tuple[int, ...],
    becomes: tuple[int, ...],
    change: Callable[[Tensor], Tensor],
) -> Lazy:
    """Return a tensor of a file with this shape, changed to another when it is read."""
    found = file.entries[name]
    check_shape(str(file.path), name, found.shape, shape)
    check_type(str(file.path), name, found.dtype)

    def read() -> Tensor:
        tensor = file.tensor(name)
        check_finite(str(file.path), name, tensor)
        return change(tensor)

    return Lazy(becomes, found.dtype, read)


def write_opt(model: OPTModel, folder: Path, name: str, most_bytes: int = MOST_BYTES) -> None:
    """Write an OPT with its tokenizer, its README and the rest of the model into an empty folder.

    Args:
        model: from `open_own`.
        folder: existing empty folder.
        name: of the model, for the README.
        most_bytes: maximum bytes of a weights file.
    """
    layout = model.components.serializer.layout
    config = to_config(model.decoder, layout, model.dtype)
    write_weights(model.tensors, folder, most_bytes)
    write_json(folder / CONFIG, config)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    write_json(folder / "generation_config.json", {key: config[key] for key in ids})
    for file, values in tokenizer_files(model.components).items():
        write_json(folder / file, values)
    card = model.folder / "CARD.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    (folder / "README.md").write_text(readme(model.components, name, text), encoding="utf-8")
    for picture in model.folder.glob("CARD-*.png"):
        shutil.copyfile(picture, folder / picture.name)
    (folder / PARTS).mkdir()
    copy_parts(model.folder, folder / PARTS)
    shutil.copyfile(model.folder / STATE, folder / PARTS / STATE)


def write_own(model: OPTModel, folder: Path) -> None:
    """Write the model of an OPT from `open_opt` into an empty folder."""
    write_tensors(folder / WEIGHTS, model.tensors)
    copy_parts(model.folder, folder)
    state = read_state(model.folder)
    files = file_hashes(folder, [WEIGHTS])
    write_json(folder / STATE, {**asdict(state), "loader": {}, "files": files})


def run_opt(args: Namespace) -> int:
    """Convert to OPT, from OPT, or check an OPT; return the exit code."""
    own = not is_opt(args.source)
    _check_options(args, own=own)
    with ExitStack() as stack:
        model = (
            open_own(args.source, stack) if own else open_opt(args.source, args.tokenizer, stack)
        )
        numbers = sum(torch.Size(lazy.shape).numel() for lazy in model.tensors.values())
        sizes = model.decoder
        print(
            f"{args.source}: {model.form}, {numbers / 1e9:.3f}B parameters, {model.dtype}, "
            f"{sizes.num_layers} layers of {sizes.d_model}, {sizes.num_heads} heads"
        )
        if args.check:
            for lazy in model.tensors.values():
                lazy.read()
            print("every tensor exists with the right size and can be read")
            return 0

        def write(new: Path) -> None:
            if own:
                write_opt(model, new, args.out.name)
            else:
                write_own(model, new)

        made_from = {"converted_by": "cm3 convert", "from": model.form, "files": list(model.files)}
        write_new_folder(args.out, args.source, write, made_from)
        record_own(args.out / PARTS if own else args.out, own_of(model.folder))
    print(f"{args.out}: {'opt' if own else 'cm3'}")
    return 0


def _check_options(args: Namespace, *, own: bool) -> None:
    """Raise `CM3Error` for an option of another model."""
    options = ("shards", "layout", "resolution", "width", "roles", "chat")
    for option in (*options, "tokenizer") if own else options:
        if getattr(args, option) not in (None, False):
            raise CM3Error(
                f"--{option}",
                "doesn't work with --to opt" if own else "doesn't work with an OPT",
                "leave it out",
            )
    if not own and args.to not in (None, "cm3"):
        raise CM3Error(f"--to {args.to}", "doesn't work with an OPT", "convert it with --to cm3")
