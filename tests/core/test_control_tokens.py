"""Control tokens of an objective's own: in the vocabulary, in training, in prompts, in checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ul2_plugin
from cm3core.document import NO_CELL, MaskedSequence, Text, TextHole
from cm3core.errors import CheckpointError, DocumentError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3core.sequence import prefixed, unmask
from cm3core.sequence.serialize import Serializer
from cm3kits.objective import ObjectiveContract
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3run.checkpoint import latest_checkpoint
from cm3run.generation.engine import Engine, Request
from cm3run.model import Model
from cm3run.model.model import load
from cm3run.training import train
from engine_parts import GRID, REQUESTS, VOCABULARY, WARM, LetterTokenizer
from profiles import examples
from ul2_plugin import UL2Config

WITH_MODES = VOCABULARY.with_control(("R", "S", "X"))
SERIALIZER = Serializer(WITH_MODES, LetterTokenizer(), GRID, UL2Config().prompt_tokens)
PARTS = Path(__file__).parents[1] / "fixtures" / "train"


def test_a_vocabulary_without_them_is_as_it_was() -> None:
    """Fingerprints and values as the releases before wrote them."""
    paper = CM3LeonVocabulary(56_320, 8_192, 512, 1_024)
    assert paper.fingerprint == "1d008e05ef5a421f"
    assert CM3LeonVocabulary(64, 16, 8).fingerprint == "9675870e74905d65"
    assert list(paper.to_dict()) == [
        "num_text",
        "num_image",
        "num_sentinels",
        "num_reserved",
        "multiple_of",
    ]


def test_they_follow_all_other_ids() -> None:
    vocabulary = CM3LeonVocabulary(64, 16, 4, control=("R", "X"))
    plain = CM3LeonVocabulary(64, 16, 4)
    assert vocabulary.sentinels == plain.sentinels
    assert list(vocabulary.control_ids) == [86, 87]
    assert vocabulary.control_id("X") == 87
    assert [vocabulary.name(token) for token in (85, 86, 87, 88)] == [
        "<sentinel:3>",
        "<R>",
        "<X>",
        "<unused:88>",
    ]
    assert vocabulary.size == 88
    assert CM3LeonVocabulary(64, 16, 4, control=("R", "X", "S")).size == 96
    assert vocabulary.fingerprint != plain.fingerprint
    assert json.loads(json.dumps(vocabulary.to_dict())) == vocabulary.to_dict()
    assert vocabulary.to_dict()["control"] == ["R", "X"]


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (("R", "R"), "the name is taken"),
        (("eos",), "the name is taken"),
        (("<R>",), "is not a plain name"),
        (("",), "is not a plain name"),
    ],
)
def test_names_that_cannot_be_are_refused(names: tuple[str, ...], cause: str) -> None:
    with pytest.raises(DocumentError) as error:
        CM3LeonVocabulary(64, 16, control=names)
    assert error.value.cause == cause


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(DocumentError, match="is not in the vocabulary\n  next: name it in"):
        VOCABULARY.control_id("R")
    with pytest.raises(DocumentError, match="is not in the vocabulary"):
        WITH_MODES.control_id("Q")


def test_a_prefix_has_no_loss_and_is_not_of_the_document() -> None:
    tokens = np.array([2, 5, 6, 2], np.int32)
    masked = MaskedSequence(tokens, np.full(4, NO_CELL, np.int32), np.ones(4, np.float32))
    own = prefixed(masked, [WITH_MODES.control_id("S")])
    assert own.tokens.tolist() == [2, WITH_MODES.control_id("S"), 5, 6, 2]
    assert own.weights.tolist() == [1, 0, 1, 1, 1]
    assert own.cells.tolist() == [NO_CELL] * 5
    assert unmask(own, WITH_MODES).tolist() == tokens.tolist()


class TestUL2(ObjectiveContract):
    config = UL2Config()
    max_examples = examples(8)


def test_prompts_begin_with_them() -> None:
    continuation, infill = (
        SERIALIZER.prompt((Text("ab"), TextHole(2))),
        SERIALIZER.prompt((TextHole(2), Text("ab"))),
    )
    assert [WITH_MODES.name(int(token)) for token in continuation.tokens[:2]] == ["<eos>", "<S>"]
    assert [WITH_MODES.name(int(token)) for token in infill.tokens[:2]] == ["<eos>", "<R>"]
    asked = SERIALIZER.prompt((Text("ab"), TextHole(2)), control=("X",))
    assert WITH_MODES.name(int(asked.tokens[1])) == "<X>"
    plain = Serializer(WITH_MODES, LetterTokenizer(), GRID).prompt((Text("ab"), TextHole(2)))
    none = SERIALIZER.prompt((Text("ab"), TextHole(2)), control=())
    assert none.tokens.tolist() == plain.tokens.tolist()
    assert np.delete(continuation.tokens, 1).tolist() == plain.tokens.tolist()


def test_a_request_may_choose_them_and_none_is_ever_drawn() -> None:
    config = CM3LeonConfig(num_layers=1, d_model=32, num_heads=2, context_length=64)
    decoder = config.build(WITH_MODES, SDPAAttentionConfig().build(), GRID).eval()
    for parameter in decoder.parameters():
        parameter.data.normal_(std=0.5)
    engine = Engine(decoder, SERIALIZER, WARM.build(), WITH_MODES)
    asked = [replace(one, control=control) for one in REQUESTS for control in (None, ("X",), ())]
    found = engine.complete(asked)
    assert len({str(one.document) for one in found}) > len(REQUESTS)
    with pytest.raises(DocumentError, match="control token 'Q'"):
        engine.complete([Request((Text("a"), TextHole(2)), control=("Q",))])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    registry = load_registry([PARTS / "train_parts.py", Path(ul2_plugin.__file__)], environ={})
    recipe = compose(
        str(PARTS / "squares.yaml"),
        [
            f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
            "train.steps=2",
            "train.validation_splits=[]",
            "objective=ul2",
        ],
        registry=registry,
    )
    out = tmp_path_factory.mktemp("run") / "out"
    train(recipe, out, registry, progress=False)
    return out


def loaded(run: Path) -> Model:
    registry = load_registry([PARTS / "train_parts.py", Path(ul2_plugin.__file__)], environ={})
    return load(run, registry=registry)


@pytest.mark.slow
def test_a_checkpoint_has_them(run: Path) -> None:
    newest = latest_checkpoint(run)
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())
    assert state["vocabulary"]["control"] == ["R", "S", "X"]
    model = loaded(run)
    vocabulary = model.components.vocabulary
    assert vocabulary.control == ("R", "S", "X")
    prompt = model.components.serializer.prompt((Text("a"), TextHole(2)))
    assert vocabulary.name(int(prompt.tokens[1])) == "<S>"


def test_another_objective_has_another_vocabulary(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    newest = latest_checkpoint(run)
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())
    del state["vocabulary"]["control"]
    (newest / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"control None there, \['R', 'S', 'X'\] here"):
        loaded(run)
