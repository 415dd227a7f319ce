"""`cm3 convert --to opt`: transformers computes what the model computes, and the export becomes the model again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    OPTConfig,
    OPTForCausalLM,
    OPTPreTrainedModel,
    PreTrainedTokenizerBase,
)

import cm3core
from cm3apps.cli.main import main
from cm3core.document import Codes, Document, ImageHole, Text, TextHole
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.text_tokenizers.bpe import BPETokenizerConfig
from cm3plugins.text_tokenizers.byte import ByteTokenizer
from cm3plugins.text_tokenizers.byte_level_bpe import ByteLevelBPETokenizer
from cm3published.convert import hugging_face, opt
from cm3run.build import layout_of
from cm3run.generation.engine import Request
from cm3run.model import Model
from profiles import examples
from tiny_opt import CORPUS, write_own


class Exported(NamedTuple):
    """A model in both forms."""

    folder: Path
    model: Model
    theirs: OPTForCausalLM
    tokenizer: PreTrainedTokenizerBase


def exported(
    folder: Path, *overrides: str, heads: int = 4, tokenizer: Path | None = None
) -> Exported:
    own = write_own(folder / "own", *overrides, heads=heads, tokenizer=tokenizer)
    assert main(["convert", str(own), "-o", str(folder / "opt"), "--to", "opt"]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(folder / "opt")
    assert isinstance(theirs, OPTForCausalLM)
    reader = AutoTokenizer.from_pretrained(folder / "opt")
    return Exported(folder, cm3core.load(own), theirs.train(mode=False), reader)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("opt"), "text_tokenizer=bpe")


def compared(both: Exported, rows: int = 3, length: int = 40) -> tuple[Tensor, Tensor]:
    """Hidden states and logits, [B, T, E + V], of random ids, here and there."""
    vocabulary, decoder = both.model.components.vocabulary, both.model.components.decoder
    ids = torch.randint(vocabulary.size, (rows, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = decoder.hidden_states(ids)
        own = torch.cat([hidden, decoder.logits(hidden)], dim=-1)
        done = both.theirs.model(ids).last_hidden_state
        theirs = torch.cat([done, both.theirs(ids).logits], dim=-1)
    return own, theirs


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("decoder.activation=gelu", "decoder.tie_embeddings=false"),
        ("decoder.d_ff=96", "decoder.num_layers=3"),
    ],
)
def test_logits_are_transformers(tmp_path: Path, overrides: Sequence[str]) -> None:
    """No bit differs where the scale of a head is a power of two, by which transformers multiplies queries."""
    own, theirs = compared(exported(tmp_path, *overrides))
    assert float(own.abs().max()) > 1
    assert torch.equal(own, theirs)


def test_logits_with_another_scale_differ_by_rounding(tmp_path: Path) -> None:
    own, theirs = compared(exported(tmp_path, heads=2))
    assert (own - theirs).abs().max() <= 1e-5 * own.abs().max()


def greedy(both: Exported, prompt: Sequence[int], allowed: Sequence[int], number: int) -> list[int]:
    """The ids that transformers generates after a prompt, only from those allowed."""
    ids = torch.tensor([list(prompt)])
    ended = both.model.components.vocabulary.end_of_infill
    done = both.theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=number,
        eos_token_id=ended,
        prefix_allowed_tokens_fn=lambda *_: list(allowed),
    )
    written: list[int] = done[0, len(prompt) :].tolist()
    return written


def test_pictures_are_those_of_the_readmes_prompt(both: Exported) -> None:
    """Without guidance, at temperature 0: the prompt and the ids that the README allows give the same codes."""
    parts, vocabulary = both.model.components, both.model.components.vocabulary
    sampler = both.model.sampler_config("top_p", temperature=0.0).build()
    [done] = both.model.engine.complete(
        [Request((Text("a red apple"), ImageHole()), sampler=sampler)]
    )
    drawn = done.document[-1]
    assert isinstance(drawn, Codes)
    text = both.tokenizer("a red apple", add_special_tokens=False).input_ids
    ids = [
        one
        for part in formula(both, "draw a picture")
        for one in (text if part == "text" else [int(part)])
    ]
    picture = vocabulary.image
    codes = greedy(both, ids, picture, len(drawn.codes))
    assert [one - picture.start for one in codes] == drawn.codes.tolist()
    assert parts.image_tokenizer.grid == drawn.grid


def formula(both: Exported, task: str) -> list[str]:
    """A prompt in the README's table."""
    page = (both.folder / "opt/README.md").read_text()
    found = re.search(rf"^\| {task} \| (.*?) \|", page, re.MULTILINE)
    assert found
    return found[1].split(", ")


