"""`cm3 convert` of Janus: a model of random weights draws and writes here as in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import JanusForConditionalGeneration

import cm3core
from cm3apps.cli.main import main
from cm3core.document import Codes, ImageHole, Text, TextHole
from cm3core.errors import CM3Error
from cm3core.interfaces.sampler import PromptVariant
from cm3run.generation.engine import Request
from cm3run.model import Model
from cm3serve.tasks import able
from tiny_janus import (
    NUM_CODES,
    NUM_TEXT,
    PAD,
    SIDE,
    check_drawn,
    template,
    text_tokenizer,
    write_janus,
)

GREEDY = {"temperature": 0.0, "text_temperature": 0.0}


class Converted(NamedTuple):
    """A model in both forms."""

    folder: Path
    model: Model
    theirs: JanusForConditionalGeneration


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("janus")
    theirs = write_janus(folder / "hf", max_shard_size="200KB")
    assert (folder / "hf" / "model.safetensors.index.json").is_file()
    assert main(["convert", str(folder / "hf"), "-o", str(folder / "own"), "--to", "cm3"]) == 0
    return Converted(folder, cm3core.load(folder / "own"), theirs)


def test_prompts_are_the_template(both: Converted) -> None:
    """Read as one text by the tokenizer, and the stream of guidance padded as transformers pads it."""
    serializer = both.model.components.serializer
    prompt = serializer.prompt((Text("a red apple"), ImageHole()))
    assert prompt.tokens.tolist() == template("a red apple")
    hidden = PromptVariant(hide_text="all")
    blank = serializer.prompt((Text("a red apple"), ImageHole()), variant=hidden)
    pad = text_tokenizer().token_to_id(PAD)
    first, *between, last = template("a red apple")
    assert blank.tokens.tolist() == [first, *[pad] * len(between), last]
    answered = serializer.sequence((Text("a red apple"), Text("on a table"))).tokens.tolist()
    assert answered[:-1] == template("a red apple", " on a table")


@torch.no_grad()
def test_logits_are_transformers_at_each_step(both: Converted) -> None:
    """Of texts and of codes, from the engine's cache: to 1e-5 of the largest."""
    ids = template("a red apple")
    codes = torch.randint(NUM_CODES, (SIDE * SIDE,), generator=torch.Generator().manual_seed(0))
    theirs = both.theirs
    embedded = torch.cat(
        [
            theirs.get_input_embeddings()(torch.tensor([ids])),
            theirs.prepare_embeddings_for_image_generation(codes[None]),
        ],
        dim=1,
    )
    states = theirs.model.language_model(inputs_embeds=embedded).last_hidden_state
    tokens = torch.cat([torch.tensor(ids), NUM_TEXT + codes])[None]
    inference = both.model.engine.inference
    cache = inference.allocate_cache(1, tokens.shape[1])
    found: list[Tensor] = []
    for first, last in [(0, len(ids)), *((t, t + 1) for t in range(len(ids), tokens.shape[1]))]:
        found.append(inference.hidden_states(tokens[:, first:last], cache=cache))
        cache.advance([last - first])
    hidden = torch.cat(found, 1)
    for ids_of, expected in (
        (range(NUM_TEXT), theirs.lm_head(states)),
        (range(NUM_TEXT, NUM_TEXT + NUM_CODES), theirs.model.generation_head(states)),
    ):
        error = (inference.logits(hidden, ids_of) - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max()


def test_guided_pictures_are_transformers(both: Converted) -> None:
    """At temperature 0, each code is that of transformers' own loop, and so are the pixels."""
    prompts = ("a red apple", "a blue bell on a table")
    different = {tuple(check_drawn(both.model, both.theirs, words)) for words in prompts}
    assert len(different) == 2


@torch.no_grad()
def test_guided_pictures_are_a_straight_loop(both: Converted) -> None:
    """u + s (c - u) on logits of the whole sequence, read anew at each step; another scale."""
    theirs, scale = both.theirs, 2.5
    ids = template("a blue bell")
    pad = text_tokenizer().token_to_id(PAD)
    rows = torch.tensor([ids, [ids[0], *[pad] * (len(ids) - 2), ids[-1]]])
    codes: list[int] = []
    for _ in range(SIDE * SIDE):
        embedded = theirs.get_input_embeddings()(rows)
        if codes:
            drawn = theirs.prepare_embeddings_for_image_generation(torch.tensor([codes, codes]))
            embedded = torch.cat([embedded, drawn], 1)
        state = theirs.model.language_model(inputs_embeds=embedded).last_hidden_state[:, -1]
        shown, hidden = theirs.model.generation_head(state)
        codes.append(int((hidden + scale * (shown - hidden)).argmax()))
    sampling = GREEDY | {"guidance_scale": scale}
    [picture] = both.model.generate("a blue bell", 1, sampling=sampling)
    assert picture.codes.codes.tolist() == codes


def test_texts_are_transformers(both: Converted) -> None:
    """A text answer at temperature 0 of the language head."""
    hole = TextHole(5, 5)
    [done] = both.model.complete([(Text("a red apple"), hole)], sampling=GREEDY)
    ids = template("a red apple", "")
    for _ in range(5):
        with torch.no_grad():
            logits = both.theirs(torch.tensor([ids])).logits[0, -1]
        vocabulary = both.model.components.serializer.vocabulary
        allowed = torch.zeros(NUM_TEXT, dtype=torch.bool)
        for part in vocabulary.text_ranges(text_tokenizer().get_vocab_size()):
            allowed[part.start : part.stop] = True
        ids.append(int(logits.masked_fill(~allowed, -torch.inf).argmax()))
    answer = text_tokenizer().decode(ids[-5:], skip_special_tokens=False)
    assert done.document[-1] == Text(answer.removeprefix(" "))


def test_weights_keep_their_bits(both: Converted) -> None:
    found = load_file(both.folder / "own" / "model.safetensors")
    state = both.theirs.state_dict()
    for ours, theirs in (
        ("embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("codes_in.embed.weight", "model.generation_embeddings.weight"),
        ("codes_out.fc2.bias", "model.generation_head.vision_head.bias"),
        ("layers.1.down_proj.weight", "model.language_model.layers.1.mlp.down_proj.weight"),
    ):
        assert torch.equal(found[ours], state[theirs])
    facts = json.loads((both.folder / "own" / "conversion.json").read_text())
    assert "DeepSeek Model License" in facts["licence"]
    assert list(facts["left_out"]) == ["model.vision_model.*", "model.aligner.*"]


def test_pictures_are_not_read(both: Converted) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(CM3Error) as caught:
        both.model.caption(pixels)
    assert "this model can only generate pictures, not read them" in str(caught.value)
    codes = Codes(np.zeros(16, np.int32), (4, 4))
    with pytest.raises(CM3Error, match="only generate pictures, not read them"):
        both.model.engine.complete([Request((codes, TextHole(2)))])
    with pytest.raises(CM3Error, match="was not tuned"):
        both.model.chat("a red apple")


def test_the_server_offers_what_it_can(both: Converted) -> None:
    """Also where it is started with --force."""
    assert able(both.model, ()) == able(both.model, ("edit", "ask")) == ["draw"]


def test_check_reads_everything(both: Converted, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(both.folder / "hf"), "--check"]) == 0
    printed = capsys.readouterr().out
    assert "every tensor exists with the right size" in printed
    assert "left out: 25 tensors of the network that reads pictures (SigLIP)" in printed


def config(section: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        (values[section] if section else values).update(changes)
        path.write_text(json.dumps(values))

    return change


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        own = load_file(folder / "model.safetensors")
        change(own)
        save_file(own, folder / "model.safetensors")

    return changed


HEAD = "model.generation_head.vision_head.weight"
BAD: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "another activation": (
        config("text_config", hidden_act="gelu"),
        [],
        "hidden_act is 'gelu', but only 'silu' is supported",
    ),
    "another width": (
        config("vq_config", projection_dim=64),
        [],
        "projection_dim and image_token_embed_dim must be hidden_size, which is 32",
    ),
    "absurd sizes": (
        config("text_config", num_hidden_layers=10**6),
        [],
        "states impossible sizes",
    ),
    "a head that is missing": (tensors(lambda own: own.pop(HEAD)), [], f"missing: {HEAD}"),
    "one that is not known": (
        tensors(lambda own: own.update(extra=torch.ones(1))),
        [],
        "not known: extra",
    ),
    "another shape": (
        tensors(lambda own: own.update({HEAD: torch.ones(3, 32)})),
        [],
        f"{HEAD} is [3, 32], but the config implies [16, 32]",
    ),
    "not finite": (
        tensors(lambda own: own[HEAD].fill_(torch.nan)),
        [],
        f"{HEAD} contains non-finite values",
    ),
    "no image tokenizer": (
        tensors(lambda own: [own.pop(name) for name in list(own) if "vqmodel" in name]),
        [],
        "holds no image tokenizer",
    ),
    "no text tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), [], "has no "),
    "to hf": (lambda folder: None, ["--to", "hf"], "convert Janus with --to cm3"),
    "a layout": (
        lambda folder: None,
        ["--layout", "lumina"],
        "only works with Chameleon-based models",
    ),
    "a width": (lambda folder: None, ["--width", "16"], "whose pictures are square"),
    "too large": (lambda folder: None, ["--resolution", "32"], "but the decoder's context is 128"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write_janus(folder)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(
    name: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written."""
    change, arguments, words = BAD[name]
    source = tmp_path / "source"
    source.mkdir()
    for path in plain.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    change(source)
    before = sorted(tmp_path.iterdir())
    assert main(["convert", str(source), "-o", str(tmp_path / "out"), *arguments]) == 2
    assert sorted(tmp_path.iterdir()) == before
    message = capsys.readouterr().err
    assert words in message
    assert "  next: " in message
