"""`mixture`: shares by hand and by property, orders, what it refuses, and a run that counts its parts."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cm3core.document import Image, MaskedSequence, Text
from cm3core.errors import CheckpointError, DataError, GenerationError, RecipeError
from cm3core.interfaces import DocumentSourceConfig, SkippedRecord
from cm3core.interfaces.dataset import TaskSource
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3kits.dataset import DocumentSourceContract
from cm3kits.samples import ListSource
from cm3plugins.datasets.mixture import (
    MixtureConfig,
    MixtureSource,
    counts_of,
    drawn_records,
    part_order,
)
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.tasks.bundled import CaptionConfig, QuestionConfig, TextToImageConfig
from cm3run.build import build
from cm3run.checkpoint import find_checkpoint, read_tasks
from cm3run.model import load
from cm3run.training import train
from cm3run.training.packing import BatchLoader, RowSettings
from cm3run.training.preparation import Preparation
from cm3run.training.sequences import MaskedSequences
from messages import tells

PAPER = (0.3, 3.0)


def texts(name: str, number: int) -> ListSource:
    return ListSource([(Text(f"{name} {place}"),) for place in range(number)])


def test_shares_by_hand() -> None:
    """A hundred records: 90 and 10 in equal shares would draw the ten five times, so three times."""
    assert counts_of([90, 10], [1, 1], PAPER).tolist() == [70, 30]
    assert counts_of([90, 10], [90, 10], PAPER).tolist() == [90, 10]
    assert counts_of([90, 10], [1, 0.001], PAPER).tolist() == [97, 3]
    assert counts_of([50, 50], [3, 1], (0, 1e6)).tolist() == [75, 25]
    # shares that no float holds beside each other
    assert counts_of([10, 10], [1e-320, 1], PAPER).tolist() == [3, 17]
    assert counts_of([10, 10], [1e308, 1e308], PAPER).tolist() == [10, 10]
    assert counts_of([10, 10], [0, 1], (0, 3)).tolist() == [0, 20]
    # the first is held at 3, the last at 0.3; what is left is the second's
    assert counts_of([10, 60, 30], [90, 9, 1], PAPER).tolist() == [30, 61, 9]


@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(0.001, 1000)), min_size=1, max_size=6),
    st.tuples(st.floats(0, 1), st.floats(1, 10)),
)
def test_counts_fill_an_epoch_within_the_clip(parts, clip) -> None:
    sizes, shares = [size for size, _ in parts], [share for _, share in parts]
    counts = counts_of(sizes, shares, clip)
    assert counts.sum() == sum(sizes)
    ratios = counts / sizes
    slack = 1 / np.array(sizes)
    assert (ratios >= clip[0] - slack).all()
    assert (ratios <= clip[1] + slack).all()
    # two parts that are not held have the shares that were asked for
    free = [
        place
        for place, ratio in enumerate(ratios)
        if clip[0] + 2 * slack[place] < ratio < clip[1] - 2 * slack[place]
    ]
    for one, other in pairwise(free):
        wanted = shares[one] / shares[other]
        low = (counts[one] - 1) / (counts[other] + 1)
        high = (counts[one] + 1) / max(counts[other] - 1, 1e-9)
        assert low <= wanted * (1 + 1e-6)
        assert high >= wanted * (1 - 1e-6)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
@example([900, *[1] * 99])
@example([700, 700, 700, 30, 30, 30])
def test_any_beginning_has_the_shares(counts) -> None:
    """To less than one document: the bound of Tijdeman's chairman assignment, the least that there is."""
    order = part_order(np.array(counts))
    seen = np.cumsum(order[:, None] == np.arange(len(counts)), axis=0)
    assert seen[-1].tolist() == counts
    wanted = np.arange(1, len(order) + 1)[:, None] * np.array(counts) / sum(counts)
    assert np.abs(seen - wanted).max() <= 1 - 1 / max(2 * len(counts) - 2, 1) + 1e-9


@given(st.integers(1, 20), st.integers(0, 50), st.integers(1, 50), st.integers(0, 3))
def test_records_come_once_before_any_comes_again(size, start, number, seed) -> None:
    drawn = drawn_records(size, start, start + number, (seed, 0))
    whole = drawn_records(size, 0, start + number, (seed, 0))
    assert drawn.tolist() == whole[start:].tolist()
    for first in range(0, len(whole) - size + 1, size):
        assert sorted(whole[first : first + size].tolist()) == list(range(size))