def test_captions_are_those_of_the_readmes_prompt(both: Exported) -> None:
    parts, vocabulary = both.model.components, both.model.components.vocabulary
    grid = parts.image_tokenizer.grid
    numbers = np.random.default_rng(0).integers(0, vocabulary.num_image, grid[0] * grid[1])
    document: Document = (TextHole(12), Codes(numbers.astype(np.int32), grid))
    sampler = both.model.sampler_config("top_p", text_temperature=0.0).build()
    [done] = both.model.engine.complete([Request(document, sampler=sampler)])
    told = done.document[0]
    assert isinstance(told, Text)
    picture = (vocabulary.image.start + numbers).tolist()
    ids = [
        one
        for part in formula(both, "caption a picture")
        for one in (picture if part == "picture" else [int(part)])
    ]
    texts = range(vocabulary.text.start, vocabulary.text.start + parts.text_tokenizer.vocab_size)
    # the first token of a text is not its end
    first = greedy(both, ids, texts, 1)
    rest = greedy(both, [*ids, *first], [*texts, vocabulary.end_of_infill], 11)
    written = [one for one in [*first, *rest] if one != vocabulary.end_of_infill]
    assert parts.serializer.text(np.array(written, np.int32)) == told.text


def test_the_readmes_code_runs(both: Exported) -> None:
    page = (both.folder / "opt/README.md").read_text().replace("FOLDER", str(both.folder / "opt"))
    code = page.partition("```python\n")[2].partition("```")[0]
    values: dict[str, Tensor] = {}
    torch.manual_seed(0)
    exec(code, values)
    codes = values["codes"]
    assert codes.shape == (1, 256)
    assert 0 <= codes.min() <= codes.max() < both.model.components.vocabulary.num_image


TEXTS = st.text(max_size=60) | st.sampled_from(
    ["", "a red apple", "<eos><break><image:3>", " <s> x", "日本 é\n", "<unused:1351>"]
)


@given(text=TEXTS)
@settings(max_examples=examples(25), deadline=None)
def test_texts_have_the_models_ids(both: Exported, text: str) -> None:
    check_text(both, text)


def check_text(both: Exported, text: str) -> None:
    parts = both.model.components
    own = parts.vocabulary.of_text(np.array(parts.text_tokenizer.encode(text), np.int64)).tolist()
    assert both.tokenizer(text, add_special_tokens=False).input_ids == own
    assert both.tokenizer(text).input_ids == [*parts.serializer.layout.begin, *own]
    assert both.tokenizer.decode(own) == text


def test_byte_tokenizers_become_byte_level_bpe(tmp_path: Path) -> None:
    """Ids of bytes, moved behind the four control tokens."""
    model = exported(tmp_path, "text_tokenizer=byte")
    assert model.tokenizer("aé", add_special_tokens=False).input_ids == [4 + 97, 4 + 195, 4 + 169]
    for text in ("", "a red apple", " <eos>\x00 日本 é\n\t", "\U0001f34e"):
        check_text(model, text)


