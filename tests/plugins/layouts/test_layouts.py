"""The bundled layouts: the kit's laws, sequences by hand, guidance streams, grids, what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Emu3Processor
from transformers.models.emu3.modeling_emu3 import Emu3ImageVocabularyMapping

from cm3core.document import Codes, Document, ImageHole, MaskedText, Text, TextHole
from cm3core.errors import DocumentError, RecipeError
from cm3core.interfaces.layout import LayoutConfig
from cm3core.interfaces.sampler import ModelParts, PromptVariant
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import Vocabulary
from cm3kits.layout import NUM_CODES, PUBLISHED, LayoutContract, NamedBytes
from cm3plugins.decoders.transformer import codebook_rows
from cm3plugins.layouts.cm3leon import CM3LeonLayoutConfig
from cm3plugins.samplers.patch_knn import PatchKNNSamplerConfig
from cm3published.layouts.chameleon import ChameleonLayoutConfig, LuminaLayoutConfig
from cm3published.layouts.emu3 import Emu3LayoutConfig
from cm3published.layouts.emu3_5 import Emu35LayoutConfig
from cm3published.layouts.llamagen import LlamaGenLayoutConfig
from cm3run.build import layout_of
from cm3run.training.sequences import sequence_length
from layout_parts import GRID, JANUS, LAYOUTS, PICTURE, TOKENIZER, built, refusal, serializer, text
from messages import tells
from profiles import examples

ID = TOKENIZER.special_ids()
S, BEGIN, END, TURN = (ID[name] for name in ("<s>", "<racm3:break>", "<eoss>", "<reserved08706>"))
ROW = ID["<reserved08799>"]
HEIGHT, WIDTH = ID["<reserved08801>"], ID["<reserved08802>"]
CODES = [ID[f"IMGIMG{'ABCDEF'[code]}Z"] for code in PICTURE.codes]


class TestCM3Leon(LayoutContract):
    config = CM3LeonLayoutConfig()


class FewerExamples(LayoutContract):
    """The same laws again."""

    max_examples = examples(8)


class TestChameleon(FewerExamples):
    config = ChameleonLayoutConfig()


class TestLumina(FewerExamples):
    config = LuminaLayoutConfig()


class TestLumina2(FewerExamples):
    """Codes after the ids of texts, four for each 32 pixels."""

    config = LuminaLayoutConfig(codes_per_size=4, first_code=300, vocab_size=306)
    grid = (4, 8)


class TestEmu3(FewerExamples):
    config = Emu3LayoutConfig()


class TestEmu3Chat(FewerExamples):
    config = Emu3LayoutConfig(answer=" ASSISTANT:")


class TestEmu35(FewerExamples):
    config = Emu35LayoutConfig()


class TestLlamaGen(FewerExamples):
    """Texts stand for classes, and are never generated."""

    config = LlamaGenLayoutConfig()

    def text_tokenizer(self) -> TextTokenizer:
        return NamedBytes(())


CASES: list[tuple[LayoutConfig, Document, list[int]]] = [
    (
        ChameleonLayoutConfig(),
        (Text("hi"), PICTURE),
        [S, *text("hi"), TURN, BEGIN, *CODES, END, TURN],
    ),
    (
        ChameleonLayoutConfig(),
        (Text("a"), PICTURE, Text("b"), Text("c")),
        [S, *text("a"), BEGIN, *CODES, END, *text("b"), TURN, *text("c"), TURN],
    ),
    (
        LuminaLayoutConfig(),
        (Text("hi"), PICTURE),
        [S, *text("hi"), TURN, BEGIN, HEIGHT, WIDTH, *CODES[:4], ROW, *CODES[4:], ROW, END, TURN],
    ),
    (
        Emu3LayoutConfig(),
        (Text("hi"), PICTURE),
        [
            151849,
            *text("hi"),
            151852,
            *text("2*4"),
            151851,
            *(151854 + PICTURE.codes[:4]),
            151846,
            *(151854 + PICTURE.codes[4:]),
            151846,
            151847,
            151853,
            151850,
        ],
    ),
    (  # no end of the last row; the ids of the answer before what answers
        Emu35LayoutConfig(),
        (Text("hi"), PICTURE),
        [
            *(151849, *text("hi ASSISTANT: "), 151746),
            *(151852, *text("2*4"), 151851),
            *(*(151854 + PICTURE.codes[:4]), 151846, *(151854 + PICTURE.codes[4:]), 151853),
            *(151747, 151850),
        ],
    ),
]


@pytest.mark.parametrize(("config", "document", "expected"), CASES)
def test_sequences_by_hand(config: LayoutConfig, document: Document, expected: list[int]) -> None:
    own = serializer(config)
    sequence = own.sequence(document)
    assert sequence.tokens.tolist() == expected
    length = sequence_length(document, TOKENIZER, GRID, layout=own.layout)
    assert length == len(expected)


def test_retrieved_documents_are_earlier_turns() -> None:
    own = serializer(ChameleonLayoutConfig())
    sequence = own.sequence((Text("q"), PICTURE), [(Text("r"), PICTURE)])
    pair = [BEGIN, *CODES, END, TURN]
    assert sequence.tokens.tolist() == [S, *text("r"), TURN, *pair, *text("q"), TURN, *pair]
    prompt = own.prompt(
        (Text("q"), ImageHole()), [(Text("r"), PICTURE)], PromptVariant(hide_text="all")
    )
    assert prompt.tokens.tolist() == [S, *text("r"), TURN, *pair, BEGIN]


def test_emu3s_pictures_are_transformers() -> None:
    """The frame as `Emu3Processor` writes it, codes and row ends as `Emu3Model` maps them."""
    names = {"<B>": 151852, "<W>": 151851, "<F>": 151847, "<E>": 151853}
    theirs = SimpleNamespace(
        downsample_ratio=8,
        image_start_token="<B>",
        fake_token_around_image="<W>",
        image_token="<I>",
        eof_token="<F>",
        image_end_token="<E>",
    )
    written = Emu3Processor.replace_image_token(theirs, {"image_sizes": [(16, 32)]}, 0)
    table = {f"<|visual token {code:06d}|>": 151854 + code for code in range(NUM_CODES)}
    mapping = Emu3ImageVocabularyMapping({**table, "<|extra_200|>": 151846, "<image>": 0})
    codes = torch.from_numpy(PICTURE.codes).view(*GRID).long()
    rows = iter(mapping.convert_img2bpe(codes).flatten().tolist())
    expected: list[int] = []
    for piece in re.findall(r"<.>|[^<]+", written):
        one = [next(rows)] if piece == "<I>" else [names[piece]] if piece in names else text(piece)
        expected += one
    sequence = serializer(Emu3LayoutConfig()).sequence((PICTURE,))
    assert sequence.tokens.tolist() == [151849, *expected, 151850]


EDIT: Document = (Text("see"), PICTURE, Text("now blue"), ImageHole())
ALL, NOTHING = PromptVariant("all"), PromptVariant("all", hide_images=True)


@pytest.mark.parametrize(
    ("config", "variant", "expected"),
    [
        (ChameleonLayoutConfig(), ALL, [S, BEGIN, *CODES, END, BEGIN]),
        (ChameleonLayoutConfig(), NOTHING, [S, BEGIN]),
        (
            ChameleonLayoutConfig(),
            PromptVariant("last"),
            [S, *text("see"), BEGIN, *CODES, END, TURN, BEGIN],
        ),
        (
            ChameleonLayoutConfig(),
            PromptVariant("last", replace_text="dog"),
            [S, *text("see"), BEGIN, *CODES, END, *text("dog"), TURN, BEGIN],
        ),
        (LuminaLayoutConfig(), ALL, [BEGIN, HEIGHT, WIDTH]),
        (Emu3LayoutConfig(), NOTHING, [151849, 151852, *text("2*4"), 151851]),
    ],
)
def test_what_guidance_streams_see(
    config: LayoutConfig, variant: PromptVariant, expected: list[int]
) -> None:
    assert serializer(config).prompt(EDIT, variant=variant).tokens.tolist() == expected


def test_lumina_answers_in_text_without_text() -> None:
    """Only a picture can begin a sequence: a text to be written has `<s>` before it."""
    prompt = serializer(LuminaLayoutConfig()).prompt((Text("a"), TextHole(3)), variant=ALL)
    assert prompt.tokens.tolist() == [S]


def test_a_picture_continues_behind_its_row() -> None:
    """Known codes are in the prompt with the ends of their rows; the next ones come from the grammar."""
    missing = np.arange(8) >= 3
    prompt = serializer(LuminaLayoutConfig()).prompt((Codes(PICTURE.codes, GRID, missing),))
    assert prompt.tokens.tolist() == [S, BEGIN, HEIGHT, WIDTH, *CODES[:3]]
    later = serializer(LuminaLayoutConfig()).prompt(
        (Codes(PICTURE.codes, GRID, np.arange(8) >= 4),)
    )
    assert later.tokens.tolist() == [S, BEGIN, HEIGHT, WIDTH, *CODES[:4], ROW]


def test_completion_continues_a_text() -> None:
    prompt = serializer(ChameleonLayoutConfig()).prompt((MaskedText(("once", TextHole(3))),))
    assert prompt.tokens.tolist() == [S, *text("once")]
    assert prompt.holes[0].ends_with == TURN


def test_codes_are_found_by_name_in_any_order() -> None:
    names = [name for name in PUBLISHED if not name.startswith("IMGIMG")]
    shuffled = [*names, *(f"IMGIMG{letter}Z" for letter in "CAFBED")]
    tokenizer = NamedBytes(shuffled)
    own = serializer(ChameleonLayoutConfig(), tokenizer=tokenizer)
    assert not own.vocabulary.codes_in_order
    ids = tokenizer.special_ids()
    sequence = own.sequence((PICTURE,))
    expected = [ids[f"IMGIMG{'ABCDEF'[code]}Z"] for code in PICTURE.codes]
    assert sequence.tokens[2:-2].tolist() == expected
    assert own.documents(sequence) == [(PICTURE,)]


def test_embeddings_start_in_the_order_of_ids() -> None:
    special = {"pad": 0}
    ordered = Vocabulary(10, (), [4, 5, 6], special)
    turned = Vocabulary(10, (), [6, 4, 5], special)
    codebook = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    rows, own = (codebook_rows(codebook, one, 4, 1.0) for one in (ordered, turned))
    assert torch.equal(own[turned.of_codes(np.arange(3)) - 4], rows)


def test_patch_knn_refuses_codes_in_another_order() -> None:
    vocabulary = Vocabulary(10, (), [6, 4, 5], {"pad": 0})
    parts = ModelParts(_Codebook(), vocabulary, lambda: None)
    assert tells(
        refusal(lambda: PatchKNNSamplerConfig().build_for(parts)), "sampler: patch_knn needs image"
    )


def without(*names: str) -> NamedBytes:
    return NamedBytes([name for name in PUBLISHED if name not in names])


def test_foreign_tokenizers_are_refused() -> None:
    assert tells(
        refusal(lambda: built(ChameleonLayoutConfig(), tokenizer=without("<eoss>"))),
        "layout: needs the token '<eoss>'",
    )
    assert tells(
        refusal(lambda: built(ChameleonLayoutConfig(), tokenizer=without("IMGIMGCZ"))),
        "layout: needs 6 image ... names 5 ... not 2",
    )
    small = ChameleonLayoutConfig(vocab_size=20)
    assert "in a table of 20" in refusal(lambda: built(small))


def test_grids_that_lumina_cant_write_are_refused() -> None:
    for grid in ((3, 4), (2, 40)):
        assert tells(
            refusal(lambda grid=grid: built(LuminaLayoutConfig(), grid)),
            f"layout lumina: a picture of {grid[0]} ... {grid[1]} ... 32",
        )


def test_impossible_keys_are_refused() -> None:
    assert refusal(ChameleonLayoutConfig(code="IMG").check) == (
        "layout.code: is 'IMG', must be an expression with one group"
    )
    assert refusal(LuminaLayoutConfig(size="<size>").check) == (
        "layout.size: is '<size>', must be a name with {:05d}"
    )


def test_holes_elsewhere_are_refused_with_the_layouts_name() -> None:
    own = serializer(ChameleonLayoutConfig())
    with pytest.raises(DocumentError) as caught:
        own.prompt((TextHole(3), PICTURE))
    assert tells(caught.value, "query document: has a hole ... 'chameleon'")


def test_damaged_sequences_are_refused() -> None:
    own = serializer(ChameleonLayoutConfig())
    tokens = own.sequence((Text("a"), PICTURE)).tokens
    assert tells(
        refusal(lambda: own.documents(tokens[1:])),
        "sequence: does not start ... <s> ... <reserved08706>",
    )
    assert refusal(lambda: own.documents(np.delete(tokens, 6))) == (
        "layout chameleon: a picture is not whole, at image:0"
    )


@pytest.mark.parametrize("objective", ["cm3", "fim"])
def test_objectives_that_mask_need_sentinels(objective: str) -> None:
    tokens = ["text_tokenizer=hf", "text_tokenizer.path=tokenizer.json"]
    overrides = [*tokens, "layout=chameleon", f"objective={objective}"]
    recipe = compose("tiny", registry=load_registry(), overrides=overrides)
    with pytest.raises(RecipeError) as caught:
        recipe.check()
    assert tells(caught.value, f"objective: '{objective}' masks spans ... 'chameleon'")


def test_a_recipe_that_names_cm3leons_layout_has_the_same_ids() -> None:
    registry = load_registry()
    plain = compose("tiny", registry=registry)
    named = compose("tiny", registry=registry, overrides=["layout=cm3leon"])
    assert plain.layout is None
    assert plain.hash == replace(named, layout=None).hash
    layouts = [layout_of(one, TOKENIZER, _Codebook(), registry) for one in (plain, named)]
    assert layouts[0].vocabulary.to_dict() == layouts[1].vocabulary.to_dict()
    documents = [
        Serializer(one.vocabulary, TOKENIZER, GRID, layout=one).sequence((Text("a"), PICTURE))
        for one in layouts
    ]
    assert documents[0].tokens.tolist() == documents[1].tokens.tolist()
    assert [one.fingerprint for one in layouts] == ["", ""]


class _Codebook:
    codebook_size, grid = NUM_CODES, GRID


def test_every_layout_has_its_name() -> None:
    for name, config in LAYOUTS.items():
        tokens = JANUS if name == "janus" else PUBLISHED
        grid = (1, 1280) if name == "glm_image" else GRID
        assert built(config(), grid, NamedBytes(tokens)).name == name


def test_given_ids_must_not_collide() -> None:
    text_ids = (range(10, 20),)
    for arguments, cause in [
        ((30, text_ids, range(19, 22), {"pad": 0}), "uses the id 19 twice"),
        ((30, text_ids, [4, 6], {"pad": 0}), "has image codes with gaps: 2 in 4..6"),
        ((20, text_ids, range(20, 22), {"pad": 0}), "has ids up to 21 in a table of 20"),
        ((30, text_ids, range(4), {"s": 5}), "lacks the id of padding"),
    ]:
        assert refusal(lambda arguments=arguments: Vocabulary(*arguments)) == (
            f"vocabulary: {cause}"
        )
    given = Vocabulary(30, text_ids, range(4), {"pad": 5})
    assert refusal(lambda: given.eos).startswith("vocabulary: has no sentinels")
