"""The words of the training texts: stored with a model, carried on by a run that starts from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Text
from cm3core.errors import CheckpointError
from cm3core.plugins.discovery import load_registry
from cm3kits.samples import ListSource
from cm3plugins.objectives.causal import CausalObjectiveConfig
from cm3run import DEFAULT_MODEL
from cm3run.checkpoint import export_model, find_checkpoint, find_model, latest_checkpoint
from cm3run.checkpoint import words as module
from cm3run.checkpoint.words import TrainingWords, words_of_training
from cm3run.model import load
from cm3run.training import train
from cm3run.training.code_cache import CodeCache
from cm3run.training.sequences import MaskedSequences, SequenceSettings
from cm3run.words import edits, words_of
from tests.fixtures.toy_model import toy_model


def test_words_by_hand():
    assert words_of("Bell-off, Größe_2! «ёж» 鐘の音 ไทย") == [
        *("bell", "off", "grösse", "2", "ёж", "鐘", "の", "音", "ไ", "ท", "ย"),
    ]
    assert words_of("a🚀, ☂\ufe0f 👩\u200d🚀 5★!") == ["a", "🚀", "☂", "👩", "🚀", "5", "★"]
    known = TrainingWords.of(["red bell, outline", "Red apple"])
    assert known.words == {"red", "bell", "outline", "apple"}
    assert list(known.unknown("a RED zebra, zebra with bells")) == ["a", "zebra", "with", "bells"]
    assert [known.nearest(word) for word in ("bells", "aple", "zebra", "")] == [
        *("bell", "apple", None, None)
    ]
    # the singular, not what is spelled more alike
    assert TrainingWords.of(["applets", "apple"]).nearest("apples") == "apple"


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("recieve", "receive"),  # two letters exchanged
        ("bel", "bell"),
        ("moutain", "mountain"),
        ("refridgerater", "refrigerator"),  # two slips, in a long word
        ("launching", None),  # two slips from punching, in a shorter one
        ("orchestra", None),
        ("be", None),  # too short
        ("sefrigeratos", None),  # two slips, the first letter among them
        ("", None),
    ],
)
def test_a_word_is_proposed_for_a_slip_or_two(word, near):
    known = ["receive", "bell", "mountain", "punching", "refrigerator", "bed", "orchard"]
    assert TrainingWords.of(known).nearest(word) == near


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edits_are_a_distance(one, other):
    assert edits(one, other) == edits(other, one)
    assert (edits(one, other) == 0) == (one == other)
    assert edits(one, other) <= max(len(one), len(other))
    assert edits(one + "z", other + "z") == edits(one, other)


@given(st.lists(st.text()))
def test_no_word_of_a_training_text_is_unknown(texts):
    known = TrainingWords.of(texts)
    assert not any(list(known.unknown(text.upper())) for text in texts if text.isascii())
    assert not any(list(known.unknown(text)) for text in texts)


@given(st.lists(st.text()))
def test_words_are_read_as_they_were_written(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("words")
    known = TrainingWords.of(texts)
    known.write(folder)
    assert TrainingWords.read(folder) == known


def test_a_checkpoint_an_export_and_a_model_know_them(small_run, small_registry, tmp_path):
    newest = latest_checkpoint(small_run)
    stored = TrainingWords.read(newest)
    source = load(small_run, registry=small_registry).components.source
    assert stored == TrainingWords.of(source.texts())
    assert stored.words
    export_model(small_run, tmp_path / "model")
    model = load(tmp_path / "model", registry=small_registry)
    word = min(stored.words, key=lambda one: (-len(one), one))
    assert model.unknown_words(f"{word} zebra {word}q") == {"zebra": None, f"{word}q": word}
    (tmp_path / "model" / "words.txt").unlink()
    assert load(tmp_path / "model", registry=small_registry).unknown_words("zebra") == {}


def test_a_run_that_starts_from_a_model_keeps_its_words(
    small_run, small_recipe, small_registry, spoiled, tmp_path
):
    (spoiled / "words.txt").write_text("zebra\n", encoding="utf-8")
    small_recipe.train.start_from = str(spoiled)
    try:
        train(small_recipe, tmp_path / "tuned", small_registry, progress=False)
    finally:
        small_recipe.train.start_from = None
    first = TrainingWords.read(latest_checkpoint(small_run))
    assert TrainingWords.read(latest_checkpoint(tmp_path / "tuned")).words == {
        *first.words,
        "zebra",
    }


def test_what_is_not_wholly_known_is_not_stored(monkeypatch, tmp_path):
    red, two = ListSource([(Text("red"),)]), ListSource([(Text("red"),), (Text("blue"),)])
    assert words_of_training(red, tmp_path) is None, "a checkpoint without a list"
    assert words_of_training(red, None) == TrainingWords.of(["red"])
    monkeypatch.setattr(module, "MAX_TEXTS", 1)
    assert words_of_training(two, None) is None


class Templates(ListSource):
    """Captions that no list of documents shows: "a NAME" in training, "NAME" elsewhere."""

    def _document(self, index, rng):
        [text] = super()._document(index, rng)
        return (text if rng is None else Text(f"a {text.text}"),)


def test_words_are_those_of_the_captions_that_training_draws(toy):
    """Also of the documents in front; not of those that validation reads."""
    sequences = toy(Templates([(Text("apple"),)]))
    assert sequences.words == set()
    sequences.sequence(0, 0)
    assert sequences.words == {"a", "apple"}
    held_out = toy(Templates([(Text("apple"),)]), training=False)
    held_out.sequence(0, 0)
    assert held_out.words == set()


@pytest.fixture
def toy(tmp_path):
    """Makes sequences of a source without pictures."""

    def make(source, training=True):
        parts = toy_model().components
        codes = CodeCache(source, parts.image_tokenizer, tmp_path, progress=False)
        settings = SequenceSettings(
            seed=0, context_length=128, max_text_tokens=32, training=training
        )
        objective = CausalObjectiveConfig().build(parts.vocabulary)
        return MaskedSequences(source, parts.serializer, objective, codes, None, settings)

    return make


def test_a_list_that_cannot_be_read(tmp_path):
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"words\.txt: can't be read \("):
        TrainingWords.read(tmp_path)


def test_the_model_that_is_used_by_default_knows_its_words():
    registry = load_registry()
    words = TrainingWords.read(find_checkpoint(find_model(DEFAULT_MODEL, registry)))
    assert words is not None
    assert list(words.unknown("bell off, outline rounded")) == []
    assert list(words.unknown("potted frob, outline")) == ["potted", "frob"]
