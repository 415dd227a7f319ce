"""`cm3 convert` of Emu3: transformers' and BAAI's files of random weights generate here as in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from torch import Tensor

import cm3core
from cached_steps import assert_same_steps
from cm3apps.cli.main import main
from cm3core.document import Codes, ImageHole, Text
from cm3core.interfaces.sampler import PromptVariant
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3run.generation.engine import Request
from messages import tells
from tiny_emu3 import (
    GRID,
    NUM_CODES,
    SIZE,
    Converted,
    converted,
    with_other_names,
    write_baai,
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return converted(tmp_path_factory.mktemp("emu3"))


def logits(both: Converted, ids: list[int]) -> Tensor:
    """transformers' logits [V] behind the ids."""
    with torch.no_grad():
        row: Tensor = both.theirs(torch.tensor([ids])).logits[0, -1]
    return row


def prompt_of(both: Converted, text: str) -> list[int]:
    """By transformers' `Emu3Processor`: `<bos>`, the text, and the size as text in its frame."""
    own = both.ids
    encoded = [both.tokenizer.encode(part).ids for part in (text, f"{GRID[0]}*{GRID[1]}")]
    return [own.bos, *encoded[0], own.boi, *encoded[1], own.image]


def rows_of(both: Converted, codes: list[int]) -> list[int]:
    """Ids of codes with the ends of rows behind whole ones."""
    own, found = both.ids, []
    for place, code in enumerate(codes):
        found.append(own.code + code)
        found += [own.eol] if place % GRID[1] == GRID[1] - 1 else []
    return found


def test_prompts_are_the_processors(both: Converted) -> None:
    serializer = both.model.components.serializer
    document = (Text("a red apple"), ImageHole())
    assert serializer.prompt(document).tokens.tolist() == prompt_of(both, "a red apple")
    null = PromptVariant(hide_text="all", replace_text="bad")
    assert serializer.prompt(document, variant=null).tokens.tolist() == prompt_of(both, "bad")


def test_logits_are_transformers_at_each_step(both: Converted) -> None:
    """With the cache, token by token, through a picture with its ends of rows and what closes it."""
    decoder = both.model.components.decoder.for_inference("fp32")
    codes = np.random.default_rng(1).integers(0, NUM_CODES, GRID[0] * GRID[1]).tolist()
    prompt = prompt_of(both, "a red apple")
    fed = [*prompt, *rows_of(both, codes), both.ids.eof, both.ids.eoi, both.ids.eos]
    with torch.no_grad():
        expected = both.theirs(torch.tensor([fed])).logits[0]
    assert_same_steps(decoder, fed, len(prompt), expected)


def test_guided_pictures_are_those_of_the_formula(both: Converted) -> None:
    """At temperature 0 each code is the largest of u + 3 (c - u) of transformers' logits, where u reads
    the negative prompt."""
    config = both.model.components.recipe.sampler
    assert isinstance(config, CFGSamplerConfig)
    assert (config.guidance_scale, config.top_k, config.plausible_top_p) == (3.0, 2048, 1.0)
    negative = config.negative_prompt
    assert negative is not None
    sampler = both.model.sampler_config("cfg", temperature=0.0, negative_prompt="bad hands").build()
    document = (Text("a red apple"), ImageHole())
    [done] = both.model.engine.complete([Request(document, sampler=sampler)])
    drawn = done.document[-1]
    assert isinstance(drawn, Codes)
    codes = drawn.codes.tolist()
    for place, code in enumerate(codes):
        seen = rows_of(both, codes[:place])
        c, u = (
            logits(both, prompt_of(both, text) + seen)[both.ids.code :][:NUM_CODES]
            for text in ("a red apple", "bad hands")
        )
        mixed = u + 3.0 * (c - u)
        assert mixed[code] >= mixed.max() - 1e-4


def test_pictures_are_transformers(both: Converted) -> None:
    """Codes become its pixels."""
    codes = np.random.default_rng(2).integers(0, NUM_CODES, (1, GRID[0] * GRID[1]))
    own = both.model.components.image_tokenizer.decode(codes.astype(np.int32))[0]
    grid = torch.from_numpy(codes).view(1, *GRID)
    with torch.no_grad():
        pixels = both.theirs.model.vqmodel.decode(grid).reshape(-1, 3, 8, 12)[0]
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(own - expected).max() <= 1