def test_an_epoch() -> None:
    source = MixtureSource({"a": texts("a", 90), "b": texts("b", 10)}, [1, 1], PAPER)
    order = source.epoch_order(3, 0)
    assert len(order) == len(source) == 100
    parts = Counter(source.parts[source.part(int(index))] for index in order)
    assert parts == {"a": 70, "b": 30}
    counted = Counter(order.tolist())
    assert {counted[index] for index in range(90, 100)} == {3}
    assert {counted[index] for index in range(90)} == {0, 1}
    assert order.tolist() == source.epoch_order(3, 0).tolist()
    assert order.tolist() != source.epoch_order(4, 0).tolist()
    # what the first epoch left out comes in the second
    again = set(source.epoch_order(3, 1).tolist())
    assert {index for index in range(90) if not counted[index]} <= again
    assert source.id(95) == f"b/{source.sources[1].id(5)}"


class Few(DocumentSourceConfig):
    """Texts for tests; not a component of a plugin."""

    splits = ("train", "comp")
    number = 4

    def build(self):
        return texts(self.split, self.number)


class Empty(Few):
    number = 0


def test_splits() -> None:
    plain = type("Plain", (Few,), {"splits": ("train",)})
    config = MixtureConfig(split="comp", parts={"a": plain(), "b": Few()})
    source = config.build()
    assert source.document(0) == (Text("comp 0"),)
    assert source.parts == ("a", "b")
    assert source.part(0) == 1  # as in training
    with pytest.raises(DataError, match="no part has a split 'unseen'"):
        MixtureConfig(split="unseen", parts={"a": Few()}).build()


def test_sampling() -> None:
    many = type("Many", (Few,), {"number": 64})
    parts = {"a": many(), "b": Few()}
    free = {"clip": [0.0, 1e6]}
    for keys, counts in (
        ({}, [64, 4]),
        ({"sampling": "temperature", "temperature": 2.0}, [54, 14]),  # 8 to 2
        ({"sampling": "explicit", "weights": {"a": 1.0, "b": 3.0}}, [17, 51]),
        ({"weights": {"b": 2.0}}, [60, 8]),
        # 64 to the power of 1,000 is no float
        ({"sampling": "temperature", "temperature": 1e-3, "clip": [0.25, 3.0]}, [67, 1]),
    ):
        source = MixtureConfig(parts=parts, **{**free, **keys}).build()
        assert source.counts_D.tolist() == counts


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"parts": {}}, "dataset.parts: has 0 data sets"),
        ({"weights": {"c": 1.0}}, "dataset.weights: there is no part 'c'"),
        ({"tasks": {"c": QuestionConfig()}}, "dataset.tasks: there is no part 'c'"),
        ({"sampling": "explicit"}, "dataset.weights: has none for the part 'a'"),
        ({"weights": {"a": 0.0, "b": 0.0}}, "dataset.weights: is {'a': 0.0, 'b': 0.0}"),
        ({"weights": {"a": 0.0}}, "dataset.weights.a: is 0.0"),
        ({"memory": "c"}, "dataset.memory: there is no part 'c'"),
        ({"retrieving": ["a", "c"]}, "dataset.retrieving: there is no part 'c'"),
        ({"clip": [2.0, 3.0]}, "dataset.clip: is [2.0, 3.0]"),
    ],
)
def test_what_is_refused(keys, message) -> None:
    with pytest.raises(RecipeError) as error:
        MixtureConfig(**{"parts": {"a": Few(), "b": Few()}, **keys}).check()
    assert str(error.value).startswith(message)


def test_parts_without_records() -> None:
    with pytest.raises(DataError, match=r"dataset\.parts\.b: has no record in split 'train'"):
        MixtureConfig(parts={"a": Few(), "b": Empty()}).build()
    with pytest.raises(DataError) as error:
        MixtureConfig(parts={"a": Few()}, tasks={"a": QuestionConfig()}).build()
    assert tells(error.value, "dataset.parts.a: has no usable record; the first")
    # records that were bad before are not why a task can use none
    broken = SkippedRecord("a.png", "is broken", "mend it")
    some = type("Some", (ListSource,), {"skipped": [broken]})([(Text("a"),)])
    first, second = TaskSource(some, QuestionConfig().build()).skipped
    assert first.cause == "has no field 'image'"
    assert second == broken
    with pytest.raises(DataError, match=r"dataset\.parts\.b: its share is less than one of the 8"):
        MixtureConfig(parts={"a": Few(), "b": Few()}, weights={"b": 0.001}, clip=[0.0, 3.0]).build()


