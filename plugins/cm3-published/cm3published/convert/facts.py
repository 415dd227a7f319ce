"""Sizes of a Chameleon, from Meta's `params.json` or Hugging Face's `config.json`. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3core.errors import CheckpointError

#: Ids of Meta's published tokenizer. transformers' defaults (1 and 2) are wrong.
BOS, PAD, EOS = 0, 1, 2
#: Context length of Chameleon's training, which neither format states.
CONTEXT_LENGTH = 4096
#: Far above the largest model.
MOST_LAYERS = 10_000
#: Size limit in bytes of a config or tokenizer file; Chameleon's largest has 9 MB.
MOST_JSON = 1 << 28


@dataclass(frozen=True)
class Facts:
    """Sizes and options of the decoder.

    `num_key_heads` is the number of key and value heads, `d_ff` the width of the feed-forward layer;
    `has_norms`: whether queries and keys are normalised, `rms_norms`: by one RMSNorm for all heads (Emu3.5);
    `stated_head_dim`: dimension of a head, None: `d_model` / `num_heads`.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    d_ff: int
    norm_eps: float
    rope_theta: float
    swin_norm: bool
    context_length: int = CONTEXT_LENGTH
    has_norms: bool = True
    rms_norms: bool = False
    stated_head_dim: int | None = None

    @property
    def head_dim(self) -> int:
        """Dimension of a head."""
        if self.stated_head_dim is not None:
            return self.stated_head_dim
        return self.d_model // self.num_heads

    def check(self, place: str) -> None:
        """Raise `CheckpointError` if the numbers are impossible."""
        numbers = (self.vocab_size, self.d_model, self.num_layers, self.num_heads, self.d_ff)
        fits = min(*numbers, self.num_key_heads) > 0 and self.norm_eps > 0 and self.rope_theta > 0
        # each layer becomes a dozen table entries before any tensor is read
        fits = fits and self.num_layers <= MOST_LAYERS
        own = self.stated_head_dim
        fits = fits and (self.d_model % self.num_heads == 0 if own is None else 0 < own < 2**16)
        fits = fits and self.head_dim % 2 == 0
        if not fits or self.num_heads % self.num_key_heads:
            raise CheckpointError(place, f"states impossible sizes: {self}", "copy the file again")


