"""`cm3 convert` of Emu3.5: BAAI's files of random weights generate here as transformers' Qwen3 does, which has the same
mathematics; prompts are those of BAAI's example configs."""

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

from cached_steps import assert_same_steps
from cm3apps.cli.main import main
from cm3core.document import Codes, ImageHole, Text
from cm3core.interfaces.sampler import PromptVariant
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3published.tasks import Emu35DrawConfig
from cm3run.generation.engine import Request
from messages import tells
from tiny_emu3_5 import GRID, NUM_CODES, SIZE, Converted, converted

SYSTEM = "You are a helpful assistant"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return converted(tmp_path_factory.mktemp("emu3_5"))


def encoded(both: Converted, text: str) -> list[int]:
    ids: list[int] = both.model.components.text_tokenizer.encode(text)
    return ids


def opening(both: Converted) -> list[int]:
    own = both.ids
    return [own.image + 1, *encoded(both, f"{GRID[0]}*{GRID[1]}"), own.image]


def prompt_of(both: Converted, words: str) -> list[int]:
    """`<bos>words ASSISTANT: <bss><boi>H*W<image>`, the words before `<bss>` encoded at once."""
    own = both.ids
    text = encoded(both, f"{words} ASSISTANT: ")
    return [own.extra(203), *text, own.extra(100), *opening(both)]


def rows_of(both: Converted, codes: list[int]) -> list[int]:
    """Ids of codes, with the end of a row between two rows."""
    own, found = both.ids, []
    for place, code in enumerate(codes):
        found += [own.extra(200)] if place and place % GRID[1] == 0 else []
        found.append(own.code + code)
    return found


def logits(both: Converted, ids: list[int]) -> Tensor:
    """transformers' logits [V] after the ids."""
    with torch.no_grad():
        row: Tensor = both.theirs(torch.tensor([ids])).logits[0, -1]
    return row


def picture(seed: int) -> Codes:
    codes = np.random.default_rng(seed).integers(0, NUM_CODES, GRID[0] * GRID[1])
    return Codes(codes.astype(np.int32), GRID)


def test_prompts_are_those_of_the_examples(both: Converted) -> None:
    serializer = both.model.components.serializer
    words = f"{SYSTEM} for t2i task. USER: a red apple"
    document = (Text(words), ImageHole())
    assert serializer.prompt(document).tokens.tolist() == prompt_of(both, words)
    config = both.model.components.recipe.sampler
    assert isinstance(config, CFGSamplerConfig)
    null = PromptVariant(hide_text="all", replace_text=config.negative_prompt)
    expected = prompt_of(both, f"{SYSTEM}. USER: ")
    assert serializer.prompt(document, variant=null).tokens.tolist() == expected


def test_an_edit_reads_its_picture_before_the_instruction(both: Converted) -> None:
    """The last row has no end; the answer's ids follow the instruction alone."""
    own, serializer = both.ids, both.model.components.serializer
    source = picture(1)
    system = f"{SYSTEM} for x2i task. USER: "
    prompt = serializer.prompt((Text(system), source, Text("make it blue"), ImageHole())).tokens
    shown = [*opening(both), *rows_of(both, source.codes.tolist()), own.image + 2]
    asked = encoded(both, "make it blue ASSISTANT: ")
    expected = [own.extra(203), *encoded(both, system), *shown, *asked, own.extra(100)]
    assert prompt.tolist() == [*expected, *opening(both)]


def test_training_ends_with_the_answer(both: Converted) -> None:
    own, drawn = both.ids, picture(2)
    sequence = both.model.components.serializer.sequence((Text("an apple"), drawn)).tokens
    frame = [*rows_of(both, drawn.codes.tolist()), own.image + 2, own.extra(101), own.extra(204)]
    assert sequence.tolist() == [*prompt_of(both, "an apple"), *frame]


def test_logits_are_transformers_at_each_step(both: Converted) -> None:
    """With the cache, token by token, through a picture with its ends of rows and what closes it."""
    decoder, own = both.model.components.decoder.for_inference("fp32"), both.ids
    prompt = prompt_of(both, "a red apple")
    fed = [*prompt, *rows_of(both, picture(3).codes.tolist()), own.image + 2, own.extra(101)]
    with torch.no_grad():
        expected = both.theirs(torch.tensor([fed])).logits[0]
    assert_same_steps(decoder, fed, len(prompt), expected)