class TestContract(DocumentSourceContract):
    def make(self):
        pictures = ListSource(
            [(Text("c"), Image("one", lambda: np.zeros((4, 4, 3), np.uint8))), (Text("d"),)]
        )
        return MixtureSource({"a": texts("a", 5), "b": pictures}, [1, 1], PAPER)


def test_one_part_is_the_memory() -> None:
    drawn = Few()
    config = MixtureConfig(parts={"a": drawn, "b": Few()}, memory="a")
    assert config.memory_config() is drawn
    source = config.build()
    assert [source.retrieves(index) for index in range(8)] == [True] * 4 + [False] * 4
    other = MixtureConfig(parts={"a": drawn, "b": Few()}, memory="a", retrieving=["b"])
    assert other.memory_config() is drawn
    crossed = other.build()
    assert [crossed.retrieves(index) for index in range(8)] == [False] * 4 + [True] * 4
    assert crossed.documents_fingerprint != source.documents_fingerprint
    alone = MixtureConfig(parts={"a": drawn, "b": Few()})
    assert alone.memory_config() is alone
    assert all(alone.build().retrieves(index) for index in range(8))
    # neighbours are kept on disk by this name
    assert source.documents_fingerprint != alone.build().documents_fingerprint
    weighted = MixtureConfig(
        parts={"a": drawn, "b": Few()}, memory="a", sampling="explicit", weights={"a": 1, "b": 2}
    ).build()
    assert weighted.content_fingerprint != source.content_fingerprint, "a resumed run must notice"
    assert weighted.documents_fingerprint == source.documents_fingerprint


@pytest.mark.slow
def test_only_that_part_has_documents_in_front(tmp_path) -> None:
    """And they come from its data set, also in another split than that of training."""
    (tmp_path / "mixed.yaml").write_text(
        RECIPE.replace("  weights:", "  memory: draw\n  weights:")
        + "retriever: {name: bm25, num_retrieved: 1}\ngenerate: {memory_split: all}\n"
    )
    registry = load_registry()
    recipe = compose(str(tmp_path / "mixed.yaml"), SMALL, registry=registry)
    components = build(recipe, registry, stage="train")
    assert len(components.memory) == len(components.source.sources[0])
    assert len(components.memory_of_split("all")) > len(components.memory)
    preparation = Preparation(components, progress=False)
    sequences = preparation.sequences(
        components.source, components.objective, retrieve=True, training=False
    )
    pictures = Counter()
    for index in range(len(sequences)):
        place = int(sequences.indices[index])
        part = components.source.parts[components.source.part(place)]
        pictures[part, len(sequences.retrieved.best(place))] += 1
    assert set(pictures) == {("draw", 1), ("name", 0)}


def test_a_task_is_retrieved_for_by_what_its_prompt_gives() -> None:
    """Not by its answer, which a prompt lacks; by pictures where it gives some, as prompts are."""
    shown = Image("one", lambda: np.zeros((4, 4, 3), np.uint8))
    asked = ListSource([(Text("a bell"), shown)])
    described = TaskSource(asked, CaptionConfig().build())
    assert described.query(0) == (shown,)
    drawn = TaskSource(asked, TextToImageConfig().build())
    assert drawn.query(0) == (Text("a bell"),)
    mixed = MixtureSource({"a": described, "b": drawn, "c": asked}, [1, 1, 1], PAPER)
    assert [mixed.query(index) for index in range(3)] == [
        (shown,),
        (Text("a bell"),),
        (Text("a bell"), shown),
    ]


