"""Batches that resume, and their speed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import IntArray, PixelArray
from cm3core.errors import CheckpointError, DataError, RecipeError
from cm3core.sequence import unmask
from cm3core.sequence.serialize import Serializer
from cm3plugins.objectives.cm3 import CM3ObjectiveConfig
from cm3plugins.text_tokenizers.byte import ByteTokenizer
from cm3run.processes import Processes
from cm3run.training.ahead import AheadLoader
from cm3run.training.code_cache import CodeCache
from cm3run.training.neighbours import NeighbourSettings, NeighbourTable, Queries
from cm3run.training.packing import (
    BatchLoader,
    RowSettings,
    TrainingBatch,
    micro_batches,
    note_on_streams,
    streams_of_new_run,
)
from cm3run.training.sequences import MaskedSequences, RetrievedDocuments, SequenceSettings
from messages import tells
from numbered_documents import VOCABULARY, Following, Numbers, Quadrants, make_data


def test_an_epoch_has_every_sequence_once(tmp_path: Path) -> None:
    data = make_data(tmp_path, num_retrieved=0)
    loader = BatchLoader(data, RowSettings(4, 80, seed=0, window=1))
    seen = []
    while loader.epoch < 2:
        batch = next(loader)
        for row, starts in zip(batch.tokens_BT.tolist(), batch.positions_BT.tolist(), strict=True):
            bounds = [
                place
                for place, position in enumerate(starts)
                if position == 0 and row[place] != VOCABULARY.pad
            ]
            seen += [row[start + 1 : row.index(VOCABULARY.break_, start)] for start in bounds]
    names = [bytes(token - 4 for token in tokens).decode().split()[1] for tokens in seen]
    for epoch in range(2):
        assert sorted(names[20 * epoch : 20 * epoch + 20], key=int) == [
            str(index) for index in range(20)
        ]
    assert names[:20] != names[20:40]


def equal(left: TrainingBatch, right: TrainingBatch) -> bool:
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in vars(left))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_batches_go_on_bit_for_bit(tmp_path: Path, pack: bool, stop: int) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(make_data(tmp_path), RowSettings(3, 90, seed=5, pack=pack, window=6))

    whole, first, second = loader(), loader(), loader()
    for _ in range(stop):
        assert equal(next(whole), next(first))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(9):
        assert equal(next(whole), next(second))


class Repeating(Numbers):
    """An order of the source's own, in which some documents come again and one never does."""

    def epoch_order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng((seed, epoch)).integers(1, len(self), 3 * len(self))


def test_documents_that_come_again_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    """What waits may be a document's second or third time, whose number is above all documents'."""

    def loader() -> BatchLoader:
        data = make_data(tmp_path, num_retrieved=0, source=Repeating(20))
        return BatchLoader(data, RowSettings(3, 90, seed=5, window=20))

    whole = loader()
    for _ in range(4):
        next(whole)
    state = whole.state_dict()
    assert max(index for _, index in state["waiting"]) >= 20
    resumed = loader()
    resumed.load_state_dict(json.loads(json.dumps(state)))
    for _ in range(9):
        assert equal(next(whole), next(resumed))


class Short(Numbers):
    """Two documents an epoch."""

    def epoch_order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        return np.arange(2)


def test_an_epoch_that_is_too_short_for_the_streams_is_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path, num_retrieved=0, source=Short(20))
    with pytest.raises(DataError) as caught:
        BatchLoader(data, RowSettings(3, 90, seed=5, num_streams=3))
    assert tells(caught.value, "data set: epoch 0 has 2 ... data.num_streams 3")


# Documents that are skipped or cut are the case that is tested.
@pytest.mark.filterwarnings("ignore:document n1. is skipped", "ignore:.*were too long")
def test_batches_with_substitutes_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(
            make_data(tmp_path, context_length=14, num_retrieved=0),
            RowSettings(3, 90, seed=5, window=6),
        )

    whole = loader()
    state, rest = {}, []
    for number in range(12):
        if number == 5:
            state = whole.state_dict()
        batch = next(whole)
        if number >= 5:
            rest.append(batch)
    assert whole.data.num_too_long == 10
    resumed = loader()
    resumed.load_state_dict(state)
    assert all(equal(next(resumed), batch) for batch in rest)


def test_the_number_of_documents_that_are_too_long_is_reported_after_an_epoch(
    tmp_path: Path,
) -> None:
    loader = BatchLoader(
        make_data(tmp_path, context_length=14, num_retrieved=0),
        RowSettings(1, 90, seed=5, pack=False),
    )
    with pytest.warns(UserWarning, match="of 20 documents were too long for the context"):
        _ = [next(loader) for _ in range(len(loader.data) + 1)]


