"""`cm3 convert` of Lumina-mGPT 2.0: a Chameleon of random weights with codes of MoVQGAN behind the ids of texts draws here
as transformers computes; prompts are those of its own code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from cm3apps.cli.main import main
from cm3core.document import Codes, ImageHole, Text
from cm3core.interfaces.sampler import PromptVariant
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3published.convert import lumina2
from cm3published.tasks import LuminaDrawConfig
from cm3run.generation.engine import Request
from cm3run.model import Model, load
from messages import tells
from published_networks import diffusers_model, taming_names

#: Codes behind all other ids; a picture of 32 pixels has 16 codes a side.
NUM_CODES, FIRST_CODE, SIDE = 24, 320, 16
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<racm3:break>", "<eoss>"),
    *("<reserved08706>", "<reserved08799>", "<reserved08801>", "<reserved08802>"),
)
WORDS = "Generate an image of 32x32 according to the following prompt:\na red apple"


class Converted(NamedTuple):
    folder: Path
    model: Model
    theirs: ChameleonForConditionalGeneration
    ids: dict[str, int]


def text_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a red apple"] * 9, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return tokenizer


def write_files(folder: Path) -> ChameleonForConditionalGeneration:
    """`weights` as its publisher's, and `tokenizers`."""
    tokenizer, tokenizers = text_tokenizer(), folder / "tokenizers"
    tokenizers.mkdir(parents=True)
    tokenizer.save(str(tokenizers / "tokenizer.json"))
    names = {"bos_token": None, "eos_token": {"content": "<|endoftext|>"}}
    (tokenizers / "tokenizer_config.json").write_text(json.dumps(names))
    network = diffusers_model(level_attention=False, embed_dim=4, norm_type="spatial")
    torch.save(taming_names(network.state_dict()), tokenizers / "movqgan_270M.ckpt")
    torch.manual_seed(0)
    config = ChameleonConfig(
        vocab_size=FIRST_CODE + NUM_CODES,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        vocabulary_map={"<image>": 1},
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1},
    )
    model = ChameleonForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vqmodel" not in name:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    del model.model.vqmodel  # as its own training does
    model.save_pretrained(folder / "weights")
    return model


def convert(folder: Path, out: Path, *more: str) -> int:
    tokenizers = ["--tokenizer", str(folder / "tokenizers"), "--layout", "lumina2"]
    size = [] if "--resolution" in more else ["--resolution", "32"]
    command = ["convert", str(folder / "weights"), "-o", str(out), "--to", "cm3", *tokenizers]
    return main([*command, *size, *more])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lumina2, "FIRST_CODE", FIRST_CODE)
        folder = tmp_path_factory.mktemp("lumina2")
        theirs = write_files(folder)
        assert convert(folder, folder / "own") == 0
        ids = text_tokenizer().get_vocab()
        yield Converted(folder, load(folder / "own"), theirs, ids)


def opening(both: Converted) -> list[int]:
    """`<racm3:break>`, and both sides in 32 pixels."""
    return [both.ids["<racm3:break>"], *[both.ids["<reserved08801>"]] * 2]


def prompt_of(both: Converted, words: str) -> list[int]:
    text = text_tokenizer().encode(f"{words}<reserved08706>").ids
    return [both.ids["<|endoftext|>"], *text, *opening(both)]


def rows_of(both: Converted, codes: list[int]) -> list[int]:
    """Ids of codes, with the token after each row."""
    found = []
    for place, code in enumerate(codes):
        ends = [both.ids["<reserved08799>"]] if place % SIDE == SIDE - 1 else []
        found += [FIRST_CODE + code, *ends]
    return found


def logits(both: Converted, ids: list[int]) -> Tensor:
    """transformers' logits [T, V], not hidden for image codes as its own output would be."""
    with torch.no_grad():
        states = both.theirs.model(torch.tensor([ids])).last_hidden_state
        row: Tensor = both.theirs.lm_head(states)[0]
    return row


