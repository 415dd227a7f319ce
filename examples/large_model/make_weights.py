"""Random weights in the form of Chameleon's, of any size, a file at a time: to measure what a large model
costs where the published weights are not at hand.

    python examples/large_model/make_weights.py -o random-7b                       7 billion: 14 GB
    python examples/large_model/make_weights.py -o random-1b --layers 4            the same layers, fewer
    cm3 convert random-7b/hf -o random-7b/own --to cm3 --tokenizer random-7b/tokenizer

Every tensor is normal with the deviation that keeps sizes through the layers; norms are ones. What such
a model draws is noise; its speed and memory are those of the real one. The image tokenizer has Chameleon's
codes and pixels a code and few channels, so that its pictures cost less than real ones.
"""

from __future__ import annotations

import argparse
import json
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture
from cm3published.image_tokenizers.model import empty
from cm3published.image_tokenizers.names import Sizes
from cm3run.progress import make_bar

NUM_CODES, VOCABULARY = 8192, 65_536
#: Random numbers that are drawn.
BLOCK = 16_777_259
#: Bytes of a file of weights, about.
FILE_BYTES = 1_000_000_000


def text_tokenizer() -> Tokenizer:
    """Bytes, with Chameleon's control tokens in their places."""
    letters = string.ascii_uppercase
    codes = ("".join(letters[int(digit)] for digit in str(code)) for code in range(NUM_CODES))
    special = ["<s>", "<pad>", "</s>", "<unk>", *(f"IMGIMG{code}Z" for code in codes)]
    special += ["<eoss>", "<racm3:break>"]
    reserved = [f"<reserved{number - 4:05d}>" for number in range(len(special), 8900)]
    names = [*special, *reserved, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in (*special, *reserved)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def write_tokenizers(folder: Path) -> Tokenizer:
    """The folder `tokenizer` that Meta publishes, with a small network."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = text_tokenizer()
    tokenizer.save(str(folder / "text_tokenizer.json"))
    arch = VQGANArchitecture(
        resolution=512,
        ch=32,
        ch_mult=(1, 1, 1, 1, 1),
        num_res_blocks=1,
        attn_resolutions=(),
        z_channels=32,
        embed_dim=32,
        codebook_size=NUM_CODES,
        patch_size=1,
        norm_groups=32,
    )
    network = empty(Sizes(arch, gumbel=False, network="vqgan"), "l2")
    state = {name: 0.2 * torch.randn(one.shape) for name, one in network.state_dict().items()}
    torch.save({"state_dict": state}, folder / "vqgan.ckpt")
    return tokenizer


def shapes(args: argparse.Namespace) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, as transformers has them."""
    width, inner, head = args.width, args.d_ff, args.width // args.heads
    yield "model.embed_tokens.weight", (VOCABULARY, width)
    for layer in range(args.layers):
        base = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{base}self_attn.{name}.weight", (width, width)
        for name in ("q_norm", "k_norm"):
            yield f"{base}self_attn.{name}.weight", (args.heads, head)
            yield f"{base}self_attn.{name}.bias", (args.heads, head)
        yield f"{base}mlp.gate_proj.weight", (inner, width)
        yield f"{base}mlp.up_proj.weight", (inner, width)
        yield f"{base}mlp.down_proj.weight", (width, inner)
        yield f"{base}input_layernorm.weight", (width,)
        yield f"{base}post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (VOCABULARY, width)


class RandomTensors:
    """Tensors cut from one block of random numbers, of a prime length, so that no two rows are equal:
    drawing billions would take longer than writing them."""

    def __init__(self) -> None:
        self.numbers = torch.empty(BLOCK, dtype=torch.bfloat16).normal_()
        self.place = 0

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Of a tensor with this name, bfloat16."""
        if "norm" in name:
            return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
        size = torch.Size(shape).numel()
        repeats = -(-(self.place + size) // BLOCK)
        flat = self.numbers.repeat(repeats)[self.place : self.place + size]
        self.place = (self.place + size) % BLOCK
        std = 1.0 if "embed" in name else 2.0 * shape[1] ** -0.5
        return (flat * std).view(shape)


def write_hugging_face(folder: Path, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """transformers' form: `config.json`, files of about a gigabyte, their index."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {
        "<image>" if name == "<reserved08707>" else name: number
        for name, number in tokenizer.get_vocab().items()
    }
    config = {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "vocab_size": VOCABULARY,
        "hidden_size": args.width,
        "intermediate_size": args.d_ff,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "swin_norm": False,
        "model_parallel_size": 1,
        "torch_dtype": "bfloat16",
        "vocabulary_map": vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    all_shapes, random = list(shapes(args)), RandomTensors()
    index: dict[str, str] = {}
    part: dict[str, Tensor] = {}
    total, number = 0, 0
    bar = make_bar(desc="weights", total=len(all_shapes), unit="tensor", file=sys.stderr)
    for place, (name, shape) in enumerate(all_shapes):
        part[name] = random(name, shape)
        bar.update(1)
        size = sum(2 * tensor.numel() for tensor in part.values())
        if size >= FILE_BYTES or place + 1 == len(all_shapes):
            number, total = number + 1, total + size
            file = f"model-{number:05}.safetensors"
            save_file(part, folder / file, {"format": "pt"})
            index |= dict.fromkeys(part, file)
            part = {}
    bar.close()
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Write a model; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--d-ff", type=int, default=11_008)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    tokenizer = write_tokenizers(args.out / "tokenizer")
    write_hugging_face(args.out / "hf", tokenizer, args)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