def test_all_forms_make_one_model(both: Converted, tmp_path: Path, capsys: Any) -> None:
    """BAAI's two folders and both names of transformers give the same weights and ids."""
    baai, vision = tmp_path / "Emu3-Gen", tmp_path / "Emu3-VisionTokenizer"
    write_baai(both.theirs, baai, vision)
    with_other_names(both.folder / "hf", tmp_path / "other")
    names = [
        (folder / "model.safetensors.index.json").read_text()
        for folder in (both.folder / "hf", tmp_path / "other")
    ]
    assert '"text_model.model.layers.0.self_attn.q_proj.weight"' in names[0]
    assert '"model.text_model.layers.0.self_attn.q_proj.weight"' in names[1]
    made = {}
    for source, more in ((baai, ["--tokenizer", str(vision)]), (tmp_path / "other", [])):
        out = tmp_path / f"{source.name}-own"
        assert main(["convert", str(source), "-o", str(out), *SIZE, *more]) == 0
        made[source.name] = out
    assert "Apache-2.0" in capsys.readouterr().err
    own = load_file(both.folder / "own" / "model.safetensors")
    state = json.loads((both.folder / "own" / "state.json").read_text())
    for out in made.values():
        tensors = load_file(out / "model.safetensors")
        assert tensors.keys() == own.keys()
        assert all(torch.equal(tensors[name], own[name]) for name in own)
        assert json.loads((out / "state.json").read_text())["vocabulary"] == state["vocabulary"]
        assert not (out / "image-tokenizer.safetensors").exists()
    baais = cm3core.load(made["Emu3-Gen"]).components.serializer
    document = (Text("a red apple"), ImageHole())
    assert baais.prompt(document).tokens.tolist() == prompt_of(both, "a red apple")


def test_the_commands_run(both: Converted, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "pictures"
    own = str(both.folder / "own")
    assert main(["generate", "--model", own, "a red apple", "-o", str(out), "--seed", "1"]) == 0
    assert PILImage.open(out / "000.png").size == (12, 8)
    assert main(["convert", str(both.folder / "hf"), "--check"]) == 0
    assert "emu3, " in capsys.readouterr().out


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["text_config"] |= changes
    path.write_text(json.dumps(values))


def _drop(folder: Path, name: str) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    file = folder / index["weight_map"].pop(name)
    save_file(
        {key: t for key, t in load_file(file).items() if key != name} or {"x": torch.ones(1)}, file
    )
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (
            lambda f: _edit_config(f, attention_bias=True),
            [],
            "attention_bias is true, but Emu3 has",
        ),
        (lambda f: _edit_config(f, intermediate_size=49), [], "but the config implies [49, 32]"),
        (lambda f: _drop(f, "text_model.lm_head.weight"), [], "tensors missing: lm_head.weight"),
        (
            lambda f: (f / "tokenizer.json").unlink(),
            [],
            "hf: has no tokenizer.json and no .tiktoken file",
        ),
        (
            lambda f: (f / "tokenizer.json").write_text(
                (f / "tokenizer.json").read_text().replace("token 000023", "token 000099")
            ),
            [],
            "name 25 image ... has 24",
        ),
        (lambda f: None, ["--to", "hf"], "--to hf: only works with Chameleon, but"),
        (lambda f: None, ["--layout", "lumina"], "--layout: only works with Chameleon"),
        (lambda f: None, ["--roles", "User", "Assistant"], "--roles: only works with Janus"),
        (
            lambda f: None,
            ["--resolution", "64", "--width", "64"],
            "--resolution: pictures of 32 x 32 ... take 1,065 ... is 320",
        ),
    ],
)
def test_wrong_files_are_refused(
    both: Converted, tmp_path: Path, capsys: Any, change: Any, more: list[str], message: str
) -> None:
    source, out = tmp_path / "hf", tmp_path / "out"
    shutil.copytree(both.folder / "hf", source)
    change(source)
    assert main(["convert", str(source), "-o", str(out), *(more or SIZE)]) == 2
    error = capsys.readouterr().err
    assert tells(error, f"... {message}")
    assert "  next: " in error
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