def test_every_id_has_a_name(both: Exported) -> None:
    parts, tokenizer = both.model.components, both.tokenizer
    ids = parts.vocabulary
    assert len(tokenizer) == ids.size
    numbers = [ids.break_, ids.image.start + 7, ids.sentinel(3), ids.pad]
    assert tokenizer.convert_ids_to_tokens(numbers) == [
        "<break>",
        "<image:7>",
        "<sentinel:3>",
        "<pad>",
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (ids.eos, ids.eos)
    assert tokenizer.pad_token_id == ids.pad
    named = tokenizer("x<break>", add_special_tokens=False, split_special_tokens=False).input_ids
    assert named[-1] == ids.break_


def test_a_text_token_may_be_spelled_like_a_control_token(tmp_path: Path) -> None:
    """A text token `<s>` keeps its id, and the control token gets another name."""
    values = json.loads(ByteLevelBPETokenizer.train(CORPUS, 258).content)
    for pair in (["<", "s"], ["<s", ">"]):
        values["model"]["merges"].append(pair)
        values["model"]["vocab"]["".join(pair)] = len(values["model"]["vocab"])
    values["pre_tokenizer"]["use_regex"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    model = exported(tmp_path, "text_tokenizer=bpe", tokenizer=tmp_path)
    assert model.tokenizer("<s>", add_special_tokens=False).input_ids == [4 + 259]
    check_text(model, "<s> <break>")
    assert model.tokenizer.convert_ids_to_tokens([0, 2]) == ["<<s>>", "<eos>"]


@pytest.mark.parametrize(("head", "dtype"), [("true", torch.bfloat16), ("false", torch.float32)])
def test_an_export_becomes_the_model_again(tmp_path: Path, head: str, dtype: torch.dtype) -> None:
    own = write_own(tmp_path / "own", f"decoder.tie_embeddings={head}", dtype=dtype)
    assert main(["convert", str(own), "-o", str(tmp_path / "opt"), "--to", "opt"]) == 0
    assert main(["convert", str(tmp_path / "opt"), "-o", str(tmp_path / "back")]) == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype == dtype
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8))
    for path in own.rglob("*"):
        if path.is_file() and path.name not in ("model.safetensors", "state.json"):
            assert (tmp_path / "back" / path.relative_to(own)).read_bytes() == path.read_bytes()
    here, there = (cm3core.load(tmp_path / name) for name in ("own", "back"))
    first, again = (one.generate("a red apple", seed=3)[0].pixels for one in (here, there))
    assert np.array_equal(first, again)


def test_others_may_read_an_export(both: Exported) -> None:
    """An engine often runs as another user; safetensors' own files have the mode 0600."""
    ordinary = both.folder / "ordinary"
    ordinary.touch()
    modes = {path.stat().st_mode for path in (both.folder / "opt").iterdir() if path.is_file()}
    assert modes == {ordinary.stat().st_mode}