def test_streams_share_an_epoch(tmp_path: Path) -> None:
    loader = BatchLoader(make_data(tmp_path), RowSettings(2, 90, seed=0, num_streams=3))
    orders = [stream.order for stream in loader.streams.values()]
    assert [len(order) for order in orders] == [6, 6, 6]
    assert len(set().union(*orders)) == 18
    with pytest.raises(DataError) as caught:
        BatchLoader(make_data(tmp_path), RowSettings(2, 90, seed=0, num_streams=21))
    assert tells(caught.value, "data set: has 20 documents ... data.num_streams 21")


class OneOf(Processes):
    """Process `rank` of several; what all of them give is known."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.given: list[Any] = []

    def all_of(self, value: Any) -> list[Any]:
        assert value == self.given[self.rank]
        return self.given


def loaders_of(tmp_path: Path, number: int, num_streams: int) -> list[BatchLoader]:
    return [
        BatchLoader(
            make_data(tmp_path),
            RowSettings(3, 90, seed=5, window=6, accumulate=4, num_streams=num_streams),
            processes=OneOf(rank, number),
        )
        for rank in range(number)
    ]


def step_of(loaders: Sequence[BatchLoader]) -> list[list[int]]:
    """The tokens of all rows of a step, in the order of the rows."""
    rows = [[row for batch in loader.next_step() for row in batch.tokens_BT] for loader in loaders]
    return [row.tolist() for turn in zip(*rows, strict=True) for row in turn]


def state_of(loaders: Sequence[BatchLoader]) -> dict[str, Any]:
    """As all processes get it."""
    given = [
        ({place: one.state_dict() for place, one in loader.streams.items()}, loader.counts)
        for loader in loaders
    ]
    states = []
    for loader in loaders:
        assert isinstance(loader.processes, OneOf)
        loader.processes.given = given
        states.append(json.loads(json.dumps(loader.state_dict())))
    assert all(state == states[0] for state in states)
    first: dict[str, Any] = states[0]
    return first


@pytest.mark.parametrize(
    ("num_streams", "world_size", "made", "better"),
    [(1, 1, 1, 1), (4, 4, 1, 4), (8, 4, 1, 8), (1, 4, 4, 4), (2, 4, 2, 4), (6, 4, 2, 12)],
)
def test_processes_that_would_make_rows_for_each_other(
    tmp_path: Path, num_streams: int, world_size: int, made: int, better: int
) -> None:
    """By how many each process's work is multiplied, counted in loaders: a new run is refused, with advice that ends
    it; a resumed one is told."""
    note = note_on_streams(num_streams, world_size)
    if world_size > 1:
        (loader, *_) = loaders_of(tmp_path, world_size, num_streams)
        assert len(loader.streams) * world_size == num_streams * made
    if made == 1:
        assert note is None
        assert streams_of_new_run(num_streams, world_size) == num_streams
        return
    assert note is not None
    assert (
        f"the rows of {made} processes, because the run started with {num_streams} loader" in note
    )
    with pytest.raises(RecipeError) as caught:
        streams_of_new_run(num_streams, world_size)
    assert tells(
        caught.value,
        f"data.num_streams: is {num_streams}, which {world_size} processes can't share: {num_streams} / {world_size} "
        f"is not a whole number, and each process would make the rows of {made} ... use {better}",
    )
    assert streams_of_new_run(better, world_size) == better


@given(st.one_of(st.none(), st.integers(1, 64)), st.integers(1, 64))
def test_a_new_run_divides_its_loaders_evenly(given: int | None, world_size: int) -> None:
    try:
        number = streams_of_new_run(given, world_size)
    except RecipeError:
        assert given is not None
        assert given % world_size
        return
    assert number % world_size == 0
    assert number == (world_size if given is None else given)


def test_a_run_keeps_the_loaders_that_it_started_with(tmp_path: Path) -> None:
    for number, started in ((1, 1), (2, 4)):
        state = state_of(loaders_of(tmp_path, number, started))
        assert BatchLoader.streams_of(state) == started
    for wrong in (0, -1, "4", True, None):
        with pytest.raises(CheckpointError) as caught:
            BatchLoader.streams_of({"setting": {"num_streams": wrong}})
        assert tells(
            caught.value, "loader state: state.json has an impossible value of 'num_streams'"
        )


@pytest.mark.parametrize("num_streams", [1, 2, 3, 4])
@pytest.mark.parametrize(("number", "other"), [(2, 1), (4, 6), (3, 12)])
def test_any_number_of_processes_gets_the_same_rows_and_the_same_state(
    tmp_path: Path, num_streams: int, number: int, other: int
) -> None:
    one, several = (loaders_of(tmp_path, count, num_streams) for count in (1, number))
    for _ in range(3):
        assert step_of(one) == step_of(several)
    state = state_of(several)
    assert state == state_of(one)
    resumed = loaders_of(tmp_path, other, num_streams)
    for loader in resumed:
        loader.load_state_dict(state)
    assert step_of(one) == step_of(resumed)


def test_streams_that_processes_divide_are_made_once(tmp_path: Path) -> None:
    assert [list(one.streams) for one in loaders_of(tmp_path, 2, 4)] == [[0, 2], [1, 3]]
    assert [list(one.streams) for one in loaders_of(tmp_path, 4, 2)] == [[0], [1], [0], [1]]
    assert [list(one.streams) for one in loaders_of(tmp_path, 3, 2)] == [[0, 1]] * 3


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_a_step_has_the_same_number_of_rows(rows: int, accumulate: int, number: int) -> None:
    if rows * accumulate % number:
        with pytest.raises(RecipeError, match="can't be divided among"):
            micro_batches(rows, accumulate, number)
        return
    own = micro_batches(rows, accumulate, number)
    assert sum(own) * number == rows * accumulate
    assert max(own) <= rows
    assert min(own) >= 1


def test_a_state_of_other_data_is_refused(tmp_path: Path) -> None:
    state = BatchLoader(make_data(tmp_path), RowSettings(2, 90, seed=0)).state_dict()
    with pytest.raises(CheckpointError) as caught:
        BatchLoader(make_data(tmp_path, 19), RowSettings(2, 90, seed=0)).load_state_dict(state)
    assert tells(caught.value, "loader state: num_documents was 20 ... now 19")


def test_the_loader_feeds_twenty_training_loops(tmp_path: Path) -> None:
    """At least 20 * 9,000 tokens per second for sequences of 500 tokens.

    Includes captions, prepended documents, serialising, masking and packing.
    """

    class Large(Quadrants):
        grid = (16, 16)
        fingerprint = "large"

        def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
            return np.zeros((len(pixels_NHWC), 256), np.int32)

    source = Numbers(60)
    codes = CodeCache(source, Large(), tmp_path, progress=False)
    neighbours = NeighbourTable(
        Queries(Following(source), source, NeighbourSettings("f")), tmp_path, progress=False
    )
    data = MaskedSequences(
        source,
        Serializer(VOCABULARY, ByteTokenizer(), (16, 16)),
        CM3ObjectiveConfig().build(VOCABULARY),
        codes,
        RetrievedDocuments(neighbours, source, codes, num_retrieved=1),
        SequenceSettings(seed=0, context_length=600, max_text_tokens=64),
    )
    masked = data.sequence(0, 0)
    assert len(unmask(masked, VOCABULARY)) > 500
    loader = BatchLoader(data, RowSettings(8, 600, seed=0))
    next(loader)
    best = 0.0
    for _ in range(4):
        start = time.process_time()
        tokens = sum(next(loader).num_tokens for _ in range(8))
        best = max(best, tokens / (time.process_time() - start))
    assert best > 20 * 9000, f"{best:.0f} tokens a second"


@given(st.lists(st.sampled_from(["begin", "wait", "next", "state"]), max_size=30))
def test_a_step_ahead_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, doings: list[str]
) -> None:
    """Whenever the next batches are begun: they are the same, and the state knows only those that were given."""
    folder = tmp_path_factory.getbasetemp() / "ahead"
    plain, ahead = (step_loader(folder) for _ in range(2))
    loader = AheadLoader(ahead)
    try:
        for doing in doings:
            if doing == "begin":
                loader.begin()
            elif doing == "wait":
                loader.wait()
            elif doing == "next":
                for own, other in zip(loader.next_step(), plain.next_step(), strict=True):
                    assert equal(own, other)
            else:
                loader.wait()  # as in training
                assert loader.state_dict() == plain.state_dict()
                assert loader.counts == tuple(plain.counts)
    finally:
        loader.close()


def step_loader(folder: Path) -> BatchLoader:
    """Two micro-batches a step, of two streams."""
    rows = RowSettings(2, 90, seed=3, window=4, accumulate=2, num_streams=2)
    return BatchLoader(make_data(folder), rows)


def test_what_making_batches_raises_comes_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """... and not before, so that the step that was computed meanwhile is not lost."""
    plain = step_loader(tmp_path)
    loader = AheadLoader(plain)
    loader.next_step()
    before = loader.state_dict()

    def broken() -> list[TrainingBatch]:
        raise DataError("shard 7", "is gone", "bring it back")

    monkeypatch.setattr(plain, "next_step", broken)
    loader.begin()
    loader.wait()
    assert loader.state_dict() == before
    with pytest.raises(DataError, match="shard 7: is gone"):
        loader.next_step()
    loader.close()
