"""Janus' sizes, as `config.json` states them in each form. No torch.

Sources of keys and defaults: transformers' `JanusConfig` and `LlamaConfig` (Apache-2.0); DeepSeek's
`janus/models/modeling_vlm.py` and `projector.py` (deepseek-ai/Janus, MIT), whose configs hold each
network's class (`cls`) and arguments (`params`), and a Llama's without its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cm3core.errors import CheckpointError
from cm3published.convert.facts import MOST_LAYERS, Sizes

#: Levels of an image tokenizer; the published one has five.
MOST_LEVELS = 9


@dataclass(frozen=True)
class JanusFacts:
    """Sizes of the decoder and its pictures.

    Args:
        decoder: keys of decoder `llama`.
        num_text: rows of the table of texts.
        num_codes: image codes.
        downsampling: pixels a code, along one side.
        resolution: pixels of a picture, along one side.
    """

    decoder: Mapping[str, Any]
    num_text: int
    num_codes: int
    downsampling: int
    resolution: int


def from_transformers(config: Mapping[str, Any], place: str) -> JanusFacts:
    """The facts of transformers' `config.json`, which leaves out what is a default there.

    Raises:
        CheckpointError: a value is missing, of another type, or of another form of model.
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
        raise codes.wrong("channel_multiplier", "is no list of a few numbers")
    decoder |= {"code_embed_dim": codes.whole("embed_dim", 8), "code_head_dim": inner}
    downsampling = 2 ** (len(levels) - 1)
    patch = vision.whole("patch_size", 16)
    side = vision.whole("image_size", 384) // patch if patch > 0 else 0
    num_codes = codes.whole("num_embeddings", 16_384)
    return _facts(place, decoder, text, num_codes, downsampling, side)


def from_deepseek(config: Mapping[str, Any], place: str, *, levels: int) -> JanusFacts:
    """The facts of DeepSeek's `config.json`.

    Args:
        config, place: of the file.
        levels: of the image tokenizer, as its tensors tell: the file only names its class.

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
            raise part.wrong(name, f"is {found}, and must be {of}, which is {needed}")
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
    """Keys of decoder `llama`, of a Llama's config."""
    _check_known(text, model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False)
    rope, scaling = text.inside("rope_parameters"), text.inside("rope_scaling")
    kind = rope.values.get(
        "rope_type", scaling.values.get("rope_type", scaling.values.get("type", "default"))
    )
    if kind != "default":
        raise text.wrong("rope_type", f"is {kind!r}, and only 'default' is known here")
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
    """Raise `CheckpointError` for a value other than the only one that is known; absent ones are it."""
    for name, value in known.items():
        found = part.values.get(name, value)
        if found != value:
            raise part.wrong(name, f"is {found!r}, and only {value!r} is known here")


def _facts(
    place: str,
    decoder: Mapping[str, Any],
    text: Sizes,
    num_codes: int,
    downsampling: int,
    side: int,
) -> JanusFacts:
    """The facts; raises `CheckpointError` if they can't be those of a model."""
    num_text = text.whole("vocab_size", 32_000)
    numbers = [*decoder.values(), side, num_text, num_codes]
    if min(numbers) <= 0 or decoder["num_layers"] > MOST_LAYERS:
        raise CheckpointError(place, f"states impossible sizes: {numbers}", "copy the file again")
    return JanusFacts(decoder, num_text, num_codes, downsampling, side * downsampling)