def test_weights_are_split_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = write_own(tmp_path / "own")
    monkeypatch.setattr(opt.write_opt, "__defaults__", (200_000,))
    assert main(["convert", str(own), "-o", str(tmp_path / "opt"), "--to", "opt"]) == 0
    index = json.loads((tmp_path / "opt" / hugging_face.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    whole = OPTForCausalLM.from_pretrained(tmp_path / "opt")
    state = load_file(own / "model.safetensors")
    name = "layers.1.fc2.weight"
    assert torch.equal(whole.state_dict()[opt.opt_name(name)], state[name])
    assert main(["convert", str(tmp_path / "opt"), "-o", str(tmp_path / "back")]) == 0
    assert torch.equal(load_file(tmp_path / "back/model.safetensors")[name], state[name])


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 4 can't initialise an OPT whose norms have no weights."""
    monkeypatch.setattr(OPTPreTrainedModel, "_init_weights", lambda *_: None, raising=False)


@pytest.mark.usefixtures("uninitialised")
def test_an_opt_of_transformers_becomes_a_model(both: Exported, tmp_path: Path) -> None:
    """One tuned there: other weights, saved by transformers, in another dtype."""
    torch.manual_seed(5)
    config = OPTConfig.from_pretrained(both.folder / "opt")
    tuned = OPTForCausalLM(config).train(mode=False)
    for parameter in tuned.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(tmp_path / "tuned")
    arguments = ["--tokenizer", str(both.folder / "opt")]
    assert main(["convert", str(tmp_path / "tuned"), "-o", str(tmp_path / "own"), *arguments]) == 0
    model = cm3core.load(tmp_path / "own")
    own, theirs = compared(both._replace(model=model, theirs=tuned))
    assert torch.equal(own, theirs)


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize("size", ["350m", "760m", "7b"])
def test_the_papers_sizes_are_opts(size: str) -> None:
    """Names and shapes of all tensors, without their values."""
    registry = load_registry()
    recipe = compose(f"cm3leon-{size}", registry=registry)
    decoder = opt.check_decoder(recipe, "recipe")
    text_tokenizer = recipe.text_tokenizer
    assert isinstance(text_tokenizer, BPETokenizerConfig)
    number = text_tokenizer.vocab_size

    class Sized(ByteTokenizer):
        vocab_size = number

    assert recipe.image_tokenizer is not None
    layout = layout_of(recipe, Sized(), recipe.image_tokenizer, registry)
    with torch.device("meta"):
        own = decoder.build(layout.vocabulary, SDPAAttentionConfig().build(), (32, 32))
        config = OPTConfig(**opt.to_config(decoder, layout, "bfloat16"))
        theirs = OPTForCausalLM(config)
    shapes = {
        opt.opt_name(name): opt.opt_shape(name, tuple(one.shape))
        for name, one in own.named_parameters()
    }
    assert shapes == {name: tuple(one.shape) for name, one in theirs.named_parameters()}
    assert shapes["model.decoder.embed_tokens.weight"] == (66_176, decoder.d_model)
    assert shapes["model.decoder.embed_positions.weight"] == (4098, decoder.d_model)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (2, 2, 1)


def test_the_card_and_its_pictures_are_in_the_readme(tmp_path: Path) -> None:
    own = write_own(tmp_path / "own")
    (own / "CARD.md").write_text(
        "---\nlicense: mit\nlibrary_name: cm3leon\npipeline_tag: text-to-image\n---\n\n# `mine`\n\n{figures}\n"
    )
    (own / "CARD-mine.png").write_bytes(b"picture")
    assert main(["convert", str(own), "-o", str(tmp_path / "opt"), "--to", "opt"]) == 0
    page = (tmp_path / "opt/README.md").read_text()
    head = (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: mit\n---\n# opt\n"
    )
    assert page.startswith(head)
    assert page.endswith("## Model card\n\n# `mine`\n\n{figures}\n")
    assert (tmp_path / "opt/CARD-mine.png").read_bytes() == b"picture"


def test_another_text_tokenizer_leaves_tokenizer_json_out(tmp_path: Path) -> None:
    """The ids of `hf` are the file's, whose special tokens can't be hidden in the same way."""
    (tmp_path / "hf").mkdir()
    content = ByteLevelBPETokenizer.train(CORPUS, 300).content
    (tmp_path / "hf/tokenizer.json").write_text(content)
    own = write_own(tmp_path / "own", "text_tokenizer=hf", tokenizer=tmp_path / "hf")
    assert main(["convert", str(own), "-o", str(tmp_path / "opt"), "--to", "opt"]) == 0
    assert not list((tmp_path / "opt").glob("tokenizer*"))
    assert "There is no `tokenizer.json`" in (tmp_path / "opt/README.md").read_text()
    assert main(["convert", str(tmp_path / "opt"), "-o", str(tmp_path / "back")]) == 0


@pytest.mark.slow
def test_a_trained_models_logits_are_transformers(tmp_path: Path) -> None:
    overrides = ["decoder.grid_positions=false", "decoder.num_heads=1", "text_tokenizer=bpe"]
    run, out = str(tmp_path / "run"), str(tmp_path / "opt")
    assert main(["train", "tiny", *overrides, "text_tokenizer.vocab_size=300", "-o", run]) == 0
    assert main(["convert", run, "-o", out, "--to", "opt"]) == 0
    theirs = OPTForCausalLM.from_pretrained(out).train(mode=False)
    tokenizer = AutoTokenizer.from_pretrained(out)
    own, there = compared(Exported(tmp_path, cm3core.load(run), theirs, tokenizer))
    assert torch.equal(own, there)
