"""Names of Janus' tensors in DeepSeek's files and transformers', and the decoder's own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cm3published.convert.cm3 import llama_name
from cm3published.convert.janus.facts import JanusFacts

#: transformers' prefixes -> DeepSeek's, of the decoder; the first that fits.
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
    """Where a form of files keeps what.

    Args:
        name: "hf" or "deepseek".
        image_tokenizer: prefix of the image tokenizer's tensors.
        reader: prefixes of the network that reads pictures.
        renames: transformers' prefixes of the decoder's tensors -> its own.
    """

    name: str
    image_tokenizer: str
    reader: tuple[str, ...]
    renames: tuple[tuple[str, str], ...] = ()

    def name_of(self, name: str) -> str:
        """A tensor's name in files of this form, of transformers' name.

        >>> DEEPSEEK.name_of("model.generation_head.vision_head.bias")
        'gen_head.vision_head.bias'
        """
        for theirs, own in self.renames:
            if name.startswith(theirs):
                return own + name.removeprefix(theirs)
        return name


TRANSFORMERS = Form("hf", "model.vqmodel.", ("model.vision_model.", "model.aligner."))
DEEPSEEK = Form("deepseek", "gen_vision_model.", ("vision_model.", "aligner."), _DEEPSEEK)
#: A level of DeepSeek's image tokenizer.
_LEVEL = re.compile(r"gen_vision_model\.encoder\.conv_blocks\.(\d+)\.")


def num_levels(names: Iterable[str]) -> int:
    """Levels of DeepSeek's image tokenizer: the pixels of a code double with each but the first.

    >>> num_levels(f"gen_vision_model.encoder.conv_blocks.{level}.res.0.conv1.bias" for level in range(5))
    5
    """
    return len({match[1] for name in names if (match := _LEVEL.match(name))})


def decoder_tensors(
    facts: JanusFacts, form: Form, *, tied: bool
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A form's names of the decoder's tensors -> its own, with their shapes.

    Args:
        facts: sizes.
        form: of the files.
        tied: whether the table of texts is their head too.
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
