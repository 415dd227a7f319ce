"""`cm3 convert --to cm3`: a Chameleon of random weights generates here as in transformers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, ChameleonProcessor

import cm3core
from cm3apps.cli.main import main
from cm3core.document import Codes, Document, ImageHole, MaskedText, Text, TextHole
from cm3core.interfaces.sampler import PromptVariant
from cm3run.generation.engine import Request
from cm3run.model import Model
from messages import tells
from tiny_chameleon import (
    BREAK,
    EOSS,
    GRID,
    IMAGE_ID,
    NUM_CODES,
    TURN_END,
    processor,
    write_hugging_face,
    write_tokenizers,
)


class Converted(NamedTuple):
    """A model in both forms."""

    folder: Path
    model: Model
    theirs: ChameleonForConditionalGeneration
    processor: ChameleonProcessor


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("chameleon")
    tokenizer = write_tokenizers(folder / "tokenizer")
    theirs = write_hugging_face(folder / "hf", tokenizer)
    arguments = ["--to", "cm3", "--tokenizer", str(folder / "tokenizer"), "--resolution", "8"]
    assert main(["convert", str(folder / "hf"), "-o", str(folder / "own"), *arguments]) == 0
    model = cm3core.load(folder / "own")
    return Converted(folder, model, theirs, processor(tokenizer))


def codes(seed: int = 0) -> Codes:
    numbers = np.random.default_rng(seed).integers(0, NUM_CODES, GRID[0] * GRID[1])
    return Codes(numbers.astype(np.int32), GRID)


def ids_of(both: Converted, text: str, *pictures: Codes, **options: Any) -> list[int]:
    """Ids of transformers' processor; in place of its `<image>`s, those of the pictures' codes."""
    ids: list[int] = both.processor(text=text, return_tensors=None, **options)["input_ids"]
    ids = ids[0] if isinstance(ids[0], list) else ids
    own = iter([4 + code for picture in pictures for code in picture.codes.tolist()])
    return [next(own) if one == IMAGE_ID else one for one in ids]


def logits(both: Converted, ids: list[int]) -> Tensor:
    """transformers' logits [V] behind the ids, image codes not masked."""
    with torch.no_grad():
        hidden = both.theirs.model(torch.tensor([ids])).last_hidden_state
        row: Tensor = both.theirs.lm_head(hidden)[0, -1]
    return row


IMAGES = "<racm3:break>" + "<image>" * GRID[0] * GRID[1] + "<eoss>"


@pytest.mark.parametrize(
    ("document", "text", "behind"),
    [
        ((Text("a red apple"), ImageHole()), "a red apple", [BREAK]),
        ((codes(), TextHole(4)), "<image>", []),
        ((codes(), Text("what is it?"), TextHole(4)), "<image>what is it?", []),
        ((Text("see"), codes(), Text(" now blue"), ImageHole()), "see<image> now blue", [BREAK]),
        ((Text("hi"), TextHole(4)), "hi", []),
    ],
)
def test_prompts_are_the_processors(
    both: Converted, document: Document, text: str, behind: list[int]
) -> None:
    pictures = [one for one in document if isinstance(one, Codes)]
    prompt = both.model.components.serializer.prompt(document)
    pixels = [PILImage.new("RGB", (8, 8)) for _ in pictures]
    options = {"images": pixels} if pixels else {}
    assert prompt.tokens.tolist() == [*ids_of(both, text, *pictures, **options), *behind]


def test_completion_has_no_turn_end(both: Converted) -> None:
    document = (MaskedText(("a red", TextHole(4))),)
    prompt = both.model.components.serializer.prompt(document)
    expected = ids_of(both, "a red", return_for_text_completion=True)
    assert prompt.tokens.tolist() == expected


def test_guidance_streams_are_chameleons(both: Converted) -> None:
    """Everything; pictures alone; nothing: each followed by what begins the picture."""
    document = (codes(), Text("now blue"), ImageHole())
    prompts = [
        both.model.components.serializer.prompt(document, variant=stream.variant).tokens.tolist()
        for stream in both.model.components.sampler.plan("image").streams
    ]
    picture = [BREAK, *(4 + codes().codes).tolist(), EOSS]
    assert prompts[1:] == [[0, *picture, BREAK], [0, BREAK]]
    assert prompts[0][: len(picture) + 1] == [0, *picture]
    assert prompts[0][-2:] == [TURN_END, BREAK]