def test_prompts_and_pictures_are_its_own(both: Converted) -> None:
    """The other stream begins with the picture; a training sequence ends with the end of the turn."""
    serializer = both.model.components.serializer
    document = LuminaDrawConfig(width=32, height=32).build().prompt({"caption": "a red apple"})
    assert serializer.prompt(document).tokens.tolist() == prompt_of(both, WORDS)
    null = serializer.prompt(document, variant=PromptVariant(hide_text="all"))
    assert null.tokens.tolist() == opening(both)
    codes = np.random.default_rng(1).integers(0, NUM_CODES, SIDE**2).astype(np.int32)
    sequence = serializer.sequence((Text(WORDS), Codes(codes, (SIDE, SIDE)))).tokens.tolist()
    ends = [both.ids["<eoss>"], both.ids["<reserved08706>"]]
    assert sequence == [*prompt_of(both, WORDS), *rows_of(both, codes.tolist()), *ends]


def test_guided_pictures_are_those_of_the_formula(both: Converted) -> None:
    """At temperature 0 each code is the largest of u + 4 (c - u) of transformers' logits."""
    config = both.model.components.recipe.sampler
    assert isinstance(config, CFGSamplerConfig)
    assert (config.guidance_scale, config.top_k, config.plausible_top_p) == (4.0, 4096, 1.0)
    sampler = both.model.sampler_config("cfg", temperature=0.0).build()
    [done] = both.model.engine.complete([Request((Text(WORDS), ImageHole()), sampler=sampler)])
    drawn = done.document[-1]
    assert isinstance(drawn, Codes)
    rows = rows_of(both, drawn.codes.tolist())
    places = [place for place, one in enumerate(rows) if one >= FIRST_CODE]
    c, u = (
        logits(both, start + rows)[[len(start) + place - 1 for place in places], FIRST_CODE:]
        for start in (prompt_of(both, WORDS), opening(both))
    )
    mixed = u + 4.0 * (c - u)
    chosen = mixed.gather(1, torch.from_numpy(drawn.codes).long()[:, None])[:, 0]
    assert len(set(drawn.codes.tolist())) > 3
    assert (chosen >= mixed.max(1).values - 1e-4).all()


def test_the_commands_run(both: Converted, tmp_path: Path, capsys: Any) -> None:
    own, out = str(both.folder / "own"), tmp_path / "out"
    assert main(["generate", "--model", own, "a red apple", "-o", str(out), "--seed", "1"]) == 0
    assert PILImage.open(out / "000.png").size == (32, 32)
    assert "Chameleon Research" not in (both.folder / "own" / "conversion.json").read_text()


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (
            lambda f: (f / "tokenizers" / "movqgan_270M.ckpt").unlink(),
            [],
            "tokenizers: has no movqgan_*.ckpt",
        ),
        (
            lambda f: (f / "tokenizers" / "tokenizer_config.json").write_text("{}"),
            [],
            "tokenizer_config.json: states neither bos_token nor eos_token",
        ),
        (
            lambda f: None,
            ["--resolution", "64"],
            "--resolution: pictures of 32 x 32 codes take 1,060 tokens, but ... is 512",
        ),
        (lambda f: None, ["--resolution", "40"], "must be a multiple of 16 codes (32 pixels)"),
    ],
)
def test_wrong_files_are_refused(
    both: Converted, tmp_path: Path, capsys: Any, change: Any, more: list[str], message: str
) -> None:
    for name in ("weights", "tokenizers"):
        shutil.copytree(both.folder / name, tmp_path / name)
    change(tmp_path)
    assert convert(tmp_path, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert tells(error, f"... {message} ...")
    assert not (tmp_path / "out").exists()


def test_chameleons_are_not_lumina2(
    both: Converted, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lumina2, "FIRST_CODE", 155_000)
    assert convert(both.folder, tmp_path / "out") == 2
    assert tells(
        capsys.readouterr().err, "... --layout lumina2: has 24 ... but the decoder has 344"
    )