RECIPE = """
extends: [tiny]
dataset:
  name: mixture
  parts:
    draw: {name: emoji, concepts: quickstart, styles: [noto]}
    name: {name: emoji, concepts: quickstart, styles: [twemoji]}
  tasks: {name: caption}
  weights: {name: 2}
"""
SMALL = (
    "train.steps=4",
    "train.log_every_steps=2",
    "train.batch_rows=2",
    "decoder.num_layers=1",
    "decoder.d_model=32",
    "decoder.num_heads=1",
    "train.validation_documents=4",
    "train.num_threads=1",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "mixed.yaml").write_text(RECIPE)
    registry = load_registry()
    recipe = compose(str(folder / "mixed.yaml"), SMALL, registry=registry)
    train(recipe, folder / "run", registry, progress=False)
    return folder, registry


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_losses_and_counts_of_the_parts(run) -> None:
    lines = [line for line in metrics(run[0] / "run") if "train/loss" in line]
    last = lines[-1]
    for name in ("draw", "name"):
        assert 0 < last[f"train/part/{name}/loss"] < 20
    assert last["train/part/draw/documents"] > 0
    assert last["train/part/name/documents"] > last["train/part/draw/documents"]
    both = [last[f"train/part/{name}/loss"] for name in ("draw", "name")]
    assert min(both) <= last["train/loss"] <= max(both)


class Sequences:
    """What a loader takes of `MaskedSequences`: each sequence is its epoch and index."""

    def __init__(self, source: MixtureSource) -> None:
        self.source, self.num_too_long = source, 0
        self.indices = np.arange(len(source))
        self.serializer = SimpleNamespace(vocabulary=CM3LeonVocabulary(200, 8, 4))

    epoch_order = MaskedSequences.epoch_order
    stream_order = MaskedSequences.stream_order

    def __len__(self) -> int:
        return len(self.source)

    def sequence(self, epoch: int, index: int) -> MaskedSequence:
        tokens = np.array([epoch, index, 1], np.int32)
        part = self.source.part(index % len(self))
        return MaskedSequence(tokens, np.full(3, -1, np.int32), np.ones(3, np.float32), part)


def test_a_loader_resumes_and_counts() -> None:
    source = MixtureSource({"a": texts("a", 15), "b": texts("b", 5)}, [1, 1], PAPER)
    loader = BatchLoader(Sequences(source), RowSettings(2, 6, seed=0))
    for _ in range(12):
        next(loader)
    state = json.loads(json.dumps(loader.state_dict()))
    assert sum(state["counts"]) == 12 * 2 * 3
    assert abs(state["counts"][0] - state["counts"][1]) < 70  # half of each, the window's apart
    again = BatchLoader(Sequences(source), RowSettings(2, 6, seed=0))
    again.load_state_dict(state)
    for _ in range(12):
        one, other = next(loader), next(again)
        assert one.tokens_BT.tolist() == other.tokens_BT.tolist()
        assert one.modality_BT.tolist() == other.modality_BT.tolist()
    assert again.counts == loader.counts
    assert {int(value) // 4 for value in one.modality_BT.flatten()} == {0, 1}
    for wrong in ([1], [1, -1], "many"):
        with pytest.raises(CheckpointError, match="has an impossible value of 'counts'"):
            again.load_state_dict({**state, "counts": wrong})


def test_a_record_that_comes_again_is_drawn_anew() -> None:
    source = MixtureSource({"a": texts("a", 15), "b": texts("b", 5)}, [1, 1], PAPER)
    order = Sequences(source).epoch_order(0, 0)
    assert len(set(order.tolist())) == len(order) == 20
    assert Counter((order % 20 >= 15).tolist()) == {False: 10, True: 10}


@pytest.mark.slow
def test_a_model_knows_what_it_was_tuned_for(run) -> None:
    folder, registry = run
    tuned = read_tasks(find_checkpoint(folder / "run"), registry)
    assert list(tuned.configs) == ["caption"]
    assert tuned.plain
    assert tuned.lost == {}
    model = load(folder / "run")
    assert model.tasks.names == ["caption"]
    job, _ = model.caption_jobs([np.zeros((8, 8, 3), np.uint8)])
    assert job[0].requests[0].document[1] == Text("Describe the given picture.")
    assert next(model.image_jobs("a bell", 1)[0]).requests[0].document[0] == Text("a bell")
    with pytest.raises(GenerationError) as error:
        model.edit(np.zeros((8, 8, 3), np.uint8), "red")
    assert tells(error.value, "task edit: the model was not tuned for ... docs/tuning.md")
    jobs, _ = model.edit_jobs(np.zeros((8, 8, 3), np.uint8), "red", 1, force=True)
    assert next(jobs).requests[0].document[2] == Text("red")
    with pytest.raises(GenerationError, match="task grounding: the model was not tuned for it"):
        model.do("grounding", {"phrase": "bell"})
    answer = model.do("caption", {"image": np.zeros((8, 8, 3), np.uint8)}, max_tokens=3)
    assert list(answer) == ["caption"]
