"""The Python API and the commands over it, with a tiny untrained decoder, a tokenizer of averages
and a memory of three."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cm3core import images
from cm3core.build import Components
from cm3core.checkpoint import find_model
from cm3core.cli import main as cli
from cm3core.cli._model import printable, settings_of
from cm3core.cli.infill import parse_box
from cm3core.document import Codes, Image, ImageHole, MaskedText, Text, TextHole, content_keys
from cm3core.errors import CheckpointError, CM3Error, DataError, GenerationError
from cm3core.generation.engine import Engine, PictureGrown
from cm3core.interfaces import (
    DocumentSource,
    ImageTokenizer,
    Retrieved,
    Retriever,
    RetrieverConfig,
    TextTokenizer,
)
from cm3core.interfaces.reranker import Reranker
from cm3core.model import AsyncModel, ImageReady, Model, Scored
from cm3core.model.loaded import Loaded
from cm3core.plugins import PluginInfo, Registry, load_registry
from cm3core.recipe.recipe import Recipe
from cm3core.recipe.sections import DataSection, GenerateSection
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import Vocabulary
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.samplers.config import CFGSamplerConfig

GRID = (4, 4)
MEMORY = ("red", "green", "blue")


class CharTokenizer(TextTokenizer):
    vocab_size = 128
    fingerprint = "ascii"

    def _encode(self, text):
        return [min(ord(letter), 127) for letter in text]

    def _decode(self, ids):
        return "".join(map(chr, ids))

    def save(self, folder):
        raise NotImplementedError


class GreyTokenizer(ImageTokenizer):
    """Each 2 x 2 patch of an 8 x 8 picture becomes its grey level, in 16 steps."""

    image_size, grid, codebook_size, fingerprint = (8, 8), GRID, 16, "grey"

    def _encode(self, pixels_NHWC):
        return (pixels_NHWC.reshape(-1, 4, 2, 4, 2, 3).mean((2, 4, 5)).reshape(-1, 16) / 16).astype(
            np.int32
        )

    def _decode(self, codes_Nc):
        grey = (codes_Nc.reshape(-1, 4, 4) * 16 + 8).astype(np.uint8)
        return np.repeat(np.repeat(grey, 2, 1), 2, 2)[..., None].repeat(3, -1)


class Colours(DocumentSource):
    fingerprint = "colours"

    def __len__(self):
        return len(MEMORY)

    def id(self, index):
        return MEMORY[index]

    def _document(self, index, rng):
        return (
            Text(MEMORY[index]),
            Image(MEMORY[index], lambda: np.full((8, 8, 3), 40 * index, np.uint8)),
        )


class FirstRetriever(Retriever):
    memory = Colours()

    def _retrieve(self, queries, num_retrieved, exclude):
        return [
            [Retrieved(index, MEMORY[index], 1.0 - index / 4) for index in range(num_retrieved)]
            for _ in queries
        ]


@dataclass(kw_only=True)
class FirstRetrieverConfig(RetrieverConfig):
    num_retrieved: int = 2

    def build(self, memory, embedder):
        return FirstRetriever()


@pytest.fixture(scope="module")
def model() -> Model:
    vocabulary = Vocabulary(num_text=132, num_image=16, num_sentinels=8)
    torch.manual_seed(0)
    config = CM3LeonConfig(
        num_layers=1, d_model=16, num_heads=2, context_length=128, grid_positions=True
    )
    attention = SDPAAttentionConfig().build()
    decoder = config.build(vocabulary, attention, GRID).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    recipe = Recipe(
        name="toy",
        retriever=FirstRetrieverConfig(),
        sampler=CFGSamplerConfig(guidance_scale=1.5),
        data=DataSection(max_text_tokens=12),
        generate=GenerateSection(num_images=2, max_text_tokens=5),
        component_names={"retriever": "first", "sampler": "cfg"},
    )
    text, image = CharTokenizer(), GreyTokenizer()
    components = Components(
        recipe,
        Registry(),
        text,
        image,
        vocabulary,
        Serializer(vocabulary, text, GRID),
        attention,
        decoder,
    )
    components.retriever = FirstRetriever()
    return Model(recipe, components, name="toy", step=3)


def picture(height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def test_pictures_of_a_prompt_depend_on_its_seed_alone(model):
    four = model.generate("red", num_images=4, seed=5)
    assert [one.pixels.shape for one in four] == [(8, 8, 3)] * 4
    assert four[0].seed == 5
    for group in (
        model.generate("red", num_images=2, seed=5),
        model.generate(["blue", "red"], num_images=2, seed=5)[2:],
    ):
        assert all(
            np.array_equal(one.pixels, other.pixels)
            for one, other in zip(group, four, strict=False)
        )
    again = model.generate("red", num_images=1, seed=four[3].seed)[0]
    assert np.array_equal(again.pixels, four[3].pixels)
    assert len(model.generate("red")) == 2  # the recipe's number


def test_pictures_come_batch_by_batch_and_are_the_same_in_any_batches(model, monkeypatch):
    want = model.generate(["blue", "red"], num_images=4, seed=5)
    seen = []
    monkeypatch.setattr(Engine, "batch_size", 3)
    got = list(
        model.stream(
            ["blue", "red"], 4, seed=5, progress=lambda done, total: seen.append((done, total))
        )
    )
    assert [one.codes for one in got] == [one.codes for one in want]
    assert [(one.prompt, one.seed) for one in got] == [(one.prompt, one.seed) for one in want]
    assert seen == sorted(seen)
    assert seen[-1] == (8 * 16, 8 * 16)
    endless = model.stream("red", 10**12, seed=5)
    assert [next(endless).seed for _ in range(4)] == [one.seed for one in want[4:]]
    with pytest.raises(GenerationError, match="num_images: is 0"):
        model.stream("red", 0)  # at once, not with the first picture


def test_a_picture_is_coded_and_decoded_apart_from_the_others(model, monkeypatch):
    """In a batch the last bits of a float depend on how many there are, and a pixel's rounding on
    these."""
    asked = []
    for name in ("encode", "decode"):
        plain = getattr(GreyTokenizer, name)
        monkeypatch.setattr(
            GreyTokenizer,
            name,
            lambda self, batch, plain=plain: asked.append(len(batch)) or plain(self, batch),
        )
    assert len(model.decode(model.encode([picture(), picture()]))) == 2
    assert asked == [1] * 4


def test_retrieved_documents_that_do_not_fit_are_left_out_and_it_is_said(
    model, monkeypatch, capsys
):
    monkeypatch.setattr(model.components.decoder, "context_length", 70)
    for call in (
        lambda: model.generate("red", 1, num_retrieved=3)[0],
        lambda: model.caption(picture(), num_retrieved=3),
        lambda: model.infill(picture(), (2, 2, 6, 6), "red", num_retrieved=3),
    ):
        assert [document.id for document in call().retrieved] == ["red", "green"]
        assert capsys.readouterr().err == (
            "note: the decoder's context of 70 tokens has no room for the last 1 of 3 retrieved "
            "documents; they are left out\n"
        )
    assert (
        model.generate("red", 1, num_retrieved=3)[0].codes
        == model.generate("red", 1, num_retrieved=2)[0].codes
    )
    [one] = model.generate("red", 1, num_retrieved=3, context=[(picture(), "by hand")])
    assert [document.id for document in one.retrieved] == ["context 0", "red"]
    # what was given by hand is not dropped
    with pytest.raises(GenerationError, match="the prompt is"):
        model.generate("red", 1, num_retrieved=1, context=[(picture(), "by hand")] * 3)


def test_retrieved_documents_and_context_come_with_the_picture(model):
    assert [one.id for one in model.generate("red", num_images=1)[0].retrieved] == ["red", "green"]
    [one] = model.generate(
        "red", num_images=1, num_retrieved=1, context=[(picture(9, 12), "by hand")]
    )
    assert [(document.id, document.score, document.text) for document in one.retrieved] == [
        ("context 0", None, "by hand"),
        ("red", 1.0, "red"),
    ]
    assert one.retrieved[0].pixels.shape == (8, 8, 3)
    assert (
        model.generate("red", num_images=1, context=[(picture(), "by hand")])[0].retrieved[1:] == ()
    )
    with_none, with_two = (
        model.generate("red", num_images=1, num_retrieved=number)[0] for number in (0, 2)
    )
    assert with_none.retrieved == ()
    assert with_none.codes != with_two.codes


def test_sampler_keys_hold_for_one_call(model):
    before = model.generate("red", num_images=1)[0]
    greedy = [
        model.generate("red", num_images=1, seed=seed, temperature=0, guidance_scale=1)[0]
        for seed in (0, 1)
    ]
    assert greedy[0].codes == greedy[1].codes != before.codes
    assert model.generate("red", num_images=1)[0].codes == before.codes


def test_captions(model):
    one = model.caption(picture(30, 20), seed=2)
    assert 1 <= len(one.text) <= 5
    assert len(one.retrieved) == 2
    assert model.captions([picture(), picture(30, 20)], seed=2)[1].text == one.text
    assert len(model.caption(picture(), max_tokens=1).text) == 1


def test_infilling_keeps_codes_and_pixels_outside_the_box(model):
    whole = picture(16, 20)
    result = model.infill(whole, (6, 4, 10, 12), "red")
    codes = model.encode([images.fit(whole, (8, 8))])[0].codes
    changed = np.zeros((4, 4), bool)
    changed[1:3, 1] = True
    assert np.array_equal(result.codes.codes[~changed.ravel()], codes[~changed.ravel()])
    assert result.codes.missing is None
    assert result.text == "red"
    assert result.decoded.shape == (8, 8, 3)
    outside = np.ones((16, 20), bool)
    outside[4:12, 6:10] = False
    assert result.pixels.shape == whole.shape
    assert np.array_equal(result.pixels[outside], whole[outside])
    assert model.infill(whole, (2, 0, 18, 16)).text  # without a text the model writes one


def test_complete_takes_any_documents(model):
    documents = [
        (Text("a"), ImageHole()),
        (MaskedText(("x", TextHole(2))), Image("p", picture)),
        (TextHole(3), ImageHole()),
    ]
    first, second, third = model.complete(
        documents, retrieved=[[], [(Text("b"), Image("p", picture))], []]
    )
    assert isinstance(first.document[1], Codes)
    assert second.document[0].text.startswith("x")
    assert isinstance(second.document[1], Codes)
    assert isinstance(third.document[0], Text)
    assert model.decode([first.document[1]])[0].shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.generate(" "), "prompt: is empty\n  next: say what the picture shows"),
        (
            lambda model: model.generate("a" * 13),
            "prompt: is 13 tokens long; the model was trained on texts of at most 12, in a "
            "context of 128\n"
            "  next: shorten it, or read only its beginning (truncate)",
        ),
        (lambda model: model.generate("a", 0), "num_images: is 0\n  next: use 1 or more"),
        (lambda model: model.generate("a", seed=-1), "seed: is -1\n  next: use 0 to 2**63 - 1"),
        (
            lambda model: model.generate("a", num_retrieved=-1),
            "num_retrieved: is -1\n  next: use 0 or more",
        ),
        (
            lambda model: model.generate("a", temprature=2),
            "sampler.temprature: is not a key of this model's sampler\n"
            "  next: did you mean 'temperature'?",
        ),
        (
            lambda model: model.generate("a", top_k="many"),
            "sampler.top_k: is 'many', not int\n  next: correct the value",
        ),
        (
            lambda model: model.generate("a", top_p=2.0),
            "sampler.top_p: is 2.0\n  next: use more than 0 and at most 1 (1 is off)",
        ),
        (
            lambda model: model.caption(picture().astype(float)),
            "picture: is float64 [8, 8, 3]\n  next: pass a file's path, or RGB pixels as uint8 "
            "[height, width, 3]",
        ),
        (
            lambda model: model.caption(picture(), max_tokens=0),
            "max_tokens: is 0\n  next: use 1 or more",
        ),
        (
            lambda model: model.infill(picture(), (3, 3, 3, 5)),
            "box 3,3,3,5: is empty\n  next: use x0,y0,x1,y1 with x0 < x1 and y0 < y1",
        ),
    ],
)
def test_bad_input_is_named(model, call, message):
    with pytest.raises(CM3Error) as error:
        call(model)
    assert str(error.value) == message


def test_too_many_documents_in_front_say_what_fits(model):
    with pytest.raises(
        GenerationError,
        match=r"the prompt is 1\d\d tokens and 16 are to be generated, \d+ more than",
    ):
        model.generate("red", context=[(picture(), "abc")] * 7)


def test_truncation_reads_the_beginning(model):
    long, short = (
        model.generate(text, 1, truncate=True, num_retrieved=0)[0] for text in ("a" * 20, "a" * 12)
    )
    assert long.codes == short.codes
    assert long.prompt == "a" * 20


def test_a_model_without_retriever_says_so(model):
    recipe = Recipe(name="bare", sampler=model.recipe.sampler)
    with pytest.raises(GenerationError) as error:
        Model(recipe, model.components).generate("a", num_retrieved=1)
    assert str(error.value) == (
        "num_retrieved: is 1, but the model's recipe 'bare' has no retriever\n"
        "  next: use 0, or give documents by hand (context)"
    )


def test_models_are_found_by_plugin_and_name(tmp_path):
    registry = SimpleNamespace(models=lambda: {"bundled:emoji64": tmp_path})
    assert find_model("bundled:emoji64", registry) == tmp_path
    assert find_model(tmp_path / "run", registry) == tmp_path / "run"
    with pytest.raises(CheckpointError) as error:
        find_model("bundled:emoji65", registry)
    assert (
        str(error.value)
        == "model 'bundled:emoji65': no installed plugin ships it\n  next: did you mean 'bundled:emoji64'?"
    )


# ---- memory


def test_a_document_with_the_picture_that_is_asked_about_is_never_retrieved(model, monkeypatch):
    """Neither for a description nor for infilling; the picture is known by its codes, whatever file
    it came from."""
    asked = []

    def retrieve(self, queries, num_retrieved, exclude):
        asked.append(exclude)
        return [[] for _ in queries]

    monkeypatch.setattr(FirstRetriever, "_retrieve", retrieve)
    own = content_keys((model.encode([picture()])[0],))
    model.caption(picture())
    model.infill(picture(), (2, 2, 6, 6), "red")
    model.ask(picture(), "a?", num_retrieved=1, template="{question}{answer}")
    model.generate("Red ", 1)
    assert asked == [[own], [own], [own], [content_keys((Text("red"),))]]


def test_a_retrieved_document_that_cannot_be_read_gives_way(model, monkeypatch, capsys):
    def broken():
        raise DataError("red.png", "is truncated", "replace it")

    plain = Colours._document
    monkeypatch.setattr(
        Colours,
        "_document",
        lambda self, index, rng: (
            (Text("red"), Image("broken", broken)) if index == 0 else plain(self, index, rng)
        ),
    )
    assert [document.id for document in model.generate("red", 1)[0].retrieved] == ["green"]
    assert (
        capsys.readouterr().err
        == "note: retrieved document red is left out: red.png: is truncated\n"
    )


def test_another_memory_shares_the_weights_and_leaves_the_model_as_it_was(model, monkeypatch):
    monkeypatch.setitem(vars(model.components), "memory", FirstRetriever.memory)
    fewer = model.with_memory(num_retrieved=1)
    assert [document.id for document in fewer.generate("red", 1)[0].retrieved] == ["red"]
    assert len(model.generate("red", 1)[0].retrieved) == 2
    assert fewer.components.decoder is model.components.decoder
    for call, message in (
        (
            lambda: model.with_memory(min_similarity=0.3),
            "retriever.min_similarity: is not a key of this model's retriever",
        ),
        (
            lambda: model.with_memory(num_retrieved="two"),
            "retriever.num_retrieved: is 'two', not int\n",
        ),
        (
            lambda: model.with_memory("nowhere"),
            "nowhere: does not exist\n  next: name a folder that 'cm3 memory build'",
        ),
        (
            lambda: Model(
                Recipe(name="bare", sampler=model.recipe.sampler), model.components
            ).with_memory(num_retrieved=1),
            "retriever: the model's recipe 'bare' has none\n  next: name a memory bank (bank)",
        ),
    ):
        with pytest.raises(CM3Error) as error:
            call()
        assert str(error.value).startswith(message)


class WordRetriever(FirstRetriever):
    """The last first."""

    def _retrieve(self, queries, num_retrieved, exclude):
        return [
            [Retrieved(index, MEMORY[index], 1.0) for index in (2, 1, 0)[:num_retrieved]]
            for _ in queries
        ]


@dataclass(kw_only=True)
class WordRetrieverConfig(RetrieverConfig):
    def build(self, memory, embedder):
        return WordRetriever()


@dataclass(kw_only=True)
class VectorRetrieverConfig(WordRetrieverConfig):
    needs = ("embedder",)


def test_another_retriever_searches_the_same_memory(model, monkeypatch):
    registry = Registry()
    brought = {"words": WordRetrieverConfig, "vectors": VectorRetrieverConfig}
    registry.add(PluginInfo("mine", "1", "here"), {"retriever": brought}, {})
    monkeypatch.setattr(model.components, "registry", registry)
    monkeypatch.setitem(vars(model.components), "memory", FirstRetriever.memory)
    other = model.with_memory(retriever="words")
    assert [document.id for document in other.generate("red", 1)[0].retrieved] == [
        "blue",
        "green",
    ], "two, as the recipe says"
    assert other.recipe.component_names["retriever"] == "words"
    assert [document.id for document in model.generate("red", 1)[0].retrieved] == ["red", "green"]
    bare = Model(Recipe(name="bare", sampler=model.recipe.sampler), model.components)
    assert [
        document.id
        for document in bare.with_memory(retriever="words").generate("red", 1)[0].retrieved
    ] == ["blue"]
    for name, message in (
        ("word", "retriever: no retriever is called 'word'\n  next: did you mean 'words'?"),
        (
            "vectors",
            "retriever: 'vectors' needs an embedder, and the model's recipe 'toy' has none\n"
            "  next: name a memory bank (bank), which says its embedder, or another retriever",
        ),
    ):
        with pytest.raises(CM3Error) as error:
            model.with_memory(retriever=name)
        assert str(error.value) == message


# ---- commands


@pytest.fixture
def cm3(model, monkeypatch):
    """`cm3 ...` with the toy model behind every `--model`."""
    monkeypatch.setattr("cm3core.model.model.load", lambda *_, **__: model)
    return lambda *arguments: cli.main([str(argument) for argument in arguments])


def test_generate_writes_pictures_with_their_story(cm3, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        cm3(
            "generate",
            "red",
            "blue",
            "--n",
            2,
            "--seed",
            7,
            "-o",
            out,
            "--set",
            "sampler.guidance_scale=1.2",
            "--show-retrieved",
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert [str(out / f"{place:03d}.png") in printed for place in range(4)] == [True] * 4
    assert "retrieved 1: red (1.000) 'red'" in printed
    assert str(out / "grid.png") in printed
    facts = images.read_png_metadata(out / "003.png")
    assert (facts["prompt"], facts["recipe_hash"], facts["model"]) == (
        "blue",
        model.recipe.hash,
        "toy",
    )
    assert json.loads(facts["sampler"])["guidance_scale"] == 1.2
    assert json.loads(facts["retrieved"]) == ["red", "green"]
    again = model.generate("blue", 1, seed=int(facts["seed"]), guidance_scale=1.2)[0]
    assert np.array_equal(images.open_image(out / "003.png"), again.pixels)


def test_ctrl_c_keeps_what_was_drawn(cm3, model, tmp_path, capsys, monkeypatch):
    want = model.generate("red", 3)
    monkeypatch.setattr(Engine, "batch_size", 2)
    decode, calls = Model.decode, []

    def interrupted(self, codes):
        calls.append(len(codes))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(self, codes)

    monkeypatch.setattr(Model, "decode", interrupted)
    assert cm3("generate", "red", "--n", 10**8, "-o", tmp_path) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000000.png", "00000001.png"]
    assert np.array_equal(images.open_image(tmp_path / "00000001.png"), want[1].pixels)
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path}/00000000.png\n{tmp_path}/00000001.png\n"
    assert shown.err.endswith(f"interrupted: 2 of 100000000 pictures are written to {tmp_path}\n")


def test_a_contact_sheet_shows_the_first_pictures_only(cm3, tmp_path, monkeypatch):
    monkeypatch.setattr("cm3core.cli.generate.SHEET", 2)
    for number in (2, 3):
        assert cm3("generate", "red", "blue", "--n", number, "-o", tmp_path / str(number)) == 0
    assert np.array_equal(*(images.open_image(tmp_path / number / "grid.png") for number in "23"))


def test_caption_and_infill_commands(cm3, model, tmp_path, capsys):
    path = tmp_path / "picture.png"
    images.save_png(path, picture(16, 20), {})
    assert cm3("caption", path, "--max-tokens", 3) == 0
    assert capsys.readouterr().out.removesuffix("\n") == printable(
        model.caption(path, max_tokens=3).text
    )
    assert (
        cm3(
            "infill",
            path,
            "--box",
            "6,4,10,12",
            "--text",
            "red",
            "-o",
            tmp_path / "new.png",
            "--decoded",
            tmp_path / "all.png",
        )
        == 0
    )
    assert np.array_equal(
        images.open_image(tmp_path / "new.png"), model.infill(path, (6, 4, 10, 12), "red").pixels
    )
    assert images.open_image(tmp_path / "all.png").shape == (8, 8, 3)
    assert images.read_png_metadata(tmp_path / "new.png")["box"] == "6,4,10,12"


def test_commands_report_bad_input(cm3, tmp_path, capsys):
    assert cm3("infill", tmp_path / "missing.png", "--box", "0,0,4,4") == 2
    assert str(tmp_path / "missing.png") in capsys.readouterr().err
    assert cm3("generate", "a", "--set", "temperature=1") == 2
    assert capsys.readouterr().err == (
        "error: --set temperature=1: is not sampler.KEY=VALUE or retriever.KEY=VALUE\n"
        "  next: write for instance --set sampler.guidance_scale=1.5\n"
    )


def test_nothing_is_drawn_for_a_place_that_takes_no_files(
    cm3, model, tmp_path, capsys, monkeypatch
):
    monkeypatch.delattr(Loaded, "engine")
    images.save_png(tmp_path / "file.png", picture(8, 8), {})
    wrong = f"{tmp_path / 'file.png'} is a file)\n  next: name a place where you may write\n"
    for arguments in (("generate", "a"), ("infill", tmp_path / "file.png", "--box", "0,0,4,4")):
        assert cm3(*arguments, "-o", tmp_path / "file.png" / "out") == 2
        assert (
            capsys.readouterr().err
            == f"error: {tmp_path / 'file.png' / 'out'}: can't be written ({wrong}"
        )


def test_unreadable_pictures_are_data_errors(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        model.caption(tmp_path / "broken.png")


def test_a_terminal_obeys_no_model():
    assert (
        printable("a\x1b]0;title\x07 red\r\napple\x9b2J, één 🍎")
        == "a\ufffd]0;title\ufffd red\ufffd apple\ufffd2J, één 🍎"
    )


def test_values_on_the_command_line():
    assert settings_of(
        ["sampler.temperature=0.5", "sampler.top_k=3", "sampler.null_prompt=mask_no_retrieved"],
        "sampler",
    ) == {"temperature": 0.5, "top_k": 3, "null_prompt": "mask_no_retrieved"}
    assert parse_box("1, 2,30,40") == (1, 2, 30, 40)
    with pytest.raises(GenerationError, match="--box 1,2,3: is not four whole numbers"):
        parse_box("1,2,3")


# ---- candidates, other samplers, masks, questions, editing, events, coroutines


class Brightness(Reranker):
    """The mean of a picture; of a text, its length."""

    measure = "brightness"

    def _score(self, candidates):
        return [
            float(one.pixels[0].mean()) if one.drawn else float(len(one.texts[0]))
            for one in candidates
        ]


@pytest.fixture
def ranked(model, monkeypatch):
    monkeypatch.setattr(model.components, "reranker", Brightness(), raising=False)
    return model


def test_the_best_of_all_candidates_is_shown_with_all_scores(ranked):
    pictures = ranked.generate("red", 2, seed=3, num_candidates=3)
    alone = ranked.generate("red", 6, seed=3)
    for place, picture in enumerate(pictures):
        own = alone[3 * place : 3 * place + 3]
        assert picture.choice.scores == tuple(float(one.pixels.mean()) for one in own)
        assert picture.choice.score == max(picture.choice.scores)
        assert picture.choice.measure == "brightness"
        best = own[picture.choice.index]
        assert np.array_equal(picture.pixels, best.pixels)
        assert picture.seed == best.seed
    assert all(one.choice is None for one in alone)
    [text] = ranked.captions(
        [picture_of(8)], seed=1, num_candidates=3, text_temperature=2.0, num_retrieved=0
    )
    assert text.choice.score == len(text.text)


def picture_of(size: int) -> np.ndarray:
    return picture(size, size)


def test_candidates_need_a_reranker(model):
    with pytest.raises(GenerationError) as error:
        model.generate("red", num_candidates=2)
    assert str(error.value).startswith(
        "reranker: the model's recipe 'toy' has none to choose candidates by\n  next: name one"
    )
    with pytest.raises(GenerationError, match="num_candidates: is 0\n  next: use 1 or more"):
        model.generate("red", num_candidates=0)


def test_another_sampler_keeps_what_both_have(model, monkeypatch):
    monkeypatch.setattr(model.components, "registry", load_registry())
    monkeypatch.setattr(model.recipe.sampler, "temperature", 0.25)
    config = model.sampler_config("top_p", top_k=3)
    assert (type(config).__name__, config.temperature, config.top_k) == (
        "TopPSamplerConfig",
        0.25,
        3,
    )
    for name in ("cd_k", "contrastive", "mixture", "edit_cfg"):
        assert model.generate("red", 1, sampler=name)[0].pixels.shape == (8, 8, 3)
    with pytest.raises(CM3Error, match="did you mean 'cd_k'"):
        model.generate("red", 1, sampler="cd_q")


def test_events_end_with_the_pictures_of_generate(ranked):
    events = list(ranked.events("red", 2, seed=3, num_candidates=2))
    ready = [event for event in events if isinstance(event, ImageReady)]
    expected = ranked.generate("red", 2, seed=3, num_candidates=2)
    assert [event.request for event in ready] == [0, 2]
    assert all(
        np.array_equal(one.image.pixels, other.pixels)
        for one, other in zip(ready, expected, strict=True)
    )
    scored = {event.request: event.score for event in events if isinstance(event, Scored)}
    assert scored == dict(enumerate(expected[0].choice.scores + expected[1].choice.scores))
    grown = [
        event.codes for event in events if isinstance(event, PictureGrown) and event.request == 1
    ]
    assert [int(codes.missing.sum()) for codes in grown] == [12, 8, 4, 0]
    half = ranked.preview(grown[1])
    assert (half[4:] == 208).all()
    assert np.array_equal(half[:4], ranked.decode([Codes(grown[-1].codes, GRID)])[0][:4])


def test_a_mask_several_boxes_and_continuation_leave_the_rest(model, tmp_path):
    whole = picture(8, 8)
    codes = model.encode([whole])[0].codes
    mask = np.zeros((8, 8), np.bool_)
    mask[0:2, 0:2] = mask[5, 7] = True
    masked = model.infill(whole, mask=mask, text="red")
    touched = [0, 11]
    kept = np.delete(np.arange(16), touched)
    assert np.array_equal(masked.codes.codes[kept], codes[kept])
    assert np.array_equal(masked.pixels[~mask], whole[~mask])
    assert np.array_equal(masked.pixels[mask], masked.decoded[mask])
    assert masked.box == (0, 0, 8, 6)
    boxes = model.infill(whole, [(0, 0, 2, 2), (6, 4, 8, 6)], "red")
    assert np.array_equal(boxes.codes.codes, masked.codes.codes)
    images.save_png(
        tmp_path / "mask.png", np.repeat(mask[:, :, None] * 255, 3, 2).astype(np.uint8), {}
    )
    assert np.array_equal(
        model.infill(whole, mask=tmp_path / "mask.png", text="red").pixels, masked.pixels
    )
    below = model.continue_image(whole, 4, "red", seed=2)
    assert np.array_equal(below.codes.codes[:8], codes[:8])
    assert np.array_equal(below.pixels[:4], whole[:4])
    [drawn] = model.complete([(Text("red"), Codes(codes, GRID, np.arange(16) >= 8))], seed=2)
    # documents stood in front of one
    assert np.array_equal(drawn.document[1].codes, below.codes.codes) or below.retrieved
    for arguments, message in (
        ({}, "infill: takes a box or a mask\n  next: give one of the two"),
        ({"box": []}, "box: there is none\n  next: give (x0, y0, x1, y1), or several of them"),
    ):
        with pytest.raises(GenerationError) as error:
            model.infill(whole, **arguments)
        assert str(error.value) == message
    with pytest.raises(
        GenerationError, match="keep: is 8, the model sees 8 rows of pixels\n  next: use 0 to 7"
    ):
        model.continue_image(whole, 8)


def test_questions_and_editing(model, monkeypatch):
    answer = model.ask(picture(8, 8), "hue?", max_tokens=4, template="Q {question} A {answer}!")
    assert 1 <= len(answer.text) <= 4
    assert answer.retrieved == ()
    with pytest.raises(GenerationError) as error:
        model.ask(picture(8, 8), "hue?", template="{question}")
    assert (
        str(error.value)
        == "template: is '{question}'\n  next: write one with {question} and one {answer}"
    )
    monkeypatch.setattr(model.components, "registry", load_registry())
    one, two = model.edit(picture(8, 8), "redder", 2, seed=1)
    assert one.prompt == "redder"
    assert one.pixels.shape == two.pixels.shape == (8, 8, 3)


def test_coroutines_get_what_methods_return(ranked):
    async def main():
        async with AsyncModel(ranked) as shared:
            pictures, text, filled = await asyncio.gather(
                shared.generate("red", 2, seed=3, num_candidates=2),
                shared.caption(picture(8, 8), seed=1),
                shared.infill(picture(8, 8), (0, 0, 4, 4), "red"),
            )
            told = [event async for event in shared.events("red", 2, seed=3, num_candidates=2)]
            with pytest.raises(GenerationError):
                await shared.generate("", 1)
        return pictures, text, filled, told

    pictures, text, filled, told = asyncio.run(main())
    expected = ranked.generate("red", 2, seed=3, num_candidates=2)
    assert all(
        np.array_equal(one.pixels, other.pixels)
        for one, other in zip(pictures, expected, strict=True)
    )
    assert text.text == ranked.caption(picture(8, 8), seed=1).text
    assert np.array_equal(filled.pixels, ranked.infill(picture(8, 8), (0, 0, 4, 4), "red").pixels)
    assert sum(isinstance(event, ImageReady) for event in told) == 2
    assert sum(isinstance(event, Scored) for event in told) == 4


def test_a_sweep_draws_each_cell_as_generate_would(cm3, ranked, tmp_path, capsys):
    path = tmp_path / "sweep.png"
    assert (
        cm3(
            "sweep",
            "red",
            "blue",
            "--vary",
            "sampler.guidance_scale=1,2",
            "--vary",
            "seed=0,4",
            "--score",
            "brightness",
            "--num-retrieved",
            0,
            "-o",
            path,
        )
        == 2
    )
    assert "no reranker is called 'brightness'" in capsys.readouterr().err
    assert (
        cm3(
            "sweep",
            "red",
            "blue",
            "--vary",
            "sampler.guidance_scale=1,2",
            "--vary",
            "seed=0,4",
            "--num-retrieved",
            0,
            "-o",
            path,
        )
        == 0
    )
    sheet = images.open_image(path)
    for down, scale in enumerate((1, 2)):
        for across, seed in enumerate((0, 4)):
            own = ranked.generate(
                ["red", "blue"], 1, seed=seed, guidance_scale=scale, num_retrieved=0
            )
            cell = np.repeat(np.repeat(np.concatenate([one.pixels for one in own]), 16, 0), 16, 1)
            top, left = (
                sheet.shape[0] - (2 - down) * (256 + 6),
                sheet.shape[1] - (2 - across) * (128 + 6),
            )
            assert np.array_equal(sheet[top : top + 256, left : left + 128], cell)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (
            ["foo=1"],
            "--vary foo=1: is not sampler.KEY=A,B,... nor sampler, seed, num_retrieved, "
            "num_candidates, reranker\n"
            "  next: write for instance --vary sampler.guidance_scale=1,1.5,3",
        ),
        (
            ["seed=1,"],
            "--vary seed=1,: is not sampler.KEY=A,B,... nor sampler, seed, num_retrieved, "
            "num_candidates, reranker\n"
            "  next: write for instance --vary sampler.guidance_scale=1,1.5,3",
        ),
        (
            ["seed=1", "seed=2", "seed=3"],
            "--vary: is given 3 times\n  next: vary one key down and at most one across",
        ),
    ],
)
def test_what_can_not_be_varied(cm3, tmp_path, capsys, vary, message):
    options = [part for one in vary for part in ("--vary", one)]
    assert cm3("sweep", "red", *options, "-o", tmp_path / "sweep.png") == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_preview_shows_pictures_growing(cm3, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cm3core.cli._preview.INTERVAL", 0)
    shown = []
    monkeypatch.setattr(
        "cm3core.cli._preview.half_blocks", lambda pictures: shown.append(len(pictures)) or "rows\n"
    )
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert cm3("generate", "red", "--n", 2, "--preview", "-o", tmp_path) == 0
    want = model.generate("red", 2)
    for place in range(2):
        assert np.array_equal(images.open_image(tmp_path / f"{place:03d}.png"), want[place].pixels)
    assert (tmp_path / "preview.png").exists()
    assert len(shown) >= 4
    assert "\x1b[1A\x1b[J" in capsys.readouterr().err


def test_half_blocks_are_two_pixels_a_character():
    from cm3core.cli._preview import half_blocks

    checks = np.zeros((2, 2, 3), np.uint8)
    checks[0, 0] = 255, 0, 0
    text = half_blocks([checks, checks], width=2)
    cell = "\x1b[38;2;255;0;0;48;2;0;0;0m\u2580\x1b[38;2;0;0;0;48;2;0;0;0m\u2580\x1b[0m"
    assert text == f"{cell} {cell}\n"


def test_the_engine_follows_the_decoders_weights(model):
    before = model.generate("red", 1, seed=1)[0]
    weight = model.components.decoder.embed_tokens.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    changed = model.generate("red", 1, seed=1)[0]
    with torch.no_grad():
        weight.copy_(kept)
    assert not np.array_equal(before.codes.codes, changed.codes.codes)
    assert np.array_equal(before.codes.codes, model.generate("red", 1, seed=1)[0].codes.codes)