def test_logits_are_transformers_at_each_step(both: Converted) -> None:
    """With the cache, token by token, for a picture and a text."""
    parts = both.model.components
    decoder = parts.decoder.for_inference("fp32")
    prompt = parts.serializer.prompt((Text("a red apple"), ImageHole())).tokens.tolist()
    fed = [*prompt, *(4 + codes(1).codes).tolist(), EOSS, TURN_END]
    cache = decoder.allocate_cache(1, len(fed))
    place = 0
    for stop in range(len(prompt), len(fed) + 1):
        chunk = torch.tensor([fed[place:stop]])
        with torch.no_grad():
            hidden = decoder.hidden_states(chunk, cache=cache)
            own = decoder.logits(hidden[0, -1:])[0].float()
        cache.advance([stop - place])
        place = stop
        expected = logits(both, fed[:stop])
        assert (own - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("with_picture", [False, True])
def test_guided_pictures_are_those_of_the_formula(both: Converted, with_picture: bool) -> None:
    """At temperature 0, each code is the largest of u + 1.2 (i - u) + 3 (f - i), of transformers' logits."""
    before = (codes(2),) if with_picture else ()
    document: Document = (*before, Text("a red apple"), ImageHole())
    sampler = both.model.sampler_config("chameleon", temperature=0.0).build()
    [done] = both.model.engine.complete([Request(document, sampler=sampler)])
    drawn = done.document[-1]
    assert isinstance(drawn, Codes)
    serializer = both.model.components.serializer
    hidden = [
        PromptVariant(),
        PromptVariant(hide_text="all"),
        PromptVariant(hide_text="all", hide_images=True),
    ]
    streams = [serializer.prompt(document, variant=one).tokens.tolist() for one in hidden]
    for code in drawn.codes.tolist():
        f, i, u = (logits(both, ids)[4 : 4 + NUM_CODES] for ids in streams)
        mixed = u + 1.2 * (i - u) + 3.0 * (f - i)
        assert mixed[code] >= mixed.max() - 1e-4
        streams = [[*ids, 4 + code] for ids in streams]


def test_answers_are_greedy_and_end_with_the_turn(both: Converted) -> None:
    document: Document = (codes(), Text("what is it?"), TextHole(12))
    sampler = both.model.sampler_config("top_p", text_temperature=0.0).build()
    [done] = both.model.engine.complete([Request(document, sampler=sampler)])
    answer = done.document[-1]
    assert isinstance(answer, Text)
    serializer = both.model.components.serializer
    ids = serializer.prompt(document).tokens.tolist()
    special = set(serializer.text_tokenizer.special_ids().values())
    written: list[int] = []
    for place in range(12):
        row = logits(both, ids)
        row[list(special - ({TURN_END} if place else set()))] = -torch.inf
        row[serializer.text_tokenizer.vocab_size :] = -torch.inf
        token = int(row.argmax())
        if token == TURN_END:
            break
        written.append(token)
        ids.append(token)
    assert answer.text == serializer.text(np.array(written, np.int32))


def test_the_commands_run(both: Converted, tmp_path: Path, capsys: Any) -> None:
    folder = str(both.folder / "own")
    out = tmp_path / "pictures"
    assert main(["generate", "--model", folder, "a red apple", "-o", str(out), "--seed", "1"]) == 0
    picture = out / "000.png"
    assert PILImage.open(picture).size == (8, 8)
    capsys.readouterr()
    assert main(["caption", "--model", folder, str(picture), "--max-tokens", "5"]) == 0
    assert main(["ask", "--model", folder, str(picture), "what is it?", "--max-tokens", "5"]) == 0
    edited = ["edit", "--model", folder, str(picture), "now blue", "-o", str(out / "edited")]
    assert main([*edited, "--force"]) == 0


def test_it_can_be_trained_further(both: Converted, tmp_path: Path, capsys: Any) -> None:
    """From its own recipe and folder, on pictures with captions; the loss of image codes is finite."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        PILImage.new("RGB", (8, 8), (60 * number, 0, 0)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"a red apple {number}")
    own = both.folder / "own"
    given = ["dataset=folder", f"dataset.path={data}", f"train.start_from={own}"]
    given += ["dataset.split=all", "train.steps=2", "train.batch_rows=1"]
    out = tmp_path / "run"
    assert main(["train", str(own / "recipe.yaml"), *given, "-o", str(out), "--quiet"]) == 0
    found = re.search(r"train/image ([\d.]+)", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) < 50
    tuned = cm3core.load(out)
    assert tuned.components.serializer.layout.name == "chameleon"
    [picture] = tuned.generate("a red apple", num_images=1, seed=1)
    assert picture.pixels.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda _: [], "--to cm3: needs both tokenizers"),
        (
            lambda tokenizers: (tokenizers / "vqgan.ckpt").unlink(),
            "vqgan.ckpt: there is no such file",
        ),
        (
            lambda tokenizers: (tokenizers / "text_tokenizer.json").unlink(),
            "tokenizer: has no text_tokenizer.json or tokenizer.json",
        ),
        (
            lambda tokenizers: (tokenizers / "text_tokenizer.json").write_text(
                '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'
            ),
            "layout: needs the token '<s>'",
        ),
    ],
)
def test_incomplete_files_are_refused(
    both: Converted, tmp_path: Path, capsys: Any, changed: Any, message: str
) -> None:
    tokenizers = tmp_path / "tokenizer"
    shutil.copytree(both.folder / "tokenizer", tokenizers)
    alone = changed(tokenizers) == []
    arguments = [] if alone else ["--tokenizer", str(tokenizers), "--resolution", "8"]
    out = tmp_path / "out"
    assert (
        main(["convert", str(both.folder / "hf"), "-o", str(out), "--to", "cm3", *arguments]) == 2
    )
    assert tells(capsys.readouterr().err, f"... {message}")
    assert not out.exists()


def test_pictures_longer_than_the_context_are_refused(
    both: Converted, tmp_path: Path, capsys: Any
) -> None:
    source, tokenizers = str(both.folder / "hf"), str(both.folder / "tokenizer")
    arguments = ["--to", "cm3", "--tokenizer", tokenizers, "--resolution", "2048"]
    assert main(["convert", source, "-o", str(tmp_path / "out"), *arguments]) == 2
    assert re.fullmatch(
        r"error: --resolution: pictures of 1024 x 1024 codes take [\d,]+ tokens, but the decoder's "
        r"context is \d+\n  next: use a smaller one \(and --width\)\n",
        capsys.readouterr().err,
    )
    assert list(tmp_path.iterdir()) == []


def test_what_needs_sentinels_is_refused(both: Converted, tmp_path: Path, capsys: Any) -> None:
    picture = tmp_path / "one.png"
    PILImage.new("RGB", (8, 8)).save(picture)
    arguments = ["infill", "--model", str(both.folder / "own"), str(picture), "--box", "0,0,4,4"]
    assert main([*arguments, "--text", "a", "-o", str(tmp_path / "out")]) == 2
    assert tells(capsys.readouterr().err, "... has a hole ... 'chameleon'")