def test_guided_pictures_are_those_of_the_formula(both: Converted) -> None:
    """At temperature 0 each code is the largest of u + 5 (c - u) of transformers' logits, as for `cm3 generate`."""
    model = both.model
    config = model.components.recipe.sampler
    assert isinstance(config, CFGSamplerConfig)
    assert (config.guidance_scale, config.top_k, config.plausible_top_p) == (5.0, 5120, 1.0)
    asked = Emu35DrawConfig().build().prompt({"caption": "a red apple"})
    sampler = model.sampler_config("cfg", temperature=0.0).build()
    [done] = model.engine.complete([Request(asked, sampler=sampler)])
    drawn = done.document[-1]
    assert isinstance(drawn, Codes)
    codes = drawn.codes.tolist()
    for place, code in enumerate(codes):
        seen = rows_of(both, codes[: place + 1])[:-1]
        c, u = (
            logits(both, prompt_of(both, words) + seen)[both.ids.code :]
            for words in (f"{SYSTEM} for t2i task. USER: a red apple", f"{SYSTEM}. USER: ")
        )
        mixed = u + 5.0 * (c - u)
        assert mixed[code] >= mixed.max() - 1e-4


def test_the_commands_run(both: Converted, tmp_path: Path, capsys: Any) -> None:
    out, own = tmp_path / "pictures", str(both.folder / "own")
    assert main(["generate", "--model", own, "a red apple", "-o", str(out), "--seed", "1"]) == 0
    assert PILImage.open(out / "000.png").size == (12, 8)
    edit = ["edit", "--model", own, str(out / "000.png"), "make it blue"]
    assert main([*edit, "-o", str(tmp_path / "edited")]) == 0
    assert PILImage.open(tmp_path / "edited" / "000.png").size == (12, 8)
    assert main(["convert", str(both.folder / "baai"), "--check"]) == 0
    assert "emu3.5, " in capsys.readouterr().out


def _drop(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (
            lambda f: _drop(f, "model.layers.1.self_attn.k_norm.weight"),
            [],
            "tensors missing: model.layers.1.self_attn.k_norm.weight",
        ),
        (lambda f: _edit_config(f, head_dim=10), [], "but the config implies [40, 32]"),
        (lambda f: _edit_config(f, head_dim=11), [], "states impossible sizes: "),
        (
            lambda f: (f / "emu3.tiktoken").write_bytes(
                (f / "emu3.tiktoken").read_bytes() + b"cXF4 270\n"
            ),
            [],
            "has 24 codes, whose ids start at 482, but the decoder has 505 ids",
        ),
        (
            lambda f: (f / "tokenizer.json").write_text('{"added_tokens": []}'),
            [],
            "tokenizer.json: does not list <|endoftext|>, ... in BAAI's order",
        ),
        (
            lambda f: None,
            ["--tokenizer", "baai"],
            "has no model.ckpt or model.safetensors of Emu3.5-VisionTokenizer",
        ),
        (lambda f: None, ["--chat"], "--chat: only works with Emu3"),
        (
            lambda f: None,
            ["--resolution", "64", "--width", "64"],
            "--resolution: pictures of 32 x 32 ... take 1,063 ... is 512",
        ),
    ],
)
def test_wrong_files_are_refused(
    both: Converted, tmp_path: Path, capsys: Any, change: Any, more: list[str], message: str
) -> None:
    source, out = tmp_path / "baai", tmp_path / "out"
    shutil.copytree(both.folder / "baai", source)
    change(source)
    vision = ["--tokenizer", str(both.folder / "vision")]
    given = [str(source) if one == "baai" else one for one in more]
    size = [] if "--resolution" in more else SIZE
    command = ["convert", str(source), "-o", str(out), *vision, *size, *given]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert tells(error, f"... {message}")
    assert "  next: " in error
    assert not out.exists()
