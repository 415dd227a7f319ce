"""A model of published parts from start to end: trained with taming's tokenizer, a tokenizer.json and the
decoder llama; then moved to where their files are not, and drawn with."""

from __future__ import annotations

import collections
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cm3apps.cli.main import main
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture
from cm3published.image_tokenizers.model import PublicVQ
from cm3published.image_tokenizers.names import Sizes


def write_image_tokenizer(path: Path) -> None:
    """A small gumbel_f8 of random weights, as PyTorch Lightning saves it."""
    torch.manual_seed(0)
    arch = VQGANArchitecture(
        resolution=4,
        ch=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(2,),
        z_channels=8,
        embed_dim=8,
        codebook_size=32,
        patch_size=1,
        norm_groups=32,
    )
    state = PublicVQ(Sizes(arch, gumbel=True, network="vqgan"), "gumbel").state_dict()
    torch.save({"epoch": 1, "state_dict": collections.OrderedDict(state)}, path)


def write_text_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<racm3:break>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a red square", "a blue square"] * 4, trainer)
    tokenizer.save(str(path))


def test_trained_moved_and_drawn_with(tmp_path: Path) -> None:
    parts, data = tmp_path / "parts", tmp_path / "data"
    parts.mkdir()
    data.mkdir()
    write_image_tokenizer(parts / "last.ckpt")
    write_text_tokenizer(parts / "tokenizer.json")
    rng = np.random.default_rng(0)
    for number in range(8):
        picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(data / f"{number}.png")
        # a caption that spells a special token is a caption
        (data / f"{number}.txt").write_text(f"a red square {number} <racm3:break></s>")
    run = tmp_path / "run"
    arguments = [
        "tiny",
        "dataset=folder",
        f"dataset.path={data}",
        "image_tokenizer=taming",
        f"image_tokenizer.weights={parts / 'last.ckpt'}",
        "image_tokenizer.num_codes=32",
        "image_tokenizer.downsampling=2",
        "image_tokenizer.resolution=16",
        "text_tokenizer=hf",
        f"text_tokenizer.path={parts / 'tokenizer.json'}",
        "decoder=llama",
        "decoder.num_layers=1",
        "decoder.d_model=32",
        "decoder.num_heads=4",
        "decoder.num_key_heads=2",
        "decoder.context_length=200",
        "train.steps=3",
        "train.warmup_steps=1",
    ]
    assert main(["train", *arguments, "-o", str(run), "--quiet"]) == 0
    shutil.rmtree(parts)
    moved = run.rename(tmp_path / "moved")
    for precision in ("fp32", "int8"):
        out = tmp_path / precision
        options = ["--model", str(moved), "-o", str(out), "--n", "2", "--precision", precision]
        assert main(["generate", "a red </s> square", *options]) == 0
        assert Image.open(out / "000.png").size == (16, 16)