def ffn_width(dim: int, multiple_of: int, multiplier: float) -> int:
    """Return the width of Meta's feed-forward layer.

    >>> ffn_width(4096, 256, 1.0), ffn_width(8192, 256, 1.0)
    (11008, 22016)
    """
    width = int(multiplier * int(2 * 4 * dim / 3))
    return multiple_of * -(-width // multiple_of)


def from_params(params: Mapping[str, Any], place: str, *, vocab_size: int) -> Facts:
    """Return the facts in Meta's merged parameters; the number of ids comes from the tensors."""
    sizes = Sizes(params, place)
    dim, heads = sizes.whole("dim"), sizes.whole("n_heads")
    multiple, multiplier = sizes.whole("multiple_of", 256), sizes.number("ffn_dim_multiplier", 1.0)
    if not sizes.flag("qk_normalization", True):
        raise sizes.wrong("qk_normalization", "is false, but Chameleon uses it")
    if multiple < 1:
        raise sizes.wrong("multiple_of", f"is {multiple}, must be at least 1")
    facts = Facts(
        vocab_size=vocab_size,
        d_model=dim,
        num_layers=sizes.whole("n_layers"),
        num_heads=heads,
        num_key_heads=sizes.whole("n_kv_heads", heads) or heads,
        d_ff=ffn_width(dim, multiple, multiplier),
        norm_eps=sizes.number("norm_eps", 1e-5),
        rope_theta=sizes.number("rope_theta", 10_000.0),
        swin_norm=sizes.flag("swin_norm", False),
    )
    facts.check(place)
    return facts


def to_params(facts: Facts) -> dict[str, Any]:
    """Return Meta's parameters, from which `from_params` returns the same facts."""
    multiple, multiplier = 256, 1.0
    if ffn_width(facts.d_model, multiple, multiplier) != facts.d_ff:
        # adds half, since it is rounded down later
        multiple, multiplier = 1, (facts.d_ff + 0.5) / int(2 * 4 * facts.d_model / 3)
    return {
        "dim": facts.d_model,
        "n_layers": facts.num_layers,
        "n_heads": facts.num_heads,
        "n_kv_heads": facts.num_key_heads,
        "multiple_of": multiple,
        "ffn_dim_multiplier": multiplier,
        "norm_eps": facts.norm_eps,
        "rope_theta": facts.rope_theta,
        "qk_normalization": True,
        "swin_norm": facts.swin_norm,
        "vocab_size": facts.vocab_size,
    }


def from_config(config: Mapping[str, Any], place: str) -> Facts:
    """Return the facts in a `config.json`; the place of `rope_theta` depends on the version of transformers."""
    sizes = Sizes(config, place)
    if config.get("model_type") != "chameleon":
        raise sizes.wrong("model_type", f"is {config.get('model_type')!r}, not 'chameleon'")
    rope, scaling = sizes.inside("rope_parameters"), sizes.inside("rope_scaling")
    kind = rope.values.get(
        "rope_type", scaling.values.get("rope_type", scaling.values.get("type", "default"))
    )
    if kind != "default":
        raise sizes.wrong("rope_type", f"is {kind!r}, but Meta's files support only one type")
    heads = sizes.whole("num_attention_heads")
    facts = Facts(
        vocab_size=sizes.whole("vocab_size"),
        d_model=sizes.whole("hidden_size"),
        num_layers=sizes.whole("num_hidden_layers"),
        num_heads=heads,
        num_key_heads=sizes.whole("num_key_value_heads", heads) or heads,
        d_ff=sizes.whole("intermediate_size"),
        norm_eps=sizes.number("rms_norm_eps", 1e-5),
        rope_theta=rope.number("rope_theta", sizes.number("rope_theta", 10_000.0)),
        swin_norm=sizes.flag("swin_norm", False),
        context_length=sizes.whole("max_position_embeddings", CONTEXT_LENGTH),
    )
    facts.check(place)
    return facts


def from_emu3(config: Mapping[str, Any], place: str, *, rms_norms: bool = False) -> Facts:
    """Return the facts in Emu3's `config.json`: BAAI's, or transformers', which stores them in `text_config`;
    `rms_norms`: it is Emu3.5's, which states the dimension of a head."""
    sizes = Sizes(config, place)
    sizes = sizes.inside("text_config") if "text_config" in config else sizes
    rope = sizes.inside("rope_parameters")
    kind = rope.values.get("rope_type", "default")
    if kind != "default" or sizes.values.get("rope_scaling") is not None:
        raise sizes.wrong("rope_type", f"is {_short(kind)} or scaled, but Emu3's is neither")
    for name in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        if sizes.flag(name, False):
            raise sizes.wrong(name, "is true, but Emu3 has none")
    heads = sizes.whole("num_attention_heads", 32)
    width = sizes.whole("hidden_size", 4096)
    own = sizes.whole("head_dim", 128) if rms_norms else None
    facts = Facts(
        vocab_size=sizes.whole("vocab_size", 184_622),
        d_model=width,
        num_layers=sizes.whole("num_hidden_layers", 32),
        num_heads=heads,
        num_key_heads=sizes.whole("num_key_value_heads", 8),
        d_ff=sizes.whole("intermediate_size", 14_336),
        norm_eps=sizes.number("rms_norm_eps", 1e-5),
        rope_theta=rope.number("rope_theta", sizes.number("rope_theta", 1e6)),
        swin_norm=False,
        context_length=sizes.whole("max_position_embeddings", 9216),
        has_norms=False,
        rms_norms=rms_norms,
        stated_head_dim=own,
    )
    facts.check(place)
    return facts


def to_config(facts: Facts, dtype: str) -> dict[str, Any]:
    """Return a `config.json` for transformers 4 and 5."""
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.d_model,
        "intermediate_size": facts.d_ff,
        "num_hidden_layers": facts.num_layers,
        "num_attention_heads": facts.num_heads,
        "num_key_value_heads": facts.num_key_heads,
        "hidden_act": "silu",
        "max_position_embeddings": facts.context_length,
        "rms_norm_eps": facts.norm_eps,
        "rope_theta": facts.rope_theta,
        "rope_parameters": {"rope_theta": facts.rope_theta, "rope_type": "default"},
        "swin_norm": facts.swin_norm,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "torch_dtype": dtype,
    }


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; raises `CheckpointError` if there is none."""
    return json_object(text_of(path), path)


def text_of(path: Path) -> str:
    """Read a text file; raises `CheckpointError` if it can't be read."""
    try:
        if path.stat().st_size > MOST_JSON:
            raise CheckpointError(
                str(path), "is far too large for this kind of file", "copy it again"
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(str(path), "there is no such file", "copy it again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(str(path), f"is not JSON ({error})", "copy it again") from error


def json_object(text: str, path: Path) -> dict[str, Any]:
    """Parse the object in a file's text; raises `CheckpointError` if it is not an object."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"is not JSON ({error})", "copy it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(str(path), "is not a JSON object", "copy it again")
    return values


class Sizes:
    """The values in a config file, by name; an invalid value raises an error with its name. null counts as missing."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values, self.place = values, place

    def wrong(self, name: str, cause: str) -> CheckpointError:
        return CheckpointError(self.place, f"{name} {cause}", "copy the file again")

    def whole(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, f"is {_short(value)}, must be a whole number")
        return value

    def number(self, name: str, default: float) -> float:
        value = self._value(name, default)
        # no size is near 1e30; products of larger ones overflow
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
            raise self.wrong(name, f"is {_short(value)}, must be a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, f"is {_short(value)}, must be true or false")
        return value

    def inside(self, name: str) -> Sizes:
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, f"is {_short(value)}, must be an object")
        return Sizes(value, self.place)

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(self.place, f"lacks {name!r}", "copy the file again")
        return value


def _short(value: Any) -> str:
    """Format an invalid value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
